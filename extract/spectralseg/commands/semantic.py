"""From clusters to semantic maps, and from label maps to sharp edges."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from spectralseg.errors import InputError
from spectralseg.files.images import load_image, read_images_list
from spectralseg.files.label_maps import MASK_FORMATS, load_labels, load_soft, save_labels, save_mask, upscale_labels
from spectralseg.files.records import load_list
from spectralseg.files.storage import list_ids
from spectralseg.mathematics.clusters import semantic_map
from spectralseg.mathematics.crf import CrfSettings, dense_crf, sharpen_soft
from spectralseg.running.batches import run_in_batches
from spectralseg.running.devices import device_or_processes, keep_freed_memory
from spectralseg.running.stage import Stage, check_origin, describe_file, provenance
from spectralseg.settings import setting

GPU_BATCH = 16  # images of one size whose CRFs are solved together


def extract_semantic_segmentations(
    segmentations_dir: str,
    bbox_clusters_file: str,
    output_dir: str,
    cluster_offset: int = 1,
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    records = load_list(bbox_clusters_file, ["segment_indices", "clusters"])
    clusters = {record["id"]: (record["segment_indices"], record["clusters"]) for record in records}
    arguments = {"cluster_offset": cluster_offset, "bbox_clusters": describe_file(bbox_clusters_file)}
    stage = Stage("extract_semantic_segmentations", output_dir, ".png", arguments, overwrite)
    ids = sorted({*list_ids(segmentations_dir, ".png"), *clusters})

    def work(image_id: str) -> None:
        path = Path(segmentations_dir) / f"{image_id}.png"
        if image_id not in clusters:
            raise InputError(f"{bbox_clusters_file} has no entry for it")
        save_labels(stage.output(image_id), semantic_map(load_labels(path), *clusters[image_id], cluster_offset))

    stage.run(work, stage.begin(ids))
    stage.finish()


@dataclass(frozen=True)
class SharpenSettings(CrfSettings):
    """What decides the sharpened maps; see ``extract_crf_segmentations`` in ``extract.py``."""

    num_classes: int = setting(21, least=2, most=256)
    downsample_factor: int = setting(16, least=1)
    mask_format: str = setting("palette", choices=MASK_FORMATS)
    soft: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.soft and self.num_classes != 2:
            raise InputError(f"--soft is for --num_classes 2, not {self.num_classes}: a soft map knows one object")
        if self.mask_format == "binary" and self.num_classes != 2:
            raise InputError(f"--mask_format binary is for --num_classes 2, not {self.num_classes}; leave it out")


def extract_crf_segmentations(
    images_list: str,
    images_root: str,
    segmentations_dir: str,
    output_dir: str,
    settings: SharpenSettings,
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    where = device_or_processes(device, multiprocessing)
    settings = settings.resolved(where)
    files = read_images_list(images_list, images_root)
    if not Path(segmentations_dir).is_dir():
        raise InputError(f"no such segmentations_dir: {segmentations_dir}")
    check_origin(segmentations_dir, patch=settings.downsample_factor)
    arguments = asdict(settings) | {"segmentations": provenance(segmentations_dir)}
    stage = Stage("extract_crf_segmentations", output_dir, ".png", arguments, overwrite)
    keep_freed_memory()
    paths = {image_id: Path(images_root) / name for image_id, name in files.items()}
    read = functools.partial(_read_map, paths, Path(segmentations_dir), settings)
    pending = stage.begin(files, where)
    if where.type == "cpu":
        stage.run(functools.partial(_sharpen_alone, read, stage.folder, settings), pending, multiprocessing)
    else:
        together = functools.partial(_sharpen, stage.folder, settings, where)
        run_in_batches(stage, pending, read, lambda item: item.labels.shape, lambda _: GPU_BATCH, together)
    stage.finish()


@dataclass(frozen=True)
class LabelledImage:
    """A photograph, (H, W, 3) uint8, and its coarse label map, or soft map, at its size, (H, W)."""

    image_id: str
    image: np.ndarray
    labels: np.ndarray


def _read_map(
    paths: dict[str, Path], segmentations_dir: Path, settings: SharpenSettings, image_id: str
) -> LabelledImage:
    labels = (load_soft if settings.soft else load_labels)(segmentations_dir / f"{image_id}.png")
    if not settings.soft and settings.num_classes == 2 and np.isin(labels, (0, 255)).all():
        labels = (labels > 0).astype(np.uint8)
    image = np.array(load_image(paths[image_id]))
    labels = upscale_labels(labels, image.shape[0], image.shape[1], settings.downsample_factor)
    return LabelledImage(image_id, image, labels)


def _sharpen(
    folder: Path, settings: SharpenSettings, device: torch.device, items: list[LabelledImage]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Sharpen maps of one size; yield what saves each."""
    images, labels = (np.stack([getattr(item, name) for item in items]) for name in ("image", "labels"))
    if settings.soft:
        maps = sharpen_soft(images, labels, settings, device)
    else:
        maps = dense_crf(images, labels, settings.num_classes, settings, device)
    for item, sharp in zip(items, maps, strict=True):
        path = folder / f"{item.image_id}.png"
        if settings.num_classes == 2:
            yield item.image_id, functools.partial(save_mask, path, sharp, settings.mask_format)
        else:
            yield item.image_id, functools.partial(save_labels, path, sharp)


def _sharpen_alone(
    read: Callable[[str], LabelledImage], folder: Path, settings: SharpenSettings, image_id: str
) -> None:
    for _, save in _sharpen(folder, settings, torch.device("cpu"), [read(image_id)]):
        save()
