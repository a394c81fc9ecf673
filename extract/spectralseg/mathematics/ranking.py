"""The object, by how unlike the border of the image it is: soft maps without any learning.

Sources: Yang, Zhang, Lu, Ruan and Yang, "Saliency detection via graph-based manifold ranking", CVPR 2013, for
:func:`border_ranking`; Zhu, Liang, Wei and Sun, "Saliency optimization from robust background detection", CVPR 2014,
for :func:`robust_background`; Otsu, "A threshold selection method from gray-level histograms", 1979.
"""

import numpy as np
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import splu
from scipy.spatial.distance import cdist

from spectralseg.errors import InputError, check_choice
from spectralseg.mathematics.affinity import border_cells, edge_lengths, local_affinity, symmetric

FOREGROUNDS = ("eigenvector", "ranking", "robust")  # the first is a sign, not a map
ALPHA = 0.99  # of the ranking, as published
SIDES = (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])
BLOCK = 2  # cells along a side of what robust background detection calls a region
SAME = 0.1  # deviation of distances between colours that count as equal: 10 in CIELAB, as published
REACH = 0.25  # of contrast, relative to the longer side of the image, as published
CLOSEST = 1e-9  # length of an edge between equal cells: a sparse graph has no edges of length 0
SMOOTH = 0.45  # mean affinity across an outline that is no edge; 0.4 to 0.5 do the same
BINS = 256  # of Otsu's histogram


def object_map(
    foreground: str,
    grid: tuple[int, int],
    eigenvalues: np.ndarray | None = None,
    eigenvectors: np.ndarray | None = None,
    colours: np.ndarray | None = None,
) -> np.ndarray:
    """Soft map of the object, (rows, columns) float64 in [0, 1]: the object is what lies above 1/2.

    ``foreground`` is ``ranking``, :func:`border_ranking` of the eigenvectors parted by Otsu's threshold, or ``robust``,
    :func:`robust_background` of the colours parted by :func:`object_threshold`. An :class:`InputError` tells of an
    unknown name and of what is missing.
    """
    check_choice("foreground", foreground, FOREGROUNDS[1:])
    if foreground == "ranking":
        if eigenvalues is None or eigenvectors is None:
            raise InputError("foreground=ranking needs eigenvalues and eigenvectors")
        found = border_ranking(eigenvalues, eigenvectors, grid)
        return probability(found, otsu_threshold(found))
    if colours is None:
        raise InputError(
            "foreground=robust needs the colours of cells, features of lab_graph; foreground=ranking does not"
        )
    found = robust_background(colours, grid)
    return probability(found, object_threshold(found, colours))


