"""One image at a time: its features or eigenvectors, a detector, and a small file with the box."""

import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectloc import detectors
from objectloc.detectors import Box, Detection
from objectloc.ground_truth import DataSet, open_data_set, upright_size
from objectloc.options import DataOptions, DetectorOptions, ResultOptions
from objectloc.patch_sources import Patches, pick_eigenvector, read_eigenvector, read_patches
from spectralseg.errors import InputError
from spectralseg.files.images import load_image
from spectralseg.files.label_maps import save_mask
from spectralseg.files.storage import save_json, save_picture
from spectralseg.mathematics.eigen import spectral_eigenvectors
from spectralseg.mathematics.ranking import object_map
from spectralseg.running.devices import require_memory
from spectralseg.running.stage import provenance

BOXES, MASKS, PICTURES, SUFFIX = "boxes", "masks", "pictures", ".box.json"  # folders below the results; per-image files
EIGENVECTORS = 5  # computed on the spot: as many as the recipes store, so that both ways give the same numbers
RANKED_EIGENVECTORS = 20
# Bytes that a detector needs for each pair of patches: float32 matrices, and float64 ones for TokenCut.
BYTES_PER_PAIR = {"lost": 12, "dinoseg": 0, "eigenseg": 20, "tokencut": 40, "maskcut": 40}


@dataclass(frozen=True)
class Found:
    """The box of an image.

    Attributes
    ----------
    size
        (height, width) of the upright image in pixels.
    box
        (xmin, ymin, xmax, ymax) in its pixels, maxima exclusive.
    detection, step
        What led to the box, and the height and width of a patch in pixels of the image; None for a trivial box.
    """

    size: tuple[int, int]
    box: Box
    detection: Detection | None = None
    step: tuple[float, float] = (1.0, 1.0)

    def mask(self) -> np.ndarray:
        """(height, width) bool: each patch that the box encloses with its own pixels; the box itself if it is trivial.

        Pixels beyond the last whole patch are as the last patch.
        """
        if self.detection is None:
            xmin, ymin, xmax, ymax = (round(side) for side in self.box)
            mask = np.zeros(self.size, dtype=bool)
            mask[ymin:ymax, xmin:xmax] = True
            return mask
        patches = self.detection.mask
        rows, columns = (
            np.minimum(np.arange(pixels) / step, count - 1).astype(int)
            for pixels, step, count in zip(self.size, self.step, patches.shape, strict=True)
        )
        return patches[rows][:, columns]


def localize(data: DataOptions, options: DetectorOptions, results: ResultOptions, folder: Path, image_id: str) -> None:
    """Find the box of an image and write ``<folder>/boxes/<id>.box.json``.

    With ``results.visualize`` also ``<folder>/pictures/<id>_<visualize>.png``, with the annotated boxes if there is an
    evaluation; with ``results.save_masks`` ``<folder>/masks/<id>.png``.

    Raises
    ------
    InputError
        An image or file that is absent, damaged or foreign; the message names it.
    """
    images = data_set(data)
    found = find_box(images, options, image_id)
    if results.save_masks:
        save_mask(folder / MASKS / f"{image_id}.png", found.mask())
    if (picture := results.visualize) is not None:
        from objectloc.pictures import draw_picture  # matplotlib, which the boxes alone do not need

        find_boxes = None if results.no_evaluation else images.find_boxes
        truth = None if find_boxes is None else find_boxes(image_id)
        image = load_image(images.path(image_id))
        drawn = draw_picture(picture, image, found.box, found.detection, found.step, truth)
        save_picture(folder / PICTURES / f"{image_id}_{picture}.png", drawn)
    height, width = found.size
    record = {"file": images.files[image_id], "height": height, "width": width, "box": list(found.box)}
    save_json(folder / BOXES / f"{image_id}{SUFFIX}", record, indent=None)


def localize_all(
    data: DataOptions,
    runs: Sequence[tuple[DetectorOptions, Path]],
    results: ResultOptions,
    image_id: str,
) -> None:
    """:func:`localize` with the first options and folder; the others follow where their box is missing.

    What goes wrong with these is left to their own turn.
    """
    for number, (options, folder) in enumerate(runs):
        if not (folder / BOXES / f"{image_id}{SUFFIX}").exists():
            with contextlib.suppress(*([InputError] if number else [])):
                localize(data, options, results, folder, image_id)


@functools.lru_cache(maxsize=1)
def data_set(data: DataOptions) -> DataSet:
    """The data set of these options, opened once per process."""
    return open_data_set(data)


