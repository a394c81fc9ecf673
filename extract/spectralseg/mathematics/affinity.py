"""Affinities between patches: by features, by colour, and of neighbours alone.

Source: Melas-Kyriazi et al., "Deep Spectral Methods", CVPR 2022, section 3.2 and its supplement; the colour affinities
follow Chen, Li and Tang, "KNN matting" (CVPR 2012), and Grady, "Random walks" (2006), as the published code sets them;
the local affinity is that of Yang et al., "Saliency detection via graph-based manifold ranking" (CVPR 2013).
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array, csr_array
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from spectralseg.errors import InputError, check_choice

COLOR_GRIDS = ("cropped", "released")
KNN_SETTINGS = ((20, 2.0), (10, 0.1))  # (neighbours, weight of the position beside the colour)
RW_BETA = 900.0  # 1 / 0.033^2, rounded
PANEL = 256  # rows of F F' at a time


def gram(features: Tensor) -> Tensor:
    """F F' of features (..., T, D) -> (..., T, T).

    On a CPU with more than 256 rows, panels at and above the diagonal are computed, and mirrored while they are in the
    cache: about half the multiplications of the full product, which smaller problems and GPUs compute at once.
    """
    count = features.shape[-2]
    if features.device.type != "cpu" or count <= PANEL:
        return features @ features.mT
    product = features.new_empty(*features.shape[:-1], count)
    for start in range(0, count, PANEL):
        stop = min(start + PANEL, count)
        panel = features[..., start:stop, :] @ features[..., start:, :].mT
        product[..., start:stop, start:] = panel
        product[..., stop:, start:stop] = panel[..., stop - start :].mT
    return product


def feature_affinity(features: Tensor, threshold_at_zero: bool = True) -> Tensor:
    """W = F F' of features (..., T, D) -> (..., T, T); negative entries become 0 with ``threshold_at_zero``."""
    affinity = gram(features)
    return affinity.clamp_(min=0) if threshold_at_zero else affinity