def manifold_ranking(eigenvalues: np.ndarray, eigenvectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """How much each cell belongs to the query: (D - a W)^-1 y on the space of the eigenvectors, a = 0.99.

    f(y) = sum_k x_k (x_k' y) / (1 - a (1 - l_k)), equation 3 of Yang et al. in the solutions of (D - W) x = l D x with
    x'Dx = 1.

    ``eigenvalues`` (K,), ``eigenvectors`` (K, T), ``query`` (T,) -> (T,).
    """
    return ((eigenvectors @ query) / (1 - ALPHA * (1 - eigenvalues))) @ eigenvectors


def border_ranking(eigenvalues: np.ndarray, eigenvectors: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Soft map of the object by two rankings (Yang et al., section 4).

    Each side of the image ranks all cells as background; a cell is an object's by the product over the sides of what is
    left. Cells above the mean of these rank all cells once more, as foreground.

    Parameters
    ----------
    eigenvalues, eigenvectors
        (K,) ascending and (K, T), K at least 3, of a Laplacian of T = rows * columns cells.
    grid
        (rows, columns).

    Returns
    -------
    np.ndarray
        (rows, columns) float64 in [0, 1]; 0 everywhere where nothing differs.

    Raises
    ------
    InputError
        Too few eigenvectors, descending eigenvalues (those of an affinity), another number of cells, or NaN.
    """
    values, vectors = eigenvalues.astype(np.float64), eigenvectors.astype(np.float64)
    if len(values) < 3:
        raise InputError(f"a ranking needs at least 3 eigenvectors, not {len(values)} (--K 20)")
    if vectors.shape[1] != grid[0] * grid[1]:
        raise InputError(f"eigenvectors of {vectors.shape[1]} cells do not fit a grid of {grid[0]}x{grid[1]}")
    if not (np.isfinite(values).all() and np.isfinite(vectors).all()):
        raise InputError("the eigenvectors hold NaN or infinite values; compute them again")
    if values[0] > values[-1]:
        raise InputError("a ranking needs eigenvectors of a Laplacian, and these are an affinity's")
    left = np.ones(grid)
    for side in SIDES:
        query = np.zeros(grid)
        query[side] = 1
        left *= 1 - unit_range(manifold_ranking(values, vectors, query.ravel())).reshape(grid)
    likely = (left > left.mean()).astype(np.float64)
    return unit_range(manifold_ranking(values, vectors, likely.ravel())).reshape(grid)


def robust_background(colours: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Soft map of the object by robust background detection.

    Parameters
    ----------
    colours
        (T, 3) CIELAB / 100 of T = rows * columns cells.
    grid
        (rows, columns).

    Returns
    -------
    np.ndarray
        (rows, columns) float64 in [0, 1]; 0 everywhere where nothing differs.

    Notes
    -----
    Regions are blocks of 2 x 2 cells, where Zhu et al. have superpixels. With geodesic distances g between regions:

        A_pq = exp(-g_pq^2 / (2 * 0.1^2))                                               (3)
        boundary connectivity b_p = sum_(q on the border) A_pq / sqrt(sum_q A_pq)       (4), (5)
        background weight w_p = 1 - exp(-b_p^2 / 2)                                     (8)
        contrast c_p = sum_q |f_p - f_q| exp(-|x_p - x_q|^2 / (2 * 0.25^2)) w_q         (6), (7)

    and the map minimises sum_p w_p s_p^2 + sum_p c_p (s_p - 1)^2 + sum_pq W_pq (s_p - s_q)^2 (9), with c scaled to
    [0, 1] and W the local affinity (:func:`~spectralseg.mathematics.affinity.local_affinity`).
    """
    colours = colours.astype(np.float64)
    rows, columns = (-(-side // BLOCK) for side in grid)
    y, x = np.indices(grid)
    region = (y // BLOCK * columns + x // BLOCK).ravel()
    sizes = np.bincount(region)
    averaging = csr_array((1 / sizes[region], (region, np.arange(len(region)))))
    places = np.column_stack([y.ravel(), x.ravel()]) / max(grid)
    region_colours, region_places = averaging @ colours, averaging @ places
    i, j, distances = edge_lengths(region_colours, (rows, columns), radius=1)
    geodesic = dijkstra(symmetric(i, j, distances + CLOSEST, len(sizes)))
    A = np.exp(-(geodesic**2) / (2 * SAME**2))
    connectivity = A[:, border_cells((rows, columns)).ravel()].sum(axis=1) / np.sqrt(A.sum(axis=1))
    background = 1 - np.exp(-(connectivity**2) / 2)
    nearness = np.exp(-cdist(places, region_places, "sqeuclidean") / (2 * REACH**2))
    contrast = unit_range((cdist(colours, region_colours) * nearness) @ (background * sizes))
    W = local_affinity(colours, grid)
    system = diags_array(2 * W.sum(axis=1) + background[region] + contrast) - 2 * W  # each pair counts in both orders
    return unit_range(splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A").solve(contrast)).reshape(grid)


def unit_range(values: np.ndarray) -> np.ndarray:
    """Values shifted and scaled to [0, 1]; 0 where all are the same."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold in [0, 1] that parts a map in [0, 1] into two classes with the least variance within (256 bins).

    A map of one value has nothing to part: the threshold is 1, above which nothing is.
    """
    counts, edges = np.histogram(values, BINS, (0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    both = (below > 0) & (above > 0)
    if not both.any():
        return 1.0
    between = np.zeros(BINS)
    between[both] = (sums[-1] * below - below[-1] * sums)[both] ** 2 / (below * above)[both]
    return float(edges[1:][np.argmax(between)])


def object_threshold(values: np.ndarray, colours: np.ndarray) -> float:
    """Otsu's threshold of a map (rows, columns) in [0, 1], or Otsu's of what lies above it.

    A ground that grows lighter towards the object, as an evening sky does, is a part of the map between ground and
    object, and Otsu's threshold may lie below it. Its outline is then no edge of ``colours`` (T, 3): cells on both
    sides are alike. Where those of the second threshold differ clearly more, the second parts the object.
    """
    first = otsu_threshold(values)
    above = values[values > first]
    if above.size == 0:
        return first
    second = above.min() + otsu_threshold(unit_range(above)) * np.ptp(above)
    alike = [_likeness_across(values > threshold, colours) for threshold in (first, second)]
    return second if alike[0] > SMOOTH and alike[1] < alike[0] / 2 else first


def _likeness_across(mask: np.ndarray, colours: np.ndarray) -> float:
    """Mean exp(-|c_i - c_j| / 0.1) of adjacent cells of which one is in the mask (rows, columns); 1 where none are."""
    cells = colours.reshape(*mask.shape, -1).astype(np.float64)
    distances = [np.linalg.norm(np.diff(cells, axis=axis), axis=-1)[np.diff(mask, axis=axis)] for axis in (0, 1)]
    across = np.concatenate(distances)
    return float(np.exp(-across / SAME).mean()) if across.size else 1.0


def probability(values: np.ndarray, threshold: float) -> np.ndarray:
    """A map in [0, 1] bent so that the threshold lies at 1/2: linear on both sides of it; 0 for a threshold of 1."""
    if threshold >= 1:
        return np.zeros_like(values)
    return np.interp(values, [0, threshold, 1], [0, 0.5, 1])
