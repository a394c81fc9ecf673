"""MaskCut without this project's library: the graph, dense LAPACK, one image at a time, as the paper tells it.

Wang, Girdhar, Yu and Misra, "Cut and Learn for Unsupervised Object Detection and Instance Segmentation", CVPR 2023,
section 3.2. `tests/extract/test_objects.py` holds the project's masks against it; `bench_stages.py` times both.
Equal entries of an eigenvector are told apart by rounding alone: of these the first counts, here as there.
"""

import numpy as np
import scipy.linalg
from scipy import ndimage


def maskcut(features: np.ndarray, rows: int, columns: int, objects: int = 3, tau: float = 0.15) -> list[np.ndarray]:
    """Masks (rows, columns) of the objects of features (T, D), before any CRF."""
    features = features.astype(np.float64).copy()
    masks = []
    for _ in range(objects):
        norm = np.linalg.norm(features, axis=1, keepdims=True)
        unit = features / np.where(norm > 0, norm, 1)
        W = np.where(unit @ unit.T > tau, 1.0, 1e-5)
        off_diagonal = W[~np.eye(len(W), dtype=bool)]
        if len(W) == 1 or (off_diagonal == off_diagonal[0]).all():
            break
        D = np.diag(W.sum(axis=1))
        _, vectors = scipy.linalg.eigh(D - W, D, subset_by_index=[1, 1])
        x = vectors[:, 0]
        foreground = x > x.mean()
        if not foreground[largest(np.abs(x))]:
            x, foreground = -x, ~foreground
        corners = foreground.reshape(rows, columns)[[0, 0, -1, -1], [0, -1, 0, -1]]
        if corners.sum() >= 3:
            x, foreground = -x, ~foreground
        labels, _ = ndimage.label(foreground.reshape(rows, columns))
        seed = np.unravel_index(largest(x), (rows, columns))
        mask = labels == labels[seed] if labels[seed] else np.zeros((rows, columns), dtype=bool)
        mask[seed] = True
        masks.append(mask)
        features[mask.ravel()] = 0
    return masks


def largest(values: np.ndarray) -> int:
    """Index of the first of the largest entries."""
    return int((values >= values.max() - 1e-6 * abs(values.max())).argmax())
