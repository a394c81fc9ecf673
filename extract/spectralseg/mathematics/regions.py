"""From eigenvectors to regions of the image: masks, segments, components, boxes.

Source: Melas-Kyriazi et al., "Deep Spectral Methods", CVPR 2022, sections 3.3 and 3.4.
"""

import numpy as np
from scipy import ndimage

from spectralseg.errors import InputError
from spectralseg.mathematics.kmeans import kmeans
from spectralseg.settings import check_range

CROSS = ndimage.generate_binary_structure(2, 1)  # a cell and its four neighbours
SQUARE = ndimage.generate_binary_structure(2, 2)  # ... and its eight
KMEANS_STARTS = 10


def eigengap_segments(eigenvalues: np.ndarray) -> int:
    """Number of segments by the eigengap: index of the largest gap between consecutive eigenvalues, plus one.

    Eigenvalues may run up (Laplacians) or down (affinities). The gap after the first one is left out: it is the largest
    for most images. The published code writes an affinity's eigenvalues upwards, beside eigenvectors from the largest
    down, so that it counts the gaps from the wrong end there.

    Raises
    ------
    InputError
        Fewer than three eigenvalues.
    """
    gaps = np.abs(np.diff(np.asarray(eigenvalues, dtype=np.float64)))
    if len(gaps) < 2:
        raise InputError(f"the eigengap needs at least 3 eigenvalues, not {len(eigenvalues)}")
    return int(np.argmax(gaps[1:])) + 2


def kmeans_segments(points: np.ndarray, num_segments: int, seed: int = 0) -> np.ndarray:
    """K-means on the patches: points (T, d) -> labels (T,) in 0..num_segments-1, seeded, best of 10 starts.

    (The published code sets no seed and no number of starts: scikit-learn's default, 10 before version 1.4, 1 since.)
    With fewer distinct points than segments each distinct point is a segment.
    """
    if points.ndim != 2 or not points.size:
        raise InputError(f"points are (T, d), not of shape {points.shape}")
    check_range("num_segments", num_segments, least=1)
    if not np.isfinite(points).all():
        raise InputError("points hold values that are not finite")
    distinct = len(np.unique(points, axis=0))
    return kmeans(points, min(num_segments, distinct), KMEANS_STARTS, seed)[0]


def border_of(segments: np.ndarray) -> np.ndarray:
    """Labels along the four sides of a segment map (rows, columns), those of the corners twice."""
    return np.concatenate([segments[0], segments[-1], segments[:, 0], segments[:, -1]])


def border_shares(segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a segment map (rows, columns) and the share of the image border that each holds.

    The four sides are counted in full, so that corners count twice.
    """
    border, labels = border_of(segments), np.unique(segments)
    return labels, np.array([np.mean(border == label) for label in labels])


def background_first(segments: np.ndarray) -> np.ndarray:
    """Swap labels so that 0 is the segment that holds the largest share of the image border."""
    labels, shares = border_shares(segments)
    return with_background(segments, labels[np.argmax(shares)])


def with_background(segments: np.ndarray, background: int) -> np.ndarray:
    """Swap the labels ``background`` and 0."""
    return np.where(segments == background, 0, np.where(segments == 0, background, segments)).astype(segments.dtype)


def largest_component(mask: np.ndarray, structure: np.ndarray = SQUARE) -> np.ndarray:
    """Largest connected component of a mask (rows, columns), bool; the first one among equals; empty if none."""
    components, count = ndimage.label(mask, structure)
    if count == 0:
        return np.zeros(mask.shape, dtype=bool)
    return components == 1 + np.argmax(np.bincount(components.ravel())[1:])


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(xmin, ymin, xmax, ymax) of a mask that is not empty, in cells, the maxima exclusive."""
    if not mask.any():
        raise InputError("an empty mask has no box")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def smooth_mask(mask: np.ndarray, num_erode: int, num_dilate: int) -> np.ndarray:
    """Erode ``num_erode`` times, then dilate ``num_dilate`` times, with the 3x3 cross.

    An erosion that would leave nothing is skipped. What lies outside the image erodes nothing.
    """
    check_range("num_erode", num_erode, least=0)
    check_range("num_dilate", num_dilate, least=0)
    for _ in range(num_erode):
        eroded = ndimage.binary_erosion(mask, CROSS, border_value=1)
        mask = eroded if eroded.any() else mask
    return ndimage.binary_dilation(mask, CROSS, iterations=num_dilate) if num_dilate > 0 else mask


def segment_boxes(
    segments: np.ndarray, num_erode: int = 2, num_dilate: int = 3, skip_background: bool = True
) -> tuple[list[int], list[tuple[int, int, int, int]]]:
    """Labels of a segment map and the box of each, in cells; label 0 is left out with ``skip_background``."""
    labels = [int(label) for label in np.unique(segments) if label != 0 or not skip_background]
    return labels, [bounding_box(smooth_mask(segments == label, num_erode, num_dilate)) for label in labels]
