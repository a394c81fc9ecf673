"""From features, or images, to eigenvectors: one record each, in processes on CPUs or in batches on a GPU."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from scipy.sparse import coo_array
from torch import Tensor

from spectralseg.commands import features
from spectralseg.errors import InputError, check_choice
from spectralseg.files.images import VIEW, find_image, load_image, patch_grid, view_of
from spectralseg.files.records import load_features, patch_features
from spectralseg.files.storage import compact, list_ids, save_record
from spectralseg.mathematics.affinity import COLOR_GRIDS, COLOUR_AFFINITIES, colour_affinity
from spectralseg.mathematics.eigen import (
    AFFINITIES,
    LAPLACIANS,
    LOCAL,
    MATRICES,
    SOLVERS,
    WITHOUT_MATRIX,
    spectral_eigenvectors,
)
from spectralseg.models.tokens import PER_PATCH, TokenExtractor
from spectralseg.running.batches import run_in_batches
from spectralseg.running.devices import device_or_processes, keep_freed_memory, require_memory
from spectralseg.running.stage import Stage, provenance, rank_and_world_size
from spectralseg.settings import Settings, setting

BYTES_PER_PAIR = 16  # of patches: four dense (T, T) matrices in float32 at once, at most
Grid = tuple[int, int]  # rows and columns
GPU_BATCH_CELLS = 64 * 1024**2  # matrix entries of a batch on a GPU: 23 images at T = 1702, 8 at T = 2852


@dataclass(frozen=True)
class EigenSettings(Settings):
    """Everything that decides what an eigenvector record holds; see ``extract_eigs`` in ``extract.py``."""

    which_matrix: str = setting("laplacian", choices=MATRICES)
    which_color_matrix: str = setting("knn", choices=COLOUR_AFFINITIES)
    which_features: str = "k"
    normalize: bool = True
    threshold_at_zero: bool = True
    lapnorm: bool = True
    K: int = setting(20, least=1)
    image_downsample_factor: int | None = setting(None, least=1)
    image_color_lambda: float = setting(0.0, least=0)
    color_grid: str = setting("cropped", choices=COLOR_GRIDS)
    solver: str = setting("auto", choices=SOLVERS)
    local_radius: int = setting(2, least=1)
    local_scale: float = setting(0.1, above=0)
    joint: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.which_matrix in (*AFFINITIES, LOCAL) and (self.image_color_lambda or self.image_downsample_factor):
            raise InputError(f"colour and downsampling are for Laplacians, not for which_matrix={self.which_matrix}")
        if self.which_matrix == LOCAL and not self.lapnorm:
            raise InputError("which_matrix=local is a normalised problem: leave lapnorm as it is")
        if self.joint and (self.image_color_lambda or self.image_downsample_factor or self.which_matrix == LOCAL):
            raise InputError("joint is a graph of patches of all images: without colour, downsampling and local")
        plain = self.which_matrix in LAPLACIANS and self.lapnorm and not self.image_color_lambda
        if self.solver in WITHOUT_MATRIX and not plain:
            raise InputError(f"solver={self.solver} is for laplacian with lapnorm and without colour")


@dataclass(frozen=True)
class Problem:
    """One image's eigenproblem, ready to solve."""

    image_id: str
    features: Tensor  # (T, D)
    grid: tuple[int, int]  # rows and columns of the patches
    new_grid: tuple[int, int]  # ... and of the eigenvectors
    step: int  # pixels per cell of new_grid
    colour: coo_array | None
    about: dict[str, Any]  # what the record says beside eigenvalues and eigenvectors


