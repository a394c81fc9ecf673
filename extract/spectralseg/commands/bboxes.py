"""From segments to boxes, from boxes to features, from features to clusters: one file each for the whole data set."""

import functools
import itertools
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spectralseg.errors import InputError
from spectralseg.files.images import find_image, load_image, to_tensor, view_of
from spectralseg.files.label_maps import infer_grid, load_labels
from spectralseg.files.records import load_list, load_seen
from spectralseg.files.storage import paired_ids, require_partner
from spectralseg.mathematics.clusters import cluster_features
from spectralseg.mathematics.regions import segment_boxes
from spectralseg.models.backbones import load_backbone
from spectralseg.models.tokens import TokenExtractor
from spectralseg.running.devices import device_or_processes, keep_freed_memory
from spectralseg.running.stage import FileStage, check_origin, describe_file, provenance
from spectralseg.running.workers import stream
from spectralseg.settings import Settings, setting

BOX_FORMAT = "(xmin, ymin, xmax, ymax)"
CROPS_AT_ONCE = 64
GPU_BATCH = 16  # images whose crops are sorted by size together


@dataclass(frozen=True)
class BoxSettings(Settings):
    """What decides the boxes; see ``extract_bboxes`` in ``extract.py``."""

    num_erode: int = setting(2, least=0)
    num_dilate: int = setting(3, least=0)
    skip_bg_index: bool = True
    downsample_factor: int | None = setting(None, least=1)


