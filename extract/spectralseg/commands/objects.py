"""From features to objects: several masks per image, with scores, and one COCO file of all of them."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor

from spectralseg.api import objects_at_pixels
from spectralseg.commands.eigs import GPU_BATCH_CELLS
from spectralseg.commands.vis_objects import object_mask
from spectralseg.errors import InputError
from spectralseg.files.images import VIEW, load_image, patch_grid, read_images_list
from spectralseg.files.label_maps import save_mask
from spectralseg.files.records import OBJECTS, cell_colours, check, load_features, patch_features
from spectralseg.files.storage import DAMAGED, list_ids, load_json, make_folder, save_json
from spectralseg.mathematics.crf import BACKENDS
from spectralseg.mathematics.objects import (
    MASKCUT_CRF,
    METHODS,
    MIN_SEPARATION,
    Part,
    colour_features,
    find_parts,
)
from spectralseg.progress import say
from spectralseg.running.batches import run_in_batches
from spectralseg.running.devices import device_or_processes, keep_freed_memory, require_memory
from spectralseg.running.stage import Stage, provenance, rank_and_world_size
from spectralseg.settings import Settings, setting

SUFFIX = ".objects.json"
ALL, MASKS = "objects.json", "masks"
CATEGORIES = [{"id": 1, "name": "object", "supercategory": "object"}]
BYTES_PER_PAIR = 40  # of patches: float64 matrices of a cut


@dataclass(frozen=True)
class ObjectSettings(Settings):
    """What decides the objects; see ``extract_objects`` in ``extract.py``."""

    method: str = setting("maskcut", choices=METHODS)
    which_features: str = "k"
    max_objects: int = setting(3, least=1)
    tau: float = setting(0.15, least=-1, below=1)
    min_separation: float = MIN_SEPARATION
    crf: bool = True
    crf_backend: str = setting("auto", choices=BACKENDS)


def extract_objects(
    images_list: str,
    images_root: str,
    features_dir: str,
    output_dir: str,
    settings: ObjectSettings,
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    save_masks: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    where = device_or_processes(device, multiprocessing)
    if settings.crf:
        resolved = replace(MASKCUT_CRF, crf_backend=settings.crf_backend).resolved(where)
        settings = replace(settings, crf_backend=resolved.crf_backend)
    files = read_images_list(images_list, images_root)
    list_ids(features_dir, ".pth")  # a wrong folder is said once, not for every image
    arguments = asdict(settings) | {"features": provenance(features_dir)}
    stage = Stage("extract_objects", output_dir, SUFFIX, arguments, overwrite)
    pending = stage.begin(files, where)
    keep_freed_memory()
    read = functools.partial(_read, files, Path(images_root), Path(features_dir), settings)
    find = functools.partial(_find, stage.folder, settings, where)
    if where.type == "cpu":
        stage.run(functools.partial(_alone, read, find), pending, multiprocessing)
    else:
        run_in_batches(stage, pending, read, lambda item: (item.features.shape, item.grid), _at_once, find)
    absent = [image_id for image_id in files if not stage.output(image_id).exists()]
    if rank_and_world_size()[1] > 1 and absent:
        say(f"extract_objects: {len(absent)} images are other processes' work; the last to end writes {ALL}")
    else:
        found = sorted(set(files) - set(absent))
        save_json(stage.folder / ALL, _collected(stage, found), indent=None)
        for image_id in found if save_masks else ():
            save_mask(make_folder(stage.folder / MASKS) / f"{image_id}.png", _best(load_json(stage.output(image_id))))
    stage.finish()


@dataclass(frozen=True)
class Item:
    """What an image's objects are found from; ``picture`` is what its features were made from, upright RGB."""

    image_id: str
    file: str
    size: tuple[int, int]  # (width, height) of the photograph
    picture: Image.Image
    features: Tensor  # (T, D)
    grid: tuple[int, int]
    step: int  # pixels of the picture per patch


