"""Scores of the two probes: counts over images, both metric protocols, a table per class.

Source: Kim et al., EAGLE, CVPR 2024 and Hamilton et al., STEGO, ICLR 2022 (Hungarian matching on counts).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spectralseg.mathematics.matching import (
    class_iou,
    confusion_matrix,
    eagle_confusion,
    hungarian_match,
    mean_iou,
    pixel_accuracy,
)

VOID = -1
PROTOCOLS = ("released", "strict")
NAMES = {
    "linear": "linear probe",
    "cluster_released": "cluster probe, released protocol",
    "cluster_strict": "cluster probe, strict protocol",
}


class ProbeCounts:
    """Pixel counts of both probes over a data set: all that an evaluation keeps.

    Attributes
    ----------
    cluster
        (clusters, n_classes) int64, all clusters of the probe, extra ones last.
    linear
        (n_classes, n_classes) int64, rows predicted.
    """

    def __init__(self, n_clusters: int, n_classes: int) -> None:
        self.cluster = np.zeros((n_clusters, n_classes), dtype=np.int64)
        self.linear = np.zeros((n_classes, n_classes), dtype=np.int64)

    def add(self, cluster_labels: Tensor, linear_labels: Tensor, truth: Tensor) -> None:
        """Count label maps of one shape; pixels whose truth is -1 do not count."""
        n_clusters, n_classes = self.cluster.shape
        self.cluster += confusion_matrix(cluster_labels, truth, n_clusters, n_classes, void=VOID)
        self.linear += confusion_matrix(linear_labels, truth, n_classes, n_classes, void=VOID)

    def confusions(self) -> dict[str, NDArray[np.int64]]:
        """Confusion matrices by the keys of ``NAMES``; those of the cluster probe have a row for unmatched clusters."""
        cluster = {f"cluster_{protocol}": eagle_confusion(self.cluster, protocol) for protocol in PROTOCOLS}
        return {"linear": self.linear, **cluster}

    def match(self) -> dict[int, int]:
        """Class of each matched cluster (Hungarian, on the first n_classes clusters, as both protocols do)."""
        return dict(hungarian_match(self.cluster[: self.cluster.shape[1]]))


def scores(counts: ProbeCounts, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Accuracy, mIoU and IoU per class, in percent, by the keys of ``NAMES``; a class without a pixel has IoU None."""
    results = {}
    for name, confusion in counts.confusions().items():
        ious = 100 * class_iou(confusion)
        results[name] = {
            "accuracy": 100 * pixel_accuracy(confusion),
            "miou": mean_iou(ious),
            "iou": {
                label: None if np.isnan(iou) else float(iou)
                for label, iou in zip(class_names, ious[: len(class_names)], strict=True)
            },
        }
    return results


def as_classes(clusters: NDArray, match: dict[int, int]) -> NDArray:
    """Clusters (H, W) renamed to their classes; those without one become -1."""
    return np.select([clusters == number for number in match], list(match.values()), default=VOID)


def as_table(results: dict[str, dict[str, Any]]) -> str:
    """The results of :func:`scores` as text: a line per class, figures in percent."""
    columns = {"linear": "linear", "cluster_released": "cluster", "cluster_strict": "strict"}
    classes = list(next(iter(results.values()))["iou"])
    width = max(len(name) for name in [*classes, "accuracy"])
    lines = [" " * width + "".join(f"{title:>10}" for title in columns.values())]

    def line(name: str, values: Sequence[float | None]) -> str:
        return name.ljust(width) + "".join(f"{'-' if value is None else f'{value:.2f}':>10}" for value in values)

    lines += [line(label, [results[key]["iou"][label] for key in columns]) for label in classes]
    lines += [line(title, [results[key][key2] for key in columns]) for title, key2 in _SUMMARY]
    return "\n".join(lines)


_SUMMARY = (("mIoU", "miou"), ("accuracy", "accuracy"))
