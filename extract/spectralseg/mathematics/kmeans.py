"""K-means with all starts in one computation.

Sources: Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++", 2007, with the best of
2 + log(k) candidates at each step. The random draws and the rules of ending are those of scikit-learn's ``KMeans``, so
that labels are the same as its own, up to patches that lie within rounding between two centres.
"""

import numpy as np
from scipy.sparse import csr_array

MAX_STEPS = 300
TOLERANCE = 1e-4  # of the mean variance: centres that move less have converged
NUMBERS_AT_ONCE = 2**22  # distances held of a group of starts: 32 MB


def kmeans(points: np.ndarray, k: int, starts: int, seed: int) -> tuple[np.ndarray, float]:
    """Labels (T,) int32 in 0..k-1 and inertia (sum of squared distances) of the best of ``starts`` starts.

    points (T, d), of which at least k differ; computed in float32 for float32 points, else in float64. Of starts with
    equal inertia the first is taken.
    """
    X = np.asarray(points, dtype=np.float32 if points.dtype == np.float32 else np.float64)
    X = X - X.mean(axis=0)
    random = np.random.RandomState(seed)
    count, trials = len(X), 2 + int(np.log(k))
    uniform = np.full(count, 1 / count)
    draws = [(random.choice(count, p=uniform), random.uniform(size=(k - 1, trials))) for _ in range(starts)]
    best, least = np.zeros(count, dtype=np.int32), np.inf
    group = max(1, NUMBERS_AT_ONCE // (count * max(k, trials)))
    for first in range(0, starts, group):
        chosen = draws[first : first + group]
        centres = X[_plus_plus(X, np.array([one for one, _ in chosen]), np.stack([rest for _, rest in chosen]))]
        for labels, inertia in zip(*_lloyd(X, centres), strict=True):
            if inertia < least * (1 - 1e-12):
                best, least = labels, float(inertia)
    return best, least


def _plus_plus(X: np.ndarray, first: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Indices (S, k) of centres: the first ones (S,), then by draws (S, k - 1, trials) in [0, 1)."""
    chosen, rows = [first], np.arange(len(first))
    nearest = _distances(X, X[first])  # (S, T): of each point to the nearest centre so far
    for draw in draws.transpose(1, 0, 2):
        sums = np.cumsum(nearest, axis=1, dtype=np.float64)
        found = [np.searchsorted(line, share * line[-1]) for line, share in zip(sums, draw, strict=True)]
        candidates = np.minimum(np.stack(found), len(X) - 1)
        reached = np.minimum(nearest[:, None], _distances(X, X[candidates]))  # (S, trials, T)
        better = reached.sum(axis=2).argmin(axis=1)
        chosen.append(candidates[rows, better])
        nearest = reached[rows, better]
    return np.stack(chosen, axis=1)


def _lloyd(X: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (S, T) and inertias (S,) from centres (S, k, d); starts that have converged stop costing."""
    tolerance = TOLERANCE * X.var(axis=0).mean()
    labels = np.full((len(centres), len(X)), -1, dtype=np.int32)
    centres, active = centres.copy(), np.arange(len(centres))
    for _ in range(MAX_STEPS):
        new = _nearest(X, centres[active])
        means = _means(X, new, centres[active])
        moved = ((means - centres[active]) ** 2).sum(axis=(1, 2))
        stays = (new == labels[active]).all(axis=1)
        labels[active], centres[active] = new, means
        active = active[~stays & (moved > tolerance)]
        if not len(active):
            break
    labels = _nearest(X, centres)
    inertias = [((X - own[label]) ** 2).sum() for own, label in zip(centres, labels, strict=True)]
    return labels, np.array(inertias)


def _nearest(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index (S, T) of the nearest of centres (S, k, d), the first among equals."""
    # |c|^2 - 2 c'x as one product, without the points' own norms, which decide nothing.
    bent = np.concatenate([-2 * centres, (centres**2).sum(axis=2, keepdims=True)], axis=2)
    lifted = np.concatenate([X, np.ones_like(X[:, :1])], axis=1)
    scores = (bent.reshape(-1, bent.shape[2]) @ lifted.T).reshape(*centres.shape[:2], -1)
    labels = np.zeros((len(centres), len(X)), dtype=np.int32)
    least = scores[:, 0].copy()
    for cluster in range(1, centres.shape[1]):  # contiguous passes: several times faster than argmin across them
        np.copyto(labels, cluster, where=scores[:, cluster] < least)
        np.minimum(least, scores[:, cluster], out=least)
    return labels


def _means(X: np.ndarray, labels: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Means (S, k, d) of the points with each label; a cluster without any takes the point farthest from its centre."""
    starts, k, _ = centres.shape
    numbers = labels + k * np.arange(starts, dtype=np.int32)[:, None]  # (S, T): one number per start and cluster
    sizes = np.bincount(numbers.ravel(), minlength=starts * k).reshape(starts, k)
    for start in np.flatnonzero((sizes == 0).any(axis=1)):
        empty = np.flatnonzero(sizes[start] == 0)
        away = ((X - centres[start][labels[start]]) ** 2).sum(axis=1)
        numbers[start, np.argsort(-away, kind="stable")[: len(empty)]] = empty + k * start
        sizes[start] = np.bincount(numbers[start] - k * start, minlength=k)
    ends = np.arange(0, numbers.size + 1, starts)
    member = csr_array((np.ones(numbers.size, X.dtype), numbers.T.ravel(), ends), shape=(len(X), starts * k))
    return (member.T @ X).reshape(centres.shape) / np.maximum(sizes, 1)[:, :, None].astype(X.dtype)


def _distances(X: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances (..., T) of centres (..., d) to the points, taken in float64."""
    points, centres = X.astype(np.float64), centres.astype(np.float64)
    flat = centres.reshape(-1, X.shape[1])
    squares = (flat**2).sum(axis=1)[:, None] - 2 * (flat @ points.T) + (points**2).sum(axis=1)
    return np.maximum(squares, 0).astype(X.dtype).reshape(*centres.shape[:-1], -1)
