"""Clusters against classes: confusion matrix, matching, IoU, accuracy.

Everything starts from one matrix of pixel counts (clusters x classes). It is the sum of those of the images, so that an
evaluation holds no pixels of the data set::

    counts = np.zeros((num_clusters, num_classes), dtype=np.int64)
    for labels, truth in images:
        counts += confusion_matrix(labels, truth, num_clusters, num_classes)
    confusion = apply_match(counts, match_clusters(counts))
    print(mean_iou(class_iou(confusion)), pixel_accuracy(confusion))

Sources: Melas-Kyriazi et al., "Deep Spectral Methods", CVPR 2022 (matching on the IoU matrix); Hamilton et al., STEGO,
ICLR 2022, and Kim et al., EAGLE, CVPR 2024 (matching on counts, extra clusters).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from spectralseg.errors import InputError, check_choice

Match = list[tuple[int, int]]  # (cluster, class), clusters ascending


def confusion_matrix(
    labels: ArrayLike | Tensor, truth: ArrayLike | Tensor, num_clusters: int, num_classes: int, void: int | None = 255
) -> NDArray[np.int64]:
    """Count the pixels of each cluster in each class.

    Parameters
    ----------
    labels, truth
        Cluster and class of each pixel, whole numbers of one shape: an image, a batch, any.
    num_clusters, num_classes
        Rows and columns of the result.
    void
        Pixels whose truth has this number do not count, whatever their label; None: all count.

    Returns
    -------
    np.ndarray
        (num_clusters, num_classes) int64.

    Raises
    ------
    InputError
        The shapes differ, or a number beyond ``num_clusters`` or ``num_classes`` stands outside the void.
    """
    found, true = _array(labels), _array(truth)
    if found.shape != true.shape:
        raise InputError(f"labels of shape {found.shape} do not fit a truth of shape {true.shape}")
    if found.dtype == true.dtype == np.uint8:
        counts = _byte_counts(found, true)
        if void is not None and 0 <= void < 256:
            counts[:, void] = 0
        extent = [int(np.flatnonzero(counts.any(axis=axis)).max(initial=0)) for axis in (1, 0)]
        _check_range((0, extent[0]), num_clusters, "cluster")
        _check_range((0, extent[1]), num_classes, "class")
        return _fitted(counts, num_clusters, num_classes)
    if void is not None and (valid := true != void).sum() < true.size:
        found, true = found[valid], true[valid]
    if not found.size:
        return np.zeros((num_clusters, num_classes), dtype=np.int64)
    for numbers, count, name in ((found, num_clusters, "cluster"), (true, num_classes, "class")):
        _check_range((numbers.min(), numbers.max()), count, name)
    pairs = found.ravel().astype(np.int64) * num_classes + true.ravel()
    return np.bincount(pairs, minlength=num_clusters * num_classes).reshape(num_clusters, num_classes)


def _check_range(extent: tuple[int, int], count: int, name: str) -> None:
    wrong = extent[0] if extent[0] < 0 else extent[1]
    if not 0 <= wrong < count:
        raise InputError(f"{name} number {wrong} is not among the {count} expected, 0 to {count - 1}")


def _byte_counts(labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Counts (256, 256) of the pairs of two maps, by runs: neighbours in a label map are mostly equal."""
    pairs = labels.ravel().astype(np.uint16)
    pairs <<= 8
    pairs |= truth.ravel()
    if not pairs.size:
        return np.zeros((256, 256), dtype=np.int64)
    ends = np.append(np.flatnonzero(pairs[1:] != pairs[:-1]), pairs.size - 1)
    lengths = np.diff(ends, prepend=-1)  # as floats below, which are exact to 2**53
    return np.bincount(pairs[ends], weights=lengths, minlength=256 * 256).astype(np.int64).reshape(256, 256)


def _fitted(counts: NDArray[np.int64], rows: int, columns: int) -> NDArray[np.int64]:
    """Counts cut to so many rows and columns, or padded with empty ones."""
    if max(rows, columns) > len(counts):
        counts = np.pad(counts, (0, max(rows, columns) - len(counts)))
    return np.ascontiguousarray(counts[:rows, :columns])


def _array(numbers: ArrayLike | Tensor) -> np.ndarray:
    array = np.asarray(numbers.cpu() if isinstance(numbers, Tensor) else numbers)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"labels and truth must be whole numbers, not {array.dtype}")
    return array


