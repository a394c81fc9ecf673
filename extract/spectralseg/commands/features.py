"""From images to features: decode, batch by size, run the backbone, write one record per image."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array
from torch import Tensor
from torch.utils.data import Dataset

from spectralseg.errors import InputError
from spectralseg.files.images import crop_to_patches, load_image, read_images_list, view_of
from spectralseg.files.storage import compact, save_record
from spectralseg.models.backbones import MAX_SIZE, load_backbone
from spectralseg.models.tokens import DEBIAS, TokenExtractor, dtype_named
from spectralseg.progress import say
from spectralseg.running.batches import THREADS, work_in_batches
from spectralseg.running.devices import keep_freed_memory, pick_device
from spectralseg.running.stage import Stage
from spectralseg.running.workers import loader
from spectralseg.settings import Settings, check_range, setting

GPU_BATCH = 32  # images; on a CPU one alone is as fast, and needs less memory


@dataclass(frozen=True)
class FeatureSettings(Settings):
    """Everything that decides what a features record holds; see ``extract_features`` in ``extract.py``."""

    model_name: str
    which_block: tuple[int, ...] = (-1,)
    which_features: tuple[str, ...] = ("k",)
    weights: str | None = None
    dtype: str = "float32"
    storage_dtype: str = "float32"
    resize: int | None = setting(None, least=1)
    center_crop: int | None = setting(None, least=1)
    max_size: int | None = setting(None, least=1)
    debias: str | None = setting(None, choices=DEBIAS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None and self.max_size is not None:
            raise InputError("resize sets the shorter side of the images, max_size the longer one: give one of them")
        if self.resize is None and self.max_size is None:
            object.__setattr__(self, "max_size", MAX_SIZE.get(self.model_name))
        dtype_named(self.storage_dtype)


@dataclass(frozen=True)
class Loaded:
    """A decoded image on its way to the backbone."""

    image_id: str
    pixels: Tensor  # (3, H, W) uint8, cropped to whole patches
    shape: tuple[int, int]  # H, W before that crop
    colour: coo_array | None = None  # affinity of its patches, where eigenvectors are asked for at once


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded, and why."""

    image_id: str
    problem: str


class ImageFiles(Dataset):
    """Decodes images one by one; what cannot be decoded is an item as well, not an exception."""

    def __init__(
        self,
        root: Path,
        files: Sequence[tuple[str, str]],
        patch_size: int,
        settings: FeatureSettings,
        colour: Callable[[int, Image.Image], coo_array] | None = None,
    ) -> None:
        self.root, self.files, self.patch_size, self.colour = root, files, patch_size, colour
        self.view = view_of(asdict(settings))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Loaded | Unreadable:
        image_id, name = self.files[index]
        try:
            return loaded(image_id, load_image(self.root / name, **self.view), self.patch_size, self.colour)
        except InputError as error:
            return Unreadable(image_id, str(error))


def loaded(
    image_id: str, image: Image.Image, patch_size: int, colour: Callable[[int, Image.Image], coo_array] | None = None
) -> Loaded:
    """An image as the backbone takes it, and its ``colour`` affinity if asked for; an error if it has no patch."""
    pixels = crop_to_patches(torch.from_numpy(np.array(image)).permute(2, 0, 1), patch_size).contiguous()
    return Loaded(image_id, pixels, (image.height, image.width), None if colour is None else colour(patch_size, image))


def extract_features(
    images_list: str,
    images_root: str,
    output_dir: str,
    settings: FeatureSettings,
    batch_size: int | None = None,
    device: str = "auto",
    num_workers: int | None = None,
    overwrite: bool = False,
    extractor: TokenExtractor | None = None,
) -> None:
    """The command ``extract_features``; see its documentation in ``extract.py``.

    ``extractor``: that of :func:`load_extractor`, where it is there already.
    """
    dtype = dtype_named(settings.storage_dtype)

    def work(over: Pass, items: list[Loaded]) -> Iterator[tuple[str, Callable[[], None]]]:
        backbone, found = over.extractor.backbone, _on_cpu(features_of(over.extractor, items, over.device))
        about = {"weights": backbone.weights, "patch_size": backbone.patch_size, "model_name": backbone.name}
        about |= {"blocks": over.extractor.blocks, **over.view}
        for number, item in enumerate(items):
            index, name = over.files[item.image_id]
            record = {"indices": index, "file": name, "id": item.image_id} | about | {"shape": (1, 3, *item.shape)}
            features = {name: value[number : number + 1] for name, value in found.items()}
            yield item.image_id, functools.partial(_save, over.stage.output(item.image_id), record, features, dtype)

    images = (images_list, images_root, settings, batch_size, device, num_workers, extractor)
    over_images("extract_features", output_dir, lambda made: made, work, *images, overwrite=overwrite)


class Pass(NamedTuple):
    """Images on their way through a backbone: by id their number in the list and their name; how they are looked at."""

    extractor: TokenExtractor
    device: torch.device
    stage: Stage
    files: dict[str, tuple[int, str]]
    view: dict[str, Any]


