"""What detectors read of an image: features, attention or an eigenvector, from the files of the extract stage."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectloc.options import DetectorOptions
from spectralseg.errors import InputError
from spectralseg.files.images import patch_grid
from spectralseg.files.label_maps import infer_grid
from spectralseg.files.records import load_eigs, load_features, patch_features
from spectralseg.files.storage import LAB_GRAPH, field
from spectralseg.mathematics.ranking import object_map

MATRICES = {
    "laplacian": "laplacian",
    "matting": "laplacian",
    "local": "local",
    "affinity": "affinity",
}  # first word of a name -> kind


@dataclass(frozen=True)
class Patches:
    """What a detector reads of an image.

    Attributes
    ----------
    values
        Features (T, D), attention (heads, T), an eigenvector (T,), or a soft map (T,) of the object.
    grid
        (rows, columns), T = rows * columns.
    step
        Height and width of a patch in pixels of the view.
    view
        (height, width) in pixels of what the backbone saw before cropping or padding: the image, or the image resized.
    are_colours
        Whether the features are the colours of ``lab_graph``.
    """

    values: Tensor
    grid: tuple[int, int]
    step: tuple[float, float]
    view: tuple[int, int]
    are_colours: bool = False


def pick_eigenvector(vectors: Tensor, kind: str, where: str) -> Tensor:
    """The eigenvector that tells the object from the rest: number 1 of a Laplacian, number 0 of an affinity."""
    index = 0 if kind == "affinity" else 1
    if len(vectors) <= index:
        raise InputError(f"{where} has {len(vectors)} eigenvector; a {kind} needs at least {index + 1}")
    return vectors[index]


def read_eigenvector(path: Path, size: tuple[int, int], which_matrix: str, foreground: str = "eigenvector") -> Patches:
    """The eigenvector, or for ``ranking`` the soft map, of a file of ours or of the published code.

    ``size`` is (height, width) of the image.
    """
    record = load_eigs(path)
    view = _view(record, size, path)
    kind = matrix_kind(path, record, which_matrix)
    vectors = record["eigenvectors"]
    if "grid" in record:
        grid, step = record["grid"], float(field(record, "step", path))
    else:
        try:
            grid, step = infer_grid(*view, vectors.shape[1])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    if foreground == "ranking":
        soft = object_map("ranking", grid, record["eigenvalues"].numpy(), vectors.numpy())
        return Patches(torch.from_numpy(soft.ravel()), grid, (step, step), view)
    return Patches(pick_eigenvector(vectors, kind, str(path)), grid, (step, step), view)


def matrix_kind(path: Path, record: dict[str, Any], which_matrix: str) -> str:
    """``laplacian``, ``local`` or ``affinity``: as asked for, by the folder's first word, or by the file's own field.

    Raises
    ------
    InputError
        Nothing tells, or the file says otherwise.
    """
    own = MATRICES.get(str(record.get("which_matrix")).split("_")[0])
    kind = which_matrix if which_matrix != "infer" else MATRICES.get(path.resolve().parent.name.split("_")[0], own)
    if kind is None:
        raise InputError(f"neither {path} nor its folder's name tells the kind of its matrix: give --which_matrix")
    if own not in (None, kind):
        raise InputError(f"{path} holds eigenvectors of a {own} matrix, not of a {kind} (--which_matrix)")
    return kind


def read_patches(path: Path, size: tuple[int, int], options: DetectorOptions) -> Patches:
    """Features or attention of a file of extract_features, for an image of (height, width)."""
    record = load_features(path)
    are_colours = record.get("model_name") == LAB_GRAPH
    if are_colours:
        require_eigenseg(options.mode)
    view = _view(record, size, path)
    grid = patch_grid(*view, record["patch_size"])
    name = "attn_cls" if options.mode == "dinoseg" else options.which_features
    values = patch_features(record, name, path).float()
    values = values if name == "attn_cls" else values[0]
    return Patches(values, grid, (record["patch_size"],) * 2, view, are_colours)


def require_eigenseg(mode: str) -> None:
    """Raise an :class:`InputError` for a mode to which colours mean nothing."""
    if mode != "eigenseg":
        raise InputError(f"lab_graph has colours of cells alone, of which {mode} makes nothing: take --eigenseg")


def _view(record: dict[str, Any], size: tuple[int, int], path: Path) -> tuple[int, int]:
    """(height, width) of the image that a file was made from; an error if it cannot be the image at hand."""
    if "shape" not in record:
        return size
    view = tuple(record["shape"][-2:])
    if record.get("center_crop") is not None:
        raise InputError(f"{path} was made with --center_crop, so that it does not see the whole image")
    same_ratio = math.isclose(view[0] * size[1], view[1] * size[0], rel_tol=0.02)
    is_resized = any(record.get(name) is not None for name in ("resize", "max_size"))
    if view != size and not (is_resized and same_ratio):
        raise InputError(
            f"{path} was made from an image of {view[1]}x{view[0]} pixels, and this one has {size[1]}x{size[0]}"
        )
    return view