def _read(
    files: dict[str, str], images_root: Path, features_dir: Path, settings: ObjectSettings, image_id: str
) -> Item:
    path = features_dir / f"{image_id}.pth"
    record = load_features(path)
    if record.get("center_crop") is not None:
        raise InputError(f"{path} was made with --center_crop, so that it does not see the whole image")
    features = patch_features(record, settings.which_features, path)
    _, _, height, width = record["shape"]
    grid = patch_grid(height, width, record["patch_size"])
    require_memory(math.prod(grid), BYTES_PER_PAIR, "extract the features with --resize, or with a larger patch size")
    colours = cell_colours(record, grid)
    features = features[0].float() if colours is None else colour_features(colours)
    photograph = load_image(images_root / files[image_id])
    picture = load_image(images_root / files[image_id], **{name: record.get(name) for name in VIEW})
    if picture.size != (width, height):
        raise InputError(
            f"{files[image_id]} has {picture.width}x{picture.height} pixels, its features came from {width}x{height}"
        )
    return Item(image_id, files[image_id], photograph.size, picture, features, grid, record["patch_size"])


def _at_once(item: Item) -> int:
    return max(1, GPU_BATCH_CELLS // (2 * len(item.features) ** 2))  # float64


def _alone(
    read: Callable[[str], Item], find: Callable[..., Iterator[tuple[str, Callable[[], None]]]], image_id: str
) -> None:
    for _, save in find([read(image_id)]):
        save()


def _find(
    folder: Path, settings: ObjectSettings, device: torch.device, items: list[Item]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Objects of images of one size; yields what saves each image's."""
    features = torch.stack([item.features for item in items]).to(device)
    found = find_parts(features, items[0].grid, settings.method, settings.max_objects, settings.tau)
    for item, parts in zip(items, found, strict=True):
        record = {"file": item.file, "width": item.size[0], "height": item.size[1]}
        record["objects"] = _objects(
            item, [part for part in parts if part.separation >= settings.min_separation], settings, device
        )
        yield item.image_id, functools.partial(save_json, folder / f"{item.image_id}{SUFFIX}", record, None)


def _objects(item: Item, parts: list[Part], settings: ObjectSettings, device: torch.device) -> list[dict[str, Any]]:
    """COCO's fields of each object, without ids."""
    crf = replace(MASKCUT_CRF, crf_backend=settings.crf_backend) if settings.crf else None
    entries = []
    for found in objects_at_pixels(parts, item.picture, item.size, item.step, crf, device):
        code = rle.encode(np.asfortranarray(found.mask.astype(np.uint8)))
        entries.append(
            {
                "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
                "bbox": [float(side) for side in rle.toBbox(code)],
                "area": float(rle.area(code)),
                "score": round(found.score, 6),
                "iscrowd": 0,
            }
        )
    return entries


def _best(record: dict[str, Any]) -> np.ndarray:
    """Mask (H, W) of the object with the best score; empty where there is none."""
    best = max(record["objects"], key=lambda entry: entry["score"], default=None)
    size = (record["height"], record["width"])
    return np.zeros(size, dtype=bool) if best is None else object_mask(best, record["file"])


def _collected(stage: Stage, ids: list[str]) -> dict[str, Any]:
    """One COCO file of all images. Their ids are their names' numbers, or, where one has none, 1, 2, ..."""
    numbers = [int(image_id) if image_id.isdecimal() else 0 for image_id in ids]
    if 0 in numbers or len(set(numbers)) < len(ids):
        numbers = list(range(1, len(ids) + 1))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image_id in zip(numbers, ids, strict=True):
        path = stage.output(image_id)
        record = check(load_json(path), OBJECTS, path, DAMAGED)
        images.append({"id": number, "file_name": record["file"], "width": record["width"], "height": record["height"]})
        for entry in record["objects"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, **entry})
    info = {"description": f"objects found by {stage.arguments['method']}"}
    return {"info": info, "images": images, "annotations": annotations, "categories": CATEGORIES}