def extract_eigs(
    images_root: str,
    features_dir: str,
    output_dir: str,
    settings: EigenSettings,
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """The command ``extract_eigs``; see its documentation in ``extract.py``."""
    where = device_or_processes(device, multiprocessing)
    ids = list_ids(features_dir, ".pth")
    if settings.image_color_lambda > 0 and not Path(images_root).is_dir():
        raise InputError(f"no such images_root: {images_root}")
    stage = Stage(
        "extract_eigs", output_dir, ".pth", asdict(settings) | {"features": provenance(features_dir)}, overwrite
    )
    if Path(features_dir).resolve() == stage.folder.resolve():
        raise InputError(
            f"features_dir and output_dir are both {features_dir}; eigenvectors need a folder of their own"
        )
    pending = stage.begin(ids, where)
    prepare = functools.partial(load_problem, Path(images_root), Path(features_dir), settings)
    if settings.joint:
        _solve_jointly(stage, ids, pending, prepare, settings, where)
    elif where.type == "cpu":
        work = functools.partial(_solve_and_save, prepare, settings, stage.folder)
        stage.run(work, pending, multiprocessing)
    else:
        together = functools.partial(_solve_together, settings, stage.folder, where)
        run_in_batches(stage, pending, prepare, lambda item: (item.features.shape, item.new_grid), _at_once, together)
    stage.finish()


def extract_eigs_of_images(
    images_list: str,
    images_root: str,
    output_dir: str,
    feature_settings: features.FeatureSettings,
    settings: EigenSettings,
    batch_size: int | None = None,
    device: str = "auto",
    num_workers: int | None = None,
    overwrite: bool = False,
    extractor: TokenExtractor | None = None,
) -> None:
    """The command ``extract_eigs`` from images: features are computed on the way, and not written.

    ``extractor``: that of :func:`features.load_extractor`, where it is there already.
    """
    if settings.joint:
        raise InputError("joint is a graph of features that lie in files: extract_features first, then --features_dir")
    check_choice("which_features", settings.which_features, PER_PATCH)

    def work(over: features.Pass, items: list[features.Loaded]) -> Iterator[tuple[str, Callable[[], None]]]:
        views = [{"file": over.files[item.image_id][1]} | over.view for item in items]
        for problem, *found in eigenvectors_of(over.extractor, items, views, settings, over.device):
            yield problem.image_id, functools.partial(_save, over.stage.folder, problem, *found)

    images = (images_list, images_root, feature_settings, batch_size, device, num_workers, extractor)
    features.over_images(
        "extract_eigs",
        output_dir,
        lambda made: asdict(settings) | {"features": made},
        work,
        *images,
        overwrite=overwrite,
        colour=colouring(settings),
    )


def eigenvectors_of(
    extractor: TokenExtractor,
    items: Sequence[features.Loaded],
    views: Sequence[dict[str, Any]],
    settings: EigenSettings,
    device: torch.device,
) -> Iterator[tuple["Problem", Tensor, Tensor]]:
    """Problem, eigenvalues (K,) and eigenvectors (K, T') of images of one kind, on the CPU.

    ``views``: what the records tell of each, its file and how it was looked at.
    """
    found = features.features_of(extractor, items, device)
    patch_size = extractor.backbone.patch_size
    problems = [
        pose(item.image_id, one, item.shape, patch_size, view, settings, item.colour)
        for item, one, view in zip(items, found[settings.which_features], views, strict=True)
    ]
    at_once = _at_once(problems[0])
    for start in range(0, len(problems), at_once):
        part = problems[start : start + at_once]
        values, vectors = (result.cpu() for result in solve(part, settings, device))
        yield from zip(part, values, vectors, strict=True)


def load_problem(images_root: Path, features_dir: Path, settings: EigenSettings, image_id: str) -> Problem:
    """Read an image's features, and its colours if asked for.

    Raises
    ------
    InputError
        A damaged or incomplete record, an image that is absent or of another size, a matrix beyond the memory.
    """
    path = features_dir / f"{image_id}.pth"
    record = load_features(path)
    found = patch_features(record, settings.which_features, path)
    _, _, height, width = record["shape"]
    grids_of(height, width, record["patch_size"], settings)  # its errors, before colours are computed
    colour = None
    if of_image := colouring(settings):
        image = load_image(find_image(images_root, record.get("file", image_id)), **view_of(record))
        if image.size != (width, height):
            raise InputError(
                f"the image in {images_root} has {image.width}x{image.height} pixels, its features came from "
                f"{width}x{height}"
            )
        colour = of_image(record["patch_size"], image)
    view = {name: record[name] for name in ("file", *VIEW) if name in record}
    return pose(image_id, found[0], (height, width), record["patch_size"], view, settings, colour)


def pose(
    image_id: str,
    found: Tensor,
    shape: tuple[int, int],
    patch_size: int,
    view: dict[str, Any],
    settings: EigenSettings,
    colour: coo_array | None,
) -> Problem:
    """The problem of an image of ``shape`` (H, W) with features ``found`` (T, D).

    ``view``: file, and how it was looked at; ``colour``: affinity of the cells, if it is asked for.
    """
    height, width = shape
    grid, _, new_grid, step = grids_of(height, width, patch_size, settings)
    told = about_image(image_id, shape, new_grid, step, view, settings.which_matrix)
    return Problem(image_id, found, grid, new_grid, step, colour, told)


def about_image(
    image_id: str, shape: tuple[int, int], grid: Grid, step: int, view: dict[str, Any], which_matrix: str
) -> dict[str, Any]:
    """What a record says beside eigenvalues and eigenvectors, of an image of ``shape`` (H, W)."""
    told = {"id": image_id, "shape": (1, 3, *shape), "grid": grid, "step": step}
    return told | view | {"which_matrix": which_matrix}


def grids_of(height: int, width: int, patch_size: int, settings: EigenSettings) -> tuple[Grid, Grid, Grid, int]:
    """Rows and columns of patches, pixels that they cover, rows and columns of the eigenvectors, pixels per cell.

    An :class:`InputError` tells of a grid without cells, and of one whose matrix is beyond the memory.
    """
    grid = patch_grid(height, width, patch_size)
    step = settings.image_downsample_factor or patch_size
    covered = (grid[0] * patch_size, grid[1] * patch_size)
    new_grid = (covered[0] // step, covered[1] // step)
    if 0 in new_grid:
        raise InputError(f"image_downsample_factor={step} leaves nothing of {covered[1]}x{covered[0]} pixels")
    remedy = "extract the features with --resize, or with a larger patch size, or take --solver blocked or landmarks"
    if settings.which_matrix != LOCAL and settings.solver not in WITHOUT_MATRIX and not settings.joint:
        require_memory(math.prod(new_grid), BYTES_PER_PAIR, remedy)
    return grid, covered, new_grid, step


def colouring(settings: EigenSettings) -> Callable[[int, Image.Image], coo_array] | None:
    """Patch size and image -> colour affinity of its cells; None where colour is not asked for."""
    return functools.partial(_colours, settings) if settings.image_color_lambda > 0 else None


def _colours(settings: EigenSettings, patch_size: int, image: Image.Image) -> coo_array:
    _, covered, new_grid, _ = grids_of(image.height, image.width, patch_size, settings)
    return colour_affinity(image, covered, new_grid, settings.which_color_matrix, settings.color_grid)


def solve(problems: list[Problem], settings: EigenSettings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Eigenvalues (B, K) and eigenvectors (B, K, T') of problems of one size."""
    first = problems[0]
    return spectral_eigenvectors(
        torch.stack([problem.features for problem in problems]).to(device),
        K=settings.K,
        which_matrix=settings.which_matrix,
        normalize=settings.normalize,
        threshold_at_zero=settings.threshold_at_zero,
        lapnorm=settings.lapnorm,
        colour=None if first.colour is None else [problem.colour for problem in problems],
        colour_lambda=settings.image_color_lambda,
        grid=first.grid,
        resize_to=None if first.new_grid == first.grid else first.new_grid,
        solver=settings.solver,
        local_radius=settings.local_radius,
        local_scale=settings.local_scale,
    )


def record_of(about: dict[str, Any], values: Tensor, vectors: Tensor) -> dict[str, Any]:
    """The eigenvectors record of an image, of its eigenvalues (K,) and eigenvectors (K, T')."""
    return {"eigenvalues": compact(values), "eigenvectors": compact(vectors)} | about


def _save(folder: Path, problem: Problem, values: Tensor, vectors: Tensor) -> None:
    save_record(folder / f"{problem.image_id}.pth", record_of(problem.about, values, vectors))


def _solve_and_save(prepare: functools.partial, settings: EigenSettings, folder: Path, image_id: str) -> None:
    keep_freed_memory()
    problem = prepare(image_id)
    values, vectors = solve([problem], settings, torch.device("cpu"))
    _save(folder, problem, values[0], vectors[0])


def _solve_together(
    settings: EigenSettings, folder: Path, device: torch.device, problems: list[Problem]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Solve problems of one size on a GPU; yield what saves each."""
    values, vectors = (result.cpu() for result in solve(problems, settings, device))
    for problem, image_values, image_vectors in zip(problems, values, vectors, strict=True):
        yield problem.image_id, functools.partial(_save, folder, problem, image_values, image_vectors)


def _solve_jointly(
    stage: Stage,
    ids: list[str],
    pending: list[str],
    prepare: Callable[[str], Problem],
    settings: EigenSettings,
    device: torch.device,
) -> None:
    """One graph of the patches of all images: eigenvectors whose values mean the same in each of them."""
    if rank_and_world_size()[1] > 1:
        raise InputError("joint is one problem, which one process solves: start it without a launcher")
    problems = []
    for image_id in ids if pending else []:
        try:
            problems.append(prepare(image_id))
        except InputError as error:
            stage.failed(image_id, str(error))
    if not problems:
        return
    widths = {problem.features.shape[1] for problem in problems}
    if len(widths) > 1:
        raise InputError(f"features of {' and '.join(map(str, sorted(widths)))} numbers cannot share a graph")
    joined = torch.cat([problem.features for problem in problems])
    if settings.solver not in WITHOUT_MATRIX:
        require_memory(len(joined), BYTES_PER_PAIR, "take --solver blocked or landmarks, or fewer images")
    one = replace(problems[0], features=joined)
    values, vectors = solve([one], settings, device)
    parts = vectors[0].cpu().split([len(problem.features) for problem in problems], dim=1)
    wanted = set(pending)
    with stage.working():
        for problem, part in zip(problems, parts, strict=True):
            if problem.image_id in wanted:
                _save(stage.folder, problem, values[0].cpu(), part)
                stage.done(problem.image_id)


def _at_once(problem: Problem) -> int:
    return max(1, GPU_BATCH_CELLS // math.prod(problem.new_grid) ** 2)