def iou_matrix(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of each cluster with each class, from counts (clusters, classes); 0 where both are empty."""
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    return counts / np.maximum(union, 1)


def hungarian_match(scores: NDArray) -> Match:
    """Pair clusters with classes one to one so that the summed score is the largest (Kuhn 1955).

    ``scores`` (clusters, classes) is the IoU matrix in Deep Spectral Methods, the counts in STEGO and EAGLE. Where
    their numbers differ, what is left over is not in the match.
    """
    return [(int(cluster), int(label)) for cluster, label in zip(*linear_sum_assignment(-scores), strict=True)]


def majority_match(iou: NDArray[np.float64]) -> Match:
    """Give each cluster the class of its largest IoU (clusters, classes); several clusters may share a class."""
    return [(cluster, int(label)) for cluster, label in enumerate(iou.argmax(axis=1))]


def match_clusters(counts: NDArray[np.int64]) -> Match:
    """The match of Deep Spectral Methods, from counts (clusters, classes).

    Hungarian on the IoU matrix where there are as many clusters as classes, majority where not.
    """
    iou = iou_matrix(counts)
    return hungarian_match(iou) if iou.shape[0] == iou.shape[1] else majority_match(iou)


def apply_match(counts: NDArray[np.int64], match: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Rename clusters to their classes: counts (clusters, classes) -> (classes, classes), rows predicted, columns true.

    Raises
    ------
    InputError
        The match names a cluster or class that there is not, a cluster twice, or leaves out one that has pixels.
    """
    num_clusters, num_classes = counts.shape
    named: set[int] = set()
    for cluster, label in match:
        if not (0 <= cluster < num_clusters and 0 <= label < num_classes):
            raise InputError(f"the match ({cluster}, {label}) is beyond {num_clusters} clusters, {num_classes} classes")
        if cluster in named:
            raise InputError(f"the match names cluster {cluster} twice")
        named.add(cluster)
    missing = [str(cluster) for cluster in np.flatnonzero(counts.sum(axis=1)) if cluster not in named]
    if missing:
        raise InputError(f"the match says nothing about the clusters {', '.join(missing)}")
    return _renamed(counts, match, num_classes)


def eagle_confusion(counts: NDArray[np.int64], protocol: str = "strict") -> NDArray[np.int64]:
    """Confusion matrix of the cluster probe by STEGO's and EAGLE's metric.

    Hungarian matching that maximises the counts; the clusters left over go to one more row, whose column is empty: a
    pixel there is wrong, and :func:`class_iou` of that row is 0, or undefined where it has no pixel.

    Parameters
    ----------
    counts
        (classes + extra, classes), all clusters of the probe.
    protocol
        The first ``classes`` clusters are matched. Pixels of the extra ones are dropped (``released``: what the
        published code does, which flatters) or go to the additional row, as wrong (``strict``). Without extra clusters
        both are the same.

    Returns
    -------
    np.ndarray
        (classes + 1, classes + 1): rows predicted, columns true.
    """
    check_choice("protocol", protocol, ("released", "strict"))
    num_classes = counts.shape[1]
    if len(counts) < num_classes:
        raise InputError(f"{len(counts)} clusters cannot be matched one to one with {num_classes} classes")
    match = hungarian_match(counts[:num_classes])
    matched = [cluster for cluster, _ in match]
    pool = [cluster for cluster in range(len(counts)) if cluster not in matched]
    if protocol == "released":
        pool = [cluster for cluster in pool if cluster < num_classes]
    widened = np.pad(counts, ((0, 0), (0, 1)))
    return _renamed(widened, [*match, *((cluster, num_classes) for cluster in pool)], num_classes + 1)


def _renamed(counts: NDArray[np.int64], match: Sequence[tuple[int, int]], rows: int) -> NDArray[np.int64]:
    confusion = np.zeros((rows, counts.shape[1]), dtype=np.int64)
    for cluster, label in match:
        confusion[label] += counts[cluster]
    return confusion


def class_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU of each class, from confusion (classes, classes): (classes,); NaN for classes without a pixel."""
    correct = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    return np.divide(correct, union, out=np.full(len(correct), np.nan), where=union > 0)


def mean_iou(ious: NDArray[np.float64], undefined: float | None = None) -> float:
    """Mean over classes (classes,); those without a pixel are left out (EAGLE) or count ``undefined`` (0 in VOC's mean
    over 21 classes). NaN where nothing is left.
    """
    defined = ious[~np.isnan(ious)] if undefined is None else np.nan_to_num(ious, nan=undefined)
    return float(defined.mean()) if defined.size else float("nan")


def pixel_accuracy(confusion: NDArray[np.int64]) -> float:
    """Share of pixels on the diagonal, from confusion (classes, classes); NaN without pixels."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")
