"""Cuts of the graph of similar patches: the object that stands out (TokenCut), and the next ones (MaskCut).

Sources: Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut", CVPR 2022
(TokenCut); Wang, Girdhar, Yu and Misra, "Cut and Learn for Unsupervised Object Detection and Instance Segmentation",
CVPR 2023, section 3.2 (MaskCut).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from spectralseg.errors import InputError
from spectralseg.mathematics.eigen import normalised_cut
from spectralseg.mathematics.regions import CROSS
from spectralseg.settings import check_range

WEAK = 1e-5  # weight of an edge between patches that are not similar
TIE = 1e-6  # entries of an eigenvector closer to each other than that, relatively, differ by rounding alone


@dataclass(frozen=True)
class Cut:
    """One side of a cut through the graph of patches.

    Attributes
    ----------
    mask
        (rows, columns) bool: a 4-connected part of the foreground, which holds the seed.
    seed
        (row, column) of the patch with the largest entry of the eigenvector.
    vector
        (rows, columns): the eigenvector, positive at the seed.
    value
        Its eigenvalue: how much the two sides are joined, from 0 (not at all).
    """

    mask: np.ndarray
    seed: tuple[int, int]
    vector: np.ndarray
    value: float


def similarity_graph(features: Tensor, tau: float) -> Tensor:
    """W of TokenCut: (..., T, D) -> (..., T, T) float64 with 1 where the cosine exceeds ``tau``, else 1e-5."""
    unit = functional.normalize(features.float(), dim=-1)
    similar = unit @ unit.mT > tau
    return torch.full_like(similar, WEAK, dtype=torch.float64).masked_fill_(similar, 1.0)


def joins_all_alike(W: Tensor) -> Tensor:
    """Which of W (B, T, T) have equal entries beside the diagonal, (B,) bool; also a single patch."""
    if W.shape[-1] == 1:
        return torch.ones(len(W), dtype=torch.bool, device=W.device)
    other = W[:, :1, 1:2] != W
    return other.sum(dim=(1, 2)) == other.diagonal(dim1=1, dim2=2).sum(dim=1)


def component_at(mask: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """4-connected component of a mask (rows, columns) that holds a cell; the cell alone where the mask is not set."""
    components, _ = ndimage.label(mask, CROSS)
    if components[cell] > 0:
        return components == components[cell]
    alone = np.zeros(mask.shape, dtype=bool)
    alone[cell] = True
    return alone


def cut(features: Tensor, grid: tuple[int, int], tau: float, by_corners: bool = False) -> list[Cut | None]:
    """The side of each image's normalised cut that stands out.

    Parameters
    ----------
    features
        (B, T, D) of the patches.
    grid
        (rows, columns), T = rows * columns.
    tau
        Patches with a cosine above it are joined by an edge of weight 1, all others of weight 1e-5.
    by_corners
        A foreground that holds three or more corners of the image is turned around, and with it the sign of the
        eigenvector (MaskCut).

    Returns
    -------
    list of Cut or None
        None where all pairs of patches are joined alike: there is nothing to cut.

    Raises
    ------
    InputError
        Features that do not fit the grid, or are not finite.

    Notes
    -----
    x is the second smallest solution of (D - W) x = l D x. The foreground is the side of its mean that holds the entry
    of largest absolute value; the mask is the part of it that holds this patch (of equal entries the first).
    """
    return _cut_graphs(_graphs(features, grid, tau), grid, by_corners)


def _graphs(features: Tensor, grid: tuple[int, int], tau: float) -> Tensor:
    if features.shape[1] != grid[0] * grid[1]:
        raise InputError(f"{features.shape[1]} patches do not fit a grid of {grid[0]}x{grid[1]}")
    if not torch.isfinite(features).all():
        raise InputError("the features hold NaN or infinite values; extract them again")
    return similarity_graph(features, tau)


def _cut_graphs(W: Tensor, grid: tuple[int, int], by_corners: bool) -> list[Cut | None]:
    divided = torch.nonzero(~joins_all_alike(W)).ravel().tolist()
    found: list[Cut | None] = [None] * len(W)
    if divided:
        values, x, _ = normalised_cut(W if len(divided) == len(W) else W[divided], 2)
        for number, value, vector in zip(divided, values[:, 1].tolist(), x[..., 1].cpu().numpy(), strict=True):
            found[number] = _standing_out(vector.reshape(grid), value, by_corners)
    return found


def _standing_out(vector: np.ndarray, value: float, by_corners: bool) -> Cut:
    foreground = vector > vector.mean()
    if not foreground[_largest(np.abs(vector))]:
        vector, foreground = -vector, ~foreground  # the sign of an eigenvector is arbitrary
    if by_corners and foreground[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
        vector, foreground = -vector, ~foreground
    seed = _largest(vector if by_corners else np.abs(vector))
    return Cut(component_at(foreground, seed), seed, vector, value)


def _largest(values: np.ndarray) -> tuple[int, int]:
    largest = values.max()
    row, column = divmod(int((values >= largest - TIE * abs(largest)).argmax()), values.shape[1])
    return row, column


def maskcut(features: Tensor, grid: tuple[int, int], max_objects: int = 3, tau: float = 0.15) -> list[list[Cut]]:
    """Objects of each image one after the other: the features of what was found are set to zero, and it is cut again.

    Parameters and errors as for :func:`cut`; ``max_objects`` cuts at most, fewer where nothing is left to cut.
    """
    check_range("max_objects", max_objects, least=1)
    W = _graphs(features, grid, tau)
    found: list[list[Cut]] = [[] for _ in features]
    for _ in range(max_objects):
        for own, own_W, objects in zip(_cut_graphs(W, grid, True), W, found, strict=True):
            if own is not None:
                objects.append(own)
                gone = torch.from_numpy(np.flatnonzero(own.mask)).to(W.device)
                own_W[gone] = own_W[:, gone] = 1.0 if tau < 0 else WEAK  # the cosine with zero is 0
    return found