def resize_features(features: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Bilinear resizing (align_corners=False) of features (B, T, D) on ``grid`` = (rows, columns) to ``new_grid``.

    Raises
    ------
    InputError
        ``grid`` has not T cells, or ``new_grid`` has none.
    """
    if grid[0] * grid[1] != features.shape[1] or min(new_grid) < 1:
        raise InputError(f"{features.shape[1]} patches on a grid of {grid} cannot be resized to {new_grid}")
    if grid == new_grid:
        return features
    on_grid = features.transpose(1, 2).unflatten(2, grid)
    resized = functional.interpolate(on_grid, size=new_grid, mode="bilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def colour_grid(
    image: Image.Image, covered: tuple[int, int], grid: tuple[int, int], color_grid: str = "cropped"
) -> np.ndarray:
    """Colours of the cells of a grid.

    Parameters
    ----------
    image
        RGB photograph.
    covered
        (H, W) in pixels: the part at the top left that whole patches cover.
    grid
        (rows, columns) to resize to (Pillow's bilinear filter).
    color_grid
        ``cropped``: that part is resized, so that each cell has the colours of its own pixels. ``released``: the whole
        photograph is, as in the published code, for reproduction: towards the right and the bottom, colours then lie up
        to a patch beside their features.

    Returns
    -------
    np.ndarray
        (rows, columns, 3) float64 in [0, 1].

    Raises
    ------
    InputError
        An unknown ``color_grid``.
    """
    check_choice("color_grid", color_grid, COLOR_GRIDS)
    if color_grid == "cropped":
        image = image.crop((0, 0, covered[1], covered[0]))
    return np.asarray(image.resize((grid[1], grid[0]), Image.Resampling.BILINEAR), dtype=np.float64) / 255


def knn_affinity(colours: np.ndarray, settings: Sequence[tuple[int, float]] = KNN_SETTINGS) -> coo_array:
    """Affinity of nearest neighbours in colour and position.

    Points are (r, g, b, w x, w y) with x, y in [0, 1] over columns and rows. For each (neighbours, w) of ``settings``
    every directed edge from a point to a neighbour adds 1 to W_ij and to W_ji. Each point counts as one of its own
    neighbours, the nearest.

    ``colours`` (rows, columns, 3) in [0, 1] -> sparse (T, T) float64 with repeated entries, to be summed.
    """
    rows, columns = _checked(colours)
    count = rows * columns
    y, x = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    sources, targets = [], []
    for neighbours, weight in settings:
        neighbours = min(neighbours, count)  # an image of few patches: all of them
        points = np.column_stack([colours.reshape(count, 3), weight * x.ravel(), weight * y.ravel()])
        points = points.astype(np.float32)  # as the published code does: it decides ties
        nearest = cKDTree(points).query(points, k=np.arange(1, neighbours + 1))[1]
        sources.append(np.repeat(np.arange(count), neighbours))
        targets.append(nearest.ravel())
    i, j = np.concatenate(sources), np.concatenate(targets)
    return coo_array((np.ones(2 * len(i)), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(count, count))


def rw_affinity(colours: np.ndarray, beta: float = RW_BETA) -> coo_array:
    """Random-walk affinity: each cell with the 3x3 window around it, weight exp(-beta |rgb difference|^2).

    Positions outside the image are clamped to its border, so that edges along the border count more than once (as in
    the published code).

    ``colours`` (rows, columns, 3) in [0, 1] -> sparse (T, T) float64 with repeated entries, to be summed.
    """
    rows, columns = _checked(colours)
    count = rows * columns
    flat = colours.reshape(count, 3)
    y, x = np.divmod(np.arange(count), columns)
    sources, targets = [], []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            neighbour = np.clip(y + dy, 0, rows - 1) * columns + np.clip(x + dx, 0, columns - 1)
            sources.append(np.arange(count))
            targets.append(neighbour)
    i, j = np.concatenate(sources), np.concatenate(targets)
    weights = np.exp(-beta * np.sum((flat[i] - flat[j]) ** 2, axis=1))
    return coo_array((weights, (i, j)), shape=(count, count))


def border_cells(grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns) bool: the cells at the border of a grid."""
    border = np.ones(grid, dtype=bool)
    border[1:-1, 1:-1] = False
    return border


@functools.lru_cache(maxsize=8)
def local_edges(grid: tuple[int, int], radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs i < j of row-major cells at most ``radius`` rows and columns apart, and all pairs of cells of the border.

    The pairs of the border join what lies around an object: it is one background, not four.
    """
    rows, columns = grid
    number = np.arange(rows * columns).reshape(grid)
    border = number[border_cells(grid)]
    first, second = np.triu_indices(len(border), 1)
    i, j = [border[first]], [border[second]]
    for down in range(min(radius, rows - 1) + 1):
        for right in range(-min(radius, columns - 1) if down else 1, min(radius, columns - 1) + 1):
            left, most = max(0, -right), columns - max(0, right)
            i.append(number[: rows - down, left:most].ravel())
            j.append(number[down:, left + right : most + right].ravel())
    pairs = np.unique(np.concatenate(i) * number.size + np.concatenate(j))  # the border's neighbours are in both
    return pairs // number.size, pairs % number.size


def local_affinity(features: np.ndarray, grid: tuple[int, int], radius: int = 2, scale: float = 0.1) -> csr_array:
    """W_ij = exp(-|f_i - f_j| / scale) for the pairs of :func:`local_edges`, 0 elsewhere (Yang et al. 2013, eq. 4).

    ``features`` (T, D), T = rows * columns of ``grid``, whose unit ``scale`` has -> sparse symmetric (T, T) float64.
    """
    i, j, distances = edge_lengths(features, grid, radius)
    return symmetric(i, j, np.exp(-distances / scale), len(features))


def edge_lengths(features: np.ndarray, grid: tuple[int, int], radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs i, j of :func:`local_edges`, and |f_i - f_j| of each, float64."""
    if len(features) != grid[0] * grid[1]:
        raise InputError(f"{len(features)} patches do not fit a grid of {grid[0]}x{grid[1]}")
    i, j = local_edges(grid, radius)
    return i, j, np.linalg.norm(features[i].astype(np.float64) - features[j], axis=1)


def symmetric(i: np.ndarray, j: np.ndarray, weights: np.ndarray, count: int) -> csr_array:
    """Sparse symmetric (count, count) matrix with a weight for each pair i < j."""
    both = (np.concatenate([i, j]), np.concatenate([j, i]))
    return coo_array((np.concatenate([weights, weights]), both), shape=(count, count)).tocsr()


def _checked(colours: np.ndarray) -> tuple[int, int]:
    if colours.ndim != 3 or colours.shape[2] != 3:
        raise InputError(f"colours are (rows, columns, 3), not of shape {colours.shape}")
    return colours.shape[0], colours.shape[1]


COLOUR_AFFINITIES: dict[str, Callable[[np.ndarray], coo_array]] = {"knn": knn_affinity, "rw": rw_affinity}


def colour_affinity(
    image: Image.Image,
    covered: tuple[int, int],
    grid: tuple[int, int],
    which_color_matrix: str = "knn",
    color_grid: str = "cropped",
) -> coo_array:
    """Colour affinity (T, T) of a photograph's cells, T = rows * columns; parameters as for :func:`colour_grid`.

    ``which_color_matrix`` is ``knn`` (:func:`knn_affinity`) or ``rw`` (:func:`rw_affinity`); another is an
    :class:`InputError`.
    """
    check_choice("which_color_matrix", which_color_matrix, COLOUR_AFFINITIES)
    return COLOUR_AFFINITIES[which_color_matrix](colour_grid(image, covered, grid, color_grid))


def add_sparse(dense: Tensor, sparse: coo_array, factor: float) -> None:
    """``dense += factor * sparse`` in place, for a contiguous (T, T) tensor; repeated entries add up."""
    if sparse.shape != dense.shape:
        raise InputError(f"a colour affinity of shape {sparse.shape} does not fit {len(dense)} patches")
    sparse = sparse.tocsr()
    sparse.sum_duplicates()
    sparse = sparse.tocoo()
    row, column = sparse.coords
    index = torch.from_numpy(row.astype(np.int64) * sparse.shape[1] + column).to(dense.device)
    values = torch.from_numpy(factor * sparse.data).to(dense)
    flat = dense.view(-1)
    flat[index] = flat[index] + values