def extract_bboxes(
    features_dir: str, segmentations_dir: str, output_file: str, settings: BoxSettings, overwrite: bool = False
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    check_origin(segmentations_dir, features_dir, cell=settings.downsample_factor)
    arguments = asdict(settings) | {"segmentations": provenance(segmentations_dir)}
    stage = FileStage("extract_bboxes", output_file, arguments, overwrite)
    if stage.is_done():
        return
    boxes = []
    for image_id in stage.track(paired_ids(features_dir, segmentations_dir, (".pth", ".png"))):
        with stage.reporting(image_id):
            boxes.append(_boxes(Path(features_dir), Path(segmentations_dir), settings, image_id))
    stage.finish(boxes)


def _boxes(features_dir: Path, segmentations_dir: Path, settings: BoxSettings, image_id: str) -> dict[str, Any]:
    features_path, labels_path = features_dir / f"{image_id}.pth", segmentations_dir / f"{image_id}.png"
    require_partner(features_path, labels_path)
    record = load_seen(features_path)
    return boxes_of(image_id, load_labels(labels_path), record["shape"], record["patch_size"], record, settings)


def boxes_of(
    image_id: str,
    segments: np.ndarray,
    shape: tuple[int, ...],
    patch_size: int,
    view: dict[str, Any],
    settings: BoxSettings,
) -> dict[str, Any]:
    """The record of the boxes of ``segments`` (rows, columns) of an image of ``shape`` (..., H, W).

    ``view``: a record that tells how the image was looked at, whose pixels the boxes count.
    """
    height, width = shape[-2:]
    step = settings.downsample_factor or _step(segments.shape, height, width, patch_size)
    labels, boxes = segment_boxes(segments, settings.num_erode, settings.num_dilate, settings.skip_bg_index)
    return {
        "bboxes": [list(box) for box in boxes],
        "bboxes_original_resolution": [[side * step for side in box] for box in boxes],
        "segment_indices": labels,
        "id": image_id,
        "format": BOX_FORMAT,
        **view_of(view),
    }


def _step(grid: tuple[int, int], height: int, width: int, patch_size: int) -> int:
    """Pixels per cell of a segment map: the patch size, or that of a finer grid."""
    if grid == (height // patch_size, width // patch_size):
        return patch_size
    inferred, step = infer_grid(height, width, grid[0] * grid[1])
    if inferred != grid:
        raise InputError(f"a segment map of {grid} does not fit an image of {width}x{height}; give --downsample_factor")
    return step


def extract_bbox_features(
    images_root: str,
    bbox_file: str,
    model_name: str,
    output_file: str,
    weights: str | None = None,
    dtype: str = "float32",
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    where = device_or_processes(device, multiprocessing)
    if not Path(images_root).is_dir():
        raise InputError(f"no such images_root: {images_root}")
    by_id = {record["id"]: record for record in load_list(bbox_file, ["bboxes_original_resolution"])}
    backbone = (model_name, weights, dtype, where)
    arguments = {"model_name": model_name, "weights": _extractor(*backbone).backbone.weights, "dtype": dtype}
    arguments["bboxes"] = describe_file(bbox_file)
    stage = FileStage("extract_bbox_features", output_file, arguments, overwrite)
    if stage.is_done():
        return
    records, at_once = [by_id[image_id] for image_id in sorted(by_id)], 1 if where.type == "cpu" else GPU_BATCH
    parts = (records[start : start + at_once] for start in range(0, len(records), at_once))
    work = functools.partial(_describe, images_root, backbone)
    described = itertools.chain.from_iterable(stream(work, parts, multiprocessing))
    done = []
    for image_id, features in zip(stage.track(by_id), described, strict=True):
        with stage.reporting(image_id):
            if isinstance(features, InputError):
                raise features
            done.append(by_id[image_id] | {"features": torch.empty(features.shape).copy_(torch.from_numpy(features))})
    stage.finish(done)


@functools.lru_cache(maxsize=1)  # a worker process loads it once
def _extractor(model_name: str, weights: str | None, dtype: str, device: torch.device) -> TokenExtractor:
    keep_freed_memory()
    return TokenExtractor(load_backbone(model_name, weights, device), parts=("cls",), dtype=dtype)


def _describe(
    images_root: str, backbone: tuple[str, str | None, str, torch.device], records: list[dict[str, Any]]
) -> list[np.ndarray | InputError]:
    """Features of the boxes of some images, (N, D) each; arrays, which are sent from process to process as they are."""
    extractor = _extractor(*backbone)
    crops: list[list[Tensor] | InputError] = []
    for record in records:
        try:
            image = load_image(find_image(images_root, record["id"]), **view_of(record))
            crops.append(cut_boxes(image, record["bboxes_original_resolution"], extractor.backbone.patch_size))
        except InputError as error:
            crops.append(error)
    features = iter(crop_features(extractor, [one for one in crops if isinstance(one, list)], backbone[-1]))
    return [next(features).numpy() if isinstance(one, list) else one for one in crops]


def cut_boxes(image: Image.Image, boxes: list[list[int]], smallest: int) -> list[Tensor]:
    """Crops of boxes (xmin, ymin, xmax, ymax) in pixels: (3, h, w) in [0, 1], enlarged to ``smallest`` (bilinear)."""
    crops = []
    for box in boxes:
        xmin, ymin, xmax, ymax = box[0], box[1], min(box[2], image.width), min(box[3], image.height)
        if not (0 <= xmin < xmax and 0 <= ymin < ymax):
            raise InputError(f"box {box} lies outside the image of {image.width}x{image.height} pixels")
        crop = image.crop((xmin, ymin, xmax, ymax))
        if min(crop.size) < smallest:
            size = (max(crop.width, smallest), max(crop.height, smallest))
            crop = crop.resize(size, Image.Resampling.BILINEAR)
        crops.append(to_tensor(crop))
    return crops


def crop_features(extractor: TokenExtractor, crops: list[list[Tensor]], device: torch.device) -> list[Tensor]:
    """[CLS] of the crops of each of some images: (N, D) float32 for each. Crops of equal size share a batch."""
    groups: dict[torch.Size, list[tuple[int, int]]] = defaultdict(list)
    for image, of_one in enumerate(crops):
        for number, crop in enumerate(of_one):
            groups[crop.shape].append((image, number))
    features: dict[tuple[int, int], Tensor] = {}
    for group in groups.values():
        for start in range(0, len(group), CROPS_AT_ONCE):
            places = group[start : start + CROPS_AT_ONCE]
            batch = torch.stack([crops[image][number] for image, number in places]).to(device)
            features |= dict(zip(places, extractor(batch)["cls"].float().cpu(), strict=True))
    return [
        torch.stack([features[image, number] for number in range(len(of_one))]) if of_one else torch.zeros(0, 0)
        for image, of_one in enumerate(crops)
    ]


def extract_bbox_clusters(
    bbox_features_file: str,
    output_file: str,
    num_clusters: int = 20,
    seed: int = 0,
    pca_dim: int = 0,
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    records = load_list(bbox_features_file, ["features"])
    arguments = {"num_clusters": num_clusters, "seed": seed, "pca_dim": pca_dim}
    arguments["bbox_features"] = describe_file(bbox_features_file)
    stage = FileStage("extract_bbox_clusters", output_file, arguments, overwrite)
    if stage.is_done():
        return
    features = [np.asarray(record["features"]) for record in records]
    filled = [array for array in features if len(array)]
    if not filled:
        raise InputError(f"{bbox_features_file} holds no box at all")
    clusters = iter(cluster_features(np.concatenate(filled), num_clusters, seed, pca_dim).tolist())
    results = []
    for record, array in zip(records, features, strict=True):
        kept = {name: value for name, value in record.items() if name != "features"}
        results.append(kept | {"clusters": torch.tensor([next(clusters) for _ in array], dtype=torch.int64)})
    stage.finish(results)
