"""Cut each image of a data set into five crops, on which EAGLE is trained (objects are larger in them).

    cd eagle
    python crop_datasets.py pytorch_data_dir=../data dataset_name=cityscapes multiprocessing=8

Settings are explained in configs/eagle/crop_config.yml. Started again, the same command goes on where it stopped.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from eagleseg.data.crops import CROPS, crop_boxes, cropped_folder, generator_for, stored_label
from eagleseg.data.folders import open_source
from eagleseg.data.settings import CROP_TYPES, DataSettings
from eagleseg.data.sources import Source
from spectralseg.errors import InputError
from spectralseg.files.label_maps import save_labels
from spectralseg.files.storage import atomic_write, make_folder, remove, remove_leftovers, save_picture
from spectralseg.running.hydra_app import run, to_settings
from spectralseg.running.stage import Stage, describe, rank_and_world_size
from spectralseg.settings import Settings, setting, settings_from

COMMAND = "crop_datasets"


@dataclass
class CropSettings(Settings):
    """See configs/eagle/crop_config.yml."""

    pytorch_data_dir: str
    dataset_name: str = "cocostuff27"
    dir_dataset_name: str | None = None
    dir_dataset_n_classes: int | None = None
    dir_dataset_void: int | None = None
    splits: list[str] = field(default_factory=lambda: ["train"])
    crop_type: str = setting("five", choices=CROP_TYPES)
    crop_ratio: float = setting(0.5, above=0, most=1)
    seed: int = setting(0, least=0)
    quality: int = setting(75, least=1, most=95)
    multiprocessing: int = setting(0, least=0)
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.splits:
            raise InputError("splits: there is no split to crop")
        if self.overwrite and rank_and_world_size()[1] > 1:
            raise InputError("overwrite=true deletes crops that are there: start it as one process")

    def data(self) -> DataSettings:
        """The data set."""
        return settings_from(DataSettings, vars(self))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run(crop, "eagle/crop_config", argv)


def crop(config: DictConfig) -> None:
    """Crop each split; all of them are checked before the first image is cut."""
    settings = to_settings(config, CropSettings)
    sources = {split: open_source(settings.data(), split) for split in settings.splits}
    for split, source in sources.items():
        crop_split(settings, split, source)


def crop_split(settings: CropSettings, split: str, source: Source) -> None:
    """Write the crops of one split and the list of their names.

    Raises
    ------
    InputError
        The folder holds crops made with other settings, or files that are not ours; images that cannot be read.
    """
    folder = cropped_folder(settings.data())
    images, labels = folder / "img" / split, folder / "label" / split
    description = describe(images)
    if settings.overwrite and description is not None and description.get("command") == COMMAND:
        for path in [*images.glob("*.jpg"), *labels.glob("*.png")]:
            remove(path)
    stage = Stage(COMMAND, images, ".jpg", _arguments(settings, split, source))
    # A crop of an image is written after those before it, so that the last one tells that all are there.
    pending = stage.begin(str(CROPS * index + CROPS - 1) for index in range(len(source)))
    if source.has_labels:
        remove_leftovers(make_folder(labels))
    work = functools.partial(_crop_image, json.dumps(asdict(settings.data())), split, settings.quality, str(folder))
    stage.run(work, pending, settings.multiprocessing)
    stage.finish()
    with atomic_write(make_folder(folder / "lists") / f"{split}.txt") as file:
        file.writelines(f"{number}.jpg\n".encode() for number in range(CROPS * len(source)))


def _arguments(settings: CropSettings, split: str, source: Source) -> dict[str, Any]:
    """What decides the crops: not where the data lie, nor the number of processes."""
    names = ["dataset_name", "dir_dataset_n_classes", "dir_dataset_void", "crop_type", "crop_ratio", "quality"]
    names += ["seed"] if settings.crop_type == "random" else []
    chosen = {name: getattr(settings, name) for name in names}
    return {**chosen, "split": split, "images": len(source), "labels": source.has_labels}


@functools.lru_cache(maxsize=1)
def _opened(data: str, split: str) -> tuple[DataSettings, Source]:
    """The source, opened once in each process: with every image it would be sent anew."""
    settings = DataSettings(**json.loads(data))
    return settings, open_source(settings, split)


def _crop_image(data: str, split: str, quality: int, folder: str, last: str) -> None:
    """Write the crops of the image whose last crop has the number ``last``."""
    settings, source = _opened(data, split)
    index = int(last) // CROPS
    image, label = source.pair(index)
    generator = generator_for(settings.seed, 0, index)
    boxes = crop_boxes(*image.size, settings.crop_ratio, settings.crop_type or "five", generator)
    for number, box in enumerate(boxes, start=CROPS * index):
        if label is not None:
            left, top, right, bottom = box
            save_labels(Path(folder, "label", split, f"{number}.png"), stored_label(label[top:bottom, left:right]))
        save_picture(Path(folder, "img", split, f"{number}.jpg"), image.crop(box), quality=quality)