def over_images(
    command: str,
    output_dir: str,
    arguments: Callable[[dict[str, Any]], dict[str, Any]],
    work: Callable[[Pass, list[Loaded]], Iterator[tuple[str, Callable[[], None]]]],
    images_list: str,
    images_root: str,
    settings: FeatureSettings,
    batch_size: int | None,
    device: str,
    num_workers: int | None,
    extractor: TokenExtractor | None,
    overwrite: bool,
    colour: Callable[[int, Image.Image], coo_array] | None = None,
) -> None:
    """A stage that decodes the images of a list and works on those of one kind together.

    ``arguments``: of the stage, by :func:`made_by`; ``work`` as of :func:`work_in_batches`; ``colour``: patch size and
    image -> affinity, computed where images are decoded; the others as of ``extract_features``.
    """
    check_range("batch_size", batch_size, least=1)
    check_range("num_workers", num_workers, least=0)
    where = pick_device(device)
    at_once = batch_size or (1 if where.type == "cpu" else GPU_BATCH)
    files = read_images_list(images_list, images_root)
    extractor = extractor or load_extractor(command, settings, where)
    stage = Stage(command, output_dir, ".pth", arguments(made_by(settings, extractor)), overwrite)
    named = [(image_id, files[image_id]) for image_id in stage.begin(files, where)]
    dataset = ImageFiles(Path(images_root), named, extractor.backbone.patch_size, settings, colour)
    numbered = {image_id: (number, name) for number, (image_id, name) in enumerate(files.items())}
    over = Pass(extractor, where, stage, numbered, dataset.view)
    writers = 0 if where.type == "cpu" else THREADS
    with stage.working(), _decoded(dataset, num_workers, where) as items:
        images = _readable(items, stage)
        work_in_batches(stage, images, kind_of, lambda _: at_once, functools.partial(work, over), writers)
    stage.finish()


def made_by(settings: FeatureSettings, extractor: TokenExtractor) -> dict[str, Any]:
    """What ``stage.json`` tells of features: the settings, with what ``auto`` and file names have become."""
    backbone = extractor.backbone
    found = {"weights": backbone.weights, "patch_size": backbone.patch_size, "which_block": extractor.blocks}
    return asdict(settings) | {"model_name": backbone.name} | found


def load_extractor(command: str, settings: FeatureSettings, device: torch.device) -> TokenExtractor:
    """The backbone of ``settings``, ready to work; errors as of :func:`load_backbone`."""
    keep_freed_memory()
    backbone = load_backbone(settings.model_name, settings.weights, device)
    if backbone.weights.startswith("random"):
        say(f"{command}: {backbone.name} has RANDOM weights: its features mean nothing")
    return TokenExtractor(backbone, settings.which_block, settings.which_features, settings.dtype, settings.debias)


@contextlib.contextmanager
def _decoded(
    dataset: ImageFiles, num_workers: int | None, device: torch.device
) -> Iterator[Iterator[Loaded | Unreadable]]:
    """Images in order, decoded in worker processes (by default: none beside a CPU that computes, else up to 8)."""
    if num_workers is None:
        num_workers = 0 if device.type == "cpu" else min(8, torch.get_num_threads())
    with loader(dataset, num_workers, batch_size=None) as items:
        yield iter(items)


def _readable(items: Iterator[Loaded | Unreadable], stage: Stage) -> Iterator[Loaded]:
    """Those that could be decoded; the others are reported to ``stage``."""
    for item in items:
        if isinstance(item, Unreadable):
            stage.failed(item.image_id, item.problem)
        else:
            yield item


def kind_of(item: Loaded) -> tuple[int, ...]:
    """Images of one kind go through the backbone together."""
    return tuple(item.pixels.shape)


def features_of(extractor: TokenExtractor, items: Sequence[Loaded], device: torch.device) -> dict[str, Tensor]:
    """Features of images of one kind, on ``device``; torch.OutOfMemoryError, with the remedy, on a CPU as well."""
    try:
        images = torch.stack([item.pixels for item in items]).to(device, non_blocking=True).float().div_(255)
        return extractor(images)
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU; on a CPU there is no type for it
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
    rows, columns = items[0].pixels.shape[-2:]
    what = f"an image of {columns}x{rows}: --resize the images" if len(items) == 1 else ""
    raise torch.OutOfMemoryError(f"out of memory with {what or f'{len(items)} images of {columns}x{rows}'}")


def _on_cpu(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole batch at once; a feature under two names stays one."""
    copies = {value.data_ptr(): value.cpu() for value in {id(value): value for value in features.values()}.values()}
    return {name: copies[value.data_ptr()] for name, value in features.items()}


def _save(path: Path, record: dict[str, Any], features: dict[str, Tensor], dtype: torch.dtype) -> None:
    save_record(path, record | _stored(features, dtype))


def _stored(features: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """CPU copies to save. A feature under two names (``k`` and ``k_block_-1``) is copied, and so stored, once."""
    copies: dict[int, Tensor] = {}
    stored = {}
    for name, value in features.items():
        key = value.data_ptr()
        if key not in copies:
            copy = compact(value).to(dtype)
            copies[key] = copy[0] if name == "attn_cls" else copy
        stored[name] = copies[key]
    return stored
