"""From eigenvectors to masks and segments: label maps at the grid of the eigenvectors."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from spectralseg.errors import InputError, check_choice
from spectralseg.files.images import patch_grid
from spectralseg.files.label_maps import MASK_FORMATS, infer_grid, save_labels, save_mask
from spectralseg.files.storage import load_eigs, load_features, paired_ids, require_partner
from spectralseg.mathematics.regions import background_first, eigengap_segments, kmeans_segments
from spectralseg.running.stage import Stage, provenance
from spectralseg.settings import check_range


def extract_single_region_segmentations(
    features_dir: str,
    eigs_dir: str,
    output_dir: str,
    threshold: float = 0.0,
    mask_format: str = "palette",
    multiprocessing: int = 0,
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    check_choice("mask_format", mask_format, MASK_FORMATS)
    arguments = {"threshold": threshold, "mask_format": mask_format, "eigs": provenance(eigs_dir)}
    stage = Stage("extract_single_region_segmentations", output_dir, ".png", arguments, overwrite)
    work = functools.partial(_single_region, Path(features_dir), Path(eigs_dir), stage.folder, threshold, mask_format)
    stage.run(work, stage.begin(paired_ids(features_dir, eigs_dir)), multiprocessing)
    stage.finish()


def extract_multi_region_segmentations(
    features_dir: str,
    eigs_dir: str,
    output_dir: str,
    adaptive: bool = False,
    non_adaptive_num_segments: int = 4,
    infer_bg_index: bool = True,
    kmeans_baseline: bool = False,
    num_eigenvectors: int = 1_000_000,
    multiprocessing: int = 0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    check_range("non_adaptive_num_segments", non_adaptive_num_segments, least=1, most=255)
    check_range("num_eigenvectors", num_eigenvectors, least=1)
    choices: dict[str, Any] = {
        "adaptive": adaptive,
        "non_adaptive_num_segments": non_adaptive_num_segments,
        "infer_bg_index": infer_bg_index,
        "kmeans_baseline": kmeans_baseline,
        "num_eigenvectors": num_eigenvectors,
        "seed": seed,
    }
    arguments = choices | {"eigs": provenance(eigs_dir)}
    stage = Stage("extract_multi_region_segmentations", output_dir, ".png", arguments, overwrite)
    work = functools.partial(_multi_region, Path(features_dir), Path(eigs_dir), stage.folder, **choices)
    stage.run(work, stage.begin(paired_ids(features_dir, eigs_dir)), multiprocessing)
    stage.finish()


def _single_region(
    features_dir: Path, eigs_dir: Path, folder: Path, threshold: float, mask_format: str, image_id: str
) -> None:
    eigs, grid = _load(features_dir, eigs_dir, image_id)
    vectors = eigs["eigenvectors"].numpy()
    if len(vectors) < 2:
        raise InputError(f"{eigs_dir / image_id}.pth holds one eigenvector; the mask needs two (--K 2 or more)")
    save_mask(folder / f"{image_id}.png", (vectors[1] > threshold).reshape(grid), mask_format)


def _multi_region(
    features_dir: Path,
    eigs_dir: Path,
    folder: Path,
    image_id: str,
    *,
    adaptive: bool,
    non_adaptive_num_segments: int,
    infer_bg_index: bool,
    kmeans_baseline: bool,
    num_eigenvectors: int,
    seed: int,
) -> None:
    eigs, grid = _load(features_dir, eigs_dir, image_id)
    count = eigengap_segments(eigs["eigenvalues"].numpy()) if adaptive else non_adaptive_num_segments
    if kmeans_baseline:
        features = load_features(features_dir / f"{image_id}.pth")
        points = features["k"].squeeze(0).float().numpy()
        height, width = features["shape"][2:]
        grid = patch_grid(height, width, features["patch_size"])
    else:
        points = eigs["eigenvectors"][1 : 1 + num_eigenvectors].T.numpy()
        if points.shape[1] == 0:
            raise InputError(f"{eigs_dir / image_id}.pth holds one eigenvector; segments need two (--K 2 or more)")
    with threadpool_limits(limits=1):  # the order in which threads add up would change the last digits
        segments = kmeans_segments(np.ascontiguousarray(points), count, seed).reshape(grid)
    save_labels(folder / f"{image_id}.png", background_first(segments) if infer_bg_index else segments)


def _load(features_dir: Path, eigs_dir: Path, image_id: str) -> tuple[dict, tuple[int, int]]:
    """The eigenvectors of an image and their grid; features are read only where the eigenvectors do not tell it."""
    require_partner(features_dir / f"{image_id}.pth", eigs_dir / f"{image_id}.pth")
    eigs = load_eigs(eigs_dir / f"{image_id}.pth")
    if "grid" in eigs:
        return eigs, eigs["grid"]
    shape = load_features(features_dir / f"{image_id}.pth")["shape"]
    return eigs, infer_grid(shape[2], shape[3], eigs["eigenvectors"].shape[1])[0]
