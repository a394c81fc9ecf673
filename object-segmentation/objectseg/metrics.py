"""How well a mask fits the truth: accuracy, IoU, F-beta, and F-beta of soft maps over all thresholds.

Masks are (H, W) booleans, soft maps (H, W) probabilities of the foreground in [0, 1]. Where neither mask has any
foreground, accuracy and F-beta are 1 and IoU is 0, as in the published evaluation: it sets the precision of an empty
prediction and the recall of an empty truth to 1, but an IoU of 0 / 0 to 0. Where only one of the two is empty, IoU and
F-beta are 0.

Shapes that differ are an :class:`InputError`.

Sources: Achanta et al., "Frequency-tuned Salient Region Detection", CVPR 2009 (F-beta with beta^2 = 0.3); Voynov,
Morozov and Babenko, "Object Segmentation Without Labels with Large-Scale Generative Models", ICML 2021 (maximum over
thresholds).
"""

import numpy as np
from numpy.typing import NDArray

from spectralseg.errors import InputError

Mask = NDArray[np.bool_]

BETA_SQUARED = 0.3
THRESHOLDS = np.arange(1, 255) / 255  # a pixel is foreground where its probability is above


def accuracy(prediction: Mask, truth: Mask) -> float:
    """Share of pixels (H, W) that agree."""
    _check(prediction, truth)
    return float((prediction == truth).mean())


def iou(prediction: Mask, truth: Mask) -> float:
    """Foreground in both over foreground in either; 0 where neither has any."""
    _check(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return float(np.count_nonzero(prediction & truth) / union) if union else 0.0


def f_beta(prediction: Mask, truth: Mask) -> float:
    """(1 + beta^2) P R / (beta^2 P + R) of precision P and recall R, beta^2 = 0.3; 1 where both masks are empty."""
    _check(prediction, truth)
    both, predicted, true = (np.count_nonzero(mask) for mask in (prediction & truth, prediction, truth))
    return float(_f_beta(np.array(both), np.array(predicted), true))


def f_beta_curve(soft: NDArray, truth: Mask) -> NDArray[np.float64]:
    """F-beta of ``soft > t`` for each t of :data:`THRESHOLDS`: (254,)."""
    _check(soft, truth)
    passed = np.searchsorted(THRESHOLDS, soft.ravel(), side="left")  # number of thresholds below each pixel

    def above(counts: NDArray) -> NDArray:  # pixels that passed 0, 1, ... thresholds -> pixels above each threshold
        return counts[::-1].cumsum()[::-1][1:]

    bins = len(THRESHOLDS) + 1
    predicted = above(np.bincount(passed, minlength=bins))
    both = above(np.bincount(passed[truth.ravel()], minlength=bins))
    return _f_beta(both, predicted, np.count_nonzero(truth))


def _check(prediction: NDArray, truth: Mask) -> None:
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise InputError(f"a prediction of shape {prediction.shape} does not fit a true mask of shape {truth.shape}")


def _f_beta(both: NDArray, predicted: NDArray, true: int | np.integer) -> NDArray[np.float64]:
    """With P = both / predicted and R = both / true, F = (1 + beta^2) both / (beta^2 true + predicted); 0 / 0 is 1."""
    above = both + BETA_SQUARED * both  # summed like the line below, so that perfect is 1 to the last bit
    below = predicted + BETA_SQUARED * true
    return np.divide(above, below, out=np.ones(np.shape(below)), where=below > 0)


class MeanScores:
    """Means over images of one data set, image by image: only sums are kept."""

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[str, float] = {}
        self._curve = np.zeros(len(THRESHOLDS))
        self._has_curve = False

    def add(self, prediction: Mask, truth: Mask, soft: NDArray | None = None) -> dict[str, float]:
        """Count an image and return its scores: accuracy, iou, f_beta; with a soft map its f_max."""
        scores = {"accuracy": accuracy(prediction, truth), "iou": iou(prediction, truth)}
        scores["f_beta"] = f_beta(prediction, truth)
        self.images += 1
        for name, value in scores.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if soft is not None:
            curve = f_beta_curve(soft, truth)
            self._curve += curve
            self._has_curve = True
            scores["f_max"] = float(curve.max())
        return scores

    def means(self) -> dict[str, float]:
        """Mean accuracy, miou, f_beta over images; with soft maps f_max and its threshold.

        ``f_max`` is the maximum over thresholds of the mean over images: one threshold for all images, as published.
        The mean of the images' own maxima would be larger.
        """
        means = {name: total / self.images for name, total in self._sums.items()}
        means = {"miou" if name == "iou" else name: value for name, value in means.items()}
        if self._has_curve:
            best = int(self._curve.argmax())
            means |= {"f_max": float(self._curve[best]) / self.images, "f_max_threshold": float(THRESHOLDS[best])}
        return means