def find_box(images: DataSet, options: DetectorOptions, image_id: str) -> Found:
    """Run the detector on stored eigenvectors or features, where the options name their folder, else on the image."""
    path = images.path(image_id)
    if options.mode == "trivial":
        size = upright_size(path)
        return Found(size, detectors.trivial_box(str(options.trivial), size))
    source, size, patches = read(path, options.of_patches, image_id)
    try:
        detection = detect(patches, options)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    xmin, ymin, xmax, ymax = detection.box(patches.step, patches.view)
    down, right = size[0] / patches.view[0], size[1] / patches.view[1]
    box = (right * xmin, down * ymin, right * xmax, down * ymax)
    return Found(size, box, detection, (down * patches.step[0], right * patches.step[1]))


@functools.lru_cache(maxsize=1)
def read(path: Path, options: DetectorOptions, image_id: str) -> tuple[Path, tuple[int, int], Patches]:
    """Where an image's patches come from, its (height, width), and they; several taus share them."""
    source = path
    if options.precomputed_eigs_dir:
        source, size = Path(options.precomputed_eigs_dir) / f"{image_id}.pth", upright_size(path)
        patches = read_eigenvector(source, size, options.which_matrix, options.foreground)
    elif options.precomputed_features_dir:
        source, size = Path(options.precomputed_features_dir) / f"{image_id}.pth", upright_size(path)
        patches = read_patches(source, size, options)
    else:
        from objectloc.patch_models import compute_patches, load_model  # slow to import, see there

        image = load_image(path)
        size = (image.height, image.width)
        patches = compute_patches(image, load_model(options))
    return source, size, patches


def detect(patches: Patches, options: DetectorOptions) -> Detection:
    """Run the detector of ``options.mode`` on what was read."""
    if not options.precomputed_eigs_dir:
        remedy = "shrink the image, or take a larger patch size"
        require_memory(math.prod(patches.grid), BYTES_PER_PAIR[options.mode], remedy)
    if options.mode == "lost":
        return detectors.lost(patches.values, patches.grid, options.k_patches, options.gram_bias)
    if options.mode == "tokencut":
        return detectors.tokencut(patches.values, patches.grid, *options.tau)
    if options.mode == "maskcut":
        return detectors.best_object(patches.values, patches.grid, *options.tau)
    if options.mode == "dinoseg":
        return detectors.dino_seg(patches.values, patches.grid, options.dinoseg_head, options.dinoseg_mended)
    found = patches.values if options.precomputed_eigs_dir else _solve(patches, options)
    values = found.cpu().numpy()
    if options.foreground != "eigenvector":
        return detectors.eigenseg_map(values.reshape(patches.grid))
    return detectors.eigenseg(values, patches.grid)


def _solve(patches: Patches, options: DetectorOptions) -> Tensor:
    """The eigenvector, or the soft map (T,), of features."""
    features, grid, count = patches.values, patches.grid, len(patches.values)
    if options.foreground == "robust":
        if not patches.are_colours:
            raise InputError("--foreground robust needs colours: --arch lab_graph, or its features")
        return torch.from_numpy(object_map("robust", grid, colours=features.cpu().numpy()).ravel())
    kind = options.which_matrix
    if kind == "infer":
        kind = "local" if patches.are_colours else "laplacian"
    K = EIGENVECTORS if options.foreground == "eigenvector" else RANKED_EIGENVECTORS
    values, vectors = spectral_eigenvectors(features, min(K, count), which_matrix=kind, grid=grid)
    if options.foreground == "ranking":
        return torch.from_numpy(object_map("ranking", grid, values.cpu().numpy(), vectors.cpu().numpy()).ravel())
    return pick_eigenvector(vectors, kind, "the image")


def made_from(options: DetectorOptions) -> dict[str, Any]:
    """The settings that decide which boxes are found, for stage.json; those that only other modes read are left out."""
    mode = options.mode
    reads = {
        "lost": ("k_patches", "gram_bias", "which_features"),
        "dinoseg": ("dinoseg_head", "dinoseg_mended"),
        "eigenseg": ("which_matrix", "foreground", *(() if options.precomputed_eigs_dir else ("which_features",))),
        **dict.fromkeys(("tokencut", "maskcut"), ("tau", "which_features")),
        "trivial": ("trivial",),
    }
    values = asdict(options) | {"tau": options.tau[0]}
    description = {"mode": mode} | {name: values[name] for name in reads[mode]}
    if options.precomputed_eigs_dir:
        description["eigs"] = provenance(options.precomputed_eigs_dir)
    elif options.precomputed_features_dir:
        description["features"] = provenance(options.precomputed_features_dir)
    elif options.needs_model:
        from objectloc.patch_models import load_model

        model = load_model(options.of_patches)
        description |= {"model": model.backbone.name, "weights": model.backbone.weights, "patch_size": model.patch_size}
        if "resnet" in options.arch:
            description["resnet_dilate"] = options.resnet_dilate
    return description
