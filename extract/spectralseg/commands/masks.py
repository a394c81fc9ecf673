"""From eigenvectors to masks and segments: label maps at the grid of the eigenvectors."""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from spectralseg.errors import InputError
from spectralseg.files.images import patch_grid
from spectralseg.files.label_maps import MASK_FORMATS, SOFT, infer_grid, save_labels, save_mask, save_soft
from spectralseg.files.records import cell_colours, load_eigs, load_features, patch_features
from spectralseg.files.storage import list_ids, paired_ids, require_partner
from spectralseg.mathematics.ranking import FOREGROUNDS, object_map
from spectralseg.mathematics.regions import (
    background_first,
    border_of,
    eigengap_segments,
    kmeans_segments,
    with_background,
)
from spectralseg.running.stage import Stage, check_origin, provenance
from spectralseg.settings import Settings, setting


@dataclass(frozen=True)
class SingleRegionSettings(Settings):
    """What decides a mask; see ``extract_single_region_segmentations`` in ``extract.py``."""

    threshold: float = 0.0
    mask_format: str = setting("palette", choices=(*MASK_FORMATS, SOFT))
    foreground: str = setting("eigenvector", choices=FOREGROUNDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.foreground == "eigenvector" and self.mask_format == SOFT:
            raise InputError("mask_format=soft is for foreground=ranking or robust: an eigenvector is no probability")
        if self.foreground != "eigenvector" and self.threshold != 0:
            raise InputError(f"threshold is for foreground=eigenvector; {self.foreground} finds its own")


@dataclass(frozen=True)
class MultiRegionSettings(Settings):
    """What decides the segments; see ``extract_multi_region_segmentations`` in ``extract.py``."""

    adaptive: bool = False
    non_adaptive_num_segments: int = setting(4, least=1, most=255)
    infer_bg_index: bool = True
    kmeans_baseline: bool = False
    num_eigenvectors: int = setting(1_000_000, least=1)
    seed: int = 0


def extract_single_region_segmentations(
    features_dir: str | None,
    eigs_dir: str,
    output_dir: str,
    settings: SingleRegionSettings,
    multiprocessing: int = 0,
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    check_origin(eigs_dir, features_dir)
    arguments = asdict(settings) | {"eigs": provenance(eigs_dir)}
    stage = Stage("extract_single_region_segmentations", output_dir, ".png", arguments, overwrite)
    folders = _folders(features_dir, eigs_dir)
    work = functools.partial(_single_region, *folders, stage.folder, settings)
    stage.run(work, stage.begin(_ids(*folders)), multiprocessing)
    stage.finish()


def extract_multi_region_segmentations(
    features_dir: str | None,
    eigs_dir: str,
    output_dir: str,
    settings: MultiRegionSettings,
    multiprocessing: int = 0,
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    if settings.kmeans_baseline and features_dir is None:
        raise InputError("kmeans_baseline clusters features: give --features_dir")
    check_origin(eigs_dir, features_dir)
    arguments = asdict(settings) | {"eigs": provenance(eigs_dir)}
    stage = Stage("extract_multi_region_segmentations", output_dir, ".png", arguments, overwrite)
    folders = _folders(features_dir, eigs_dir)
    ids = _ids(*folders)
    pending = stage.begin(ids)
    made_by = arguments["eigs"]
    if isinstance(made_by, dict) and made_by.get("joint") and not settings.kmeans_baseline:
        _joint_regions(stage, ids, set(pending), folders, settings)
    else:
        stage.run(functools.partial(_multi_region, *folders, stage.folder, settings), pending, multiprocessing)
    stage.finish()


def _single_region(
    features_dir: Path | None, eigs_dir: Path, folder: Path, settings: SingleRegionSettings, image_id: str
) -> None:
    eigs, grid = _load(features_dir, eigs_dir, image_id)
    cells = None
    if settings.foreground != "eigenvector" and features_dir is not None:
        cells = cell_colours(load_features(features_dir / f"{image_id}.pth"), grid)
    try:
        found = object_of(eigs, grid, None if cells is None else cells.numpy(), settings)
    except InputError as error:
        raise InputError(f"{eigs_dir / image_id}.pth: {error}") from None
    save_object(folder / f"{image_id}.png", found, settings.mask_format)


def object_of(
    eigs: dict[str, Any], grid: tuple[int, int], colours: np.ndarray | None, settings: SingleRegionSettings
) -> np.ndarray:
    """The main object by an eigenvectors record: (rows, columns) bool, or, with ``mask_format`` soft, its soft map.

    ``colours`` (T, 3) of the cells, where the features are those of ``lab_graph``.
    """
    vectors = eigs["eigenvectors"].numpy()
    if settings.foreground != "eigenvector":
        found = object_map(settings.foreground, grid, eigs["eigenvalues"].numpy(), vectors, colours)
        return found if settings.mask_format == SOFT else found > 0.5
    if len(vectors) < 2:
        raise InputError("it holds one eigenvector; the mask needs two (--K 2 or more)")
    return (vectors[1] > settings.threshold).reshape(grid)


def save_object(path: Path, found: np.ndarray, mask_format: str) -> None:
    """Write what :func:`object_of` gives."""
    if mask_format == SOFT:
        save_soft(path, found)
    else:
        save_mask(path, found, mask_format)


def _multi_region(
    features_dir: Path | None, eigs_dir: Path, folder: Path, settings: MultiRegionSettings, image_id: str
) -> None:
    eigs, grid = _load(features_dir, eigs_dir, image_id)
    keys = None
    if settings.kmeans_baseline and features_dir is not None:
        path = features_dir / f"{image_id}.pth"
        features = load_features(path)
        keys = patch_features(features, "k", path)[0].float().numpy()
        height, width = features["shape"][2:]
        grid = patch_grid(height, width, features["patch_size"])
    try:
        segments = segments_of(eigs, grid, settings, keys)
    except InputError as error:
        raise InputError(f"{eigs_dir / image_id}.pth: {error}") from None
    save_labels(folder / f"{image_id}.png", segments)


def segments_of(
    eigs: dict[str, Any], grid: tuple[int, int], settings: MultiRegionSettings, keys: np.ndarray | None = None
) -> np.ndarray:
    """Segment numbers (rows, columns) by an eigenvectors record, or by ``keys`` (T, D) where they are given."""
    count = settings.non_adaptive_num_segments
    if settings.adaptive:
        count = eigengap_segments(eigs["eigenvalues"].numpy())
    points = eigs["eigenvectors"][1 : 1 + settings.num_eigenvectors].T.numpy() if keys is None else keys
    if points.shape[1] == 0:
        raise InputError("it holds one eigenvector; segments need two (--K 2 or more)")
    with threadpool_limits(limits=1):  # the order in which threads add up would change the last digits
        segments = kmeans_segments(np.ascontiguousarray(points), count, settings.seed).reshape(grid)
    return background_first(segments) if settings.infer_bg_index else segments


def _joint_regions(
    stage: Stage, ids: list[str], pending: set[str], folders: tuple[Path | None, Path], settings: MultiRegionSettings
) -> None:
    """K-means of the patches of all images at once, so that a segment has its number in each of them.

    The background is what holds most of all borders.
    """
    loaded: dict[str, tuple[dict, tuple[int, int]]] = {}
    for image_id in ids if pending else []:
        try:
            loaded[image_id] = _load(*folders, image_id)
        except InputError as error:
            stage.failed(image_id, str(error))
    if not loaded:
        return
    first = next(iter(loaded.values()))[0]
    count = eigengap_segments(first["eigenvalues"].numpy()) if settings.adaptive else settings.non_adaptive_num_segments
    last = 1 + settings.num_eigenvectors
    points = np.concatenate([eigs["eigenvectors"][1:last].T.numpy() for eigs, _ in loaded.values()])
    if not points.size:
        raise InputError(f"{folders[1]} holds one eigenvector of each image; segments need two (--K 2 or more)")
    with threadpool_limits(limits=1):
        labels = kmeans_segments(points, count, settings.seed)
    sizes = np.cumsum([rows * columns for _, (rows, columns) in loaded.values()])[:-1]
    maps = [part.reshape(grid) for part, (_, grid) in zip(np.split(labels, sizes), loaded.values(), strict=True)]
    if settings.infer_bg_index:
        shares = sum(np.bincount(border_of(segments), minlength=count) / len(border_of(segments)) for segments in maps)
        maps = [with_background(segments, int(np.argmax(shares))) for segments in maps]
    with stage.working():
        for image_id, segments in zip(loaded, maps, strict=True):
            if image_id in pending:
                save_labels(stage.folder / f"{image_id}.png", segments)
                stage.done(image_id)


def _folders(features_dir: str | None, eigs_dir: str) -> tuple[Path | None, Path]:
    return None if features_dir is None else Path(features_dir), Path(eigs_dir)


def _ids(features_dir: Path | None, eigs_dir: Path) -> list[str]:
    return list_ids(eigs_dir, ".pth") if features_dir is None else paired_ids(features_dir, eigs_dir)


def _load(features_dir: Path | None, eigs_dir: Path, image_id: str) -> tuple[dict, tuple[int, int]]:
    """The eigenvectors of an image and their grid; features are read only where the eigenvectors do not tell it."""
    path = eigs_dir / f"{image_id}.pth"
    require_partner(*([] if features_dir is None else [features_dir / f"{image_id}.pth"]), path)
    eigs = load_eigs(path)
    if "grid" in eigs:
        return eigs, eigs["grid"]
    if features_dir is None:
        raise InputError(f"{path} does not tell its grid, as those of the published code: give --features_dir")
    shape = load_features(features_dir / f"{image_id}.pth")["shape"]
    return eigs, infer_grid(shape[2], shape[3], eigs["eigenvectors"].shape[1])[0]
