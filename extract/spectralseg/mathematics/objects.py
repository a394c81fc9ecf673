"""Objects of an image: parts of its grid of patches become masks at pixels, with a score each, or are dropped.

Source: Wang, Girdhar, Yu and Misra, "Cut and Learn for Unsupervised Object Detection and Instance Segmentation", CVPR
2023, section 3.2 (MaskCut); Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007, for
:func:`colour_features`. The score is ours: the paper's method has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from spectralseg.errors import check_choice
from spectralseg.mathematics.crf import CPU, CrfSettings, infer
from spectralseg.mathematics.cuts import maskcut
from spectralseg.mathematics.eigen import spectral_eigenvectors
from spectralseg.mathematics.regions import (
    background_first,
    border_shares,
    eigengap_segments,
    kmeans_segments,
    largest_component,
)
from spectralseg.settings import check_range

METHODS = ("maskcut", "segments")
MASKCUT_CRF = CrfSettings(w1=10, alpha=50, beta=5, w2=7, gamma=3, it=10)
MIN_SEPARATION = 0.2  # what stands out less is no object
AGREEMENT = 0.5  # least IoU of a mask with what the CRF makes of it
OVERLAP = 0.5  # most IoU with an earlier object
FEWEST_PATCHES = 4
SMALLEST = 0.01  # share of the image, of objects after the first
SEGMENTS_K = 6  # eigenvectors
COLOUR_SCALE = 0.1  # 10 of CIELAB
COLOUR_FEATURES = 512


@dataclass(frozen=True)
class Part:
    """An object on the grid of patches: mask (rows, columns) bool, see :func:`score` and :func:`separation`."""

    mask: np.ndarray
    score: float
    separation: float


def colour_features(colours: Tensor) -> Tensor:
    """Colours (..., 3), CIELAB / 100 -> (..., 512) whose cosine is exp(-|a - b|^2 / (2 * 0.1^2)), give or take 0.1.

    Cosines of colours themselves tell little: they are all near 1. Seeded: a rerun gives the same.
    """
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.randn(colours.shape[-1], COLOUR_FEATURES // 2, generator=generator).to(colours) / COLOUR_SCALE
    phases = colours @ frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


def find_parts(
    features: Tensor, grid: tuple[int, int], method: str = "maskcut", max_objects: int = 3, tau: float = 0.15
) -> list[list[Part]]:
    """Objects of each image on the grid.

    Parameters
    ----------
    features
        (B, T, D) of the patches.
    grid
        (rows, columns), T = rows * columns.
    method
        ``maskcut``: one cut after the other (:func:`spectralseg.mathematics.cuts.maskcut`), in this order.
        ``segments``: one eigenproblem; K-means of its eigenvectors into as many segments as the eigengap says, of which
        the largest 8-connected component counts, those that are not the background; best score first.
    max_objects
        At most so many of an image.
    tau
        Least cosine of an edge, for ``maskcut``.

    Raises
    ------
    InputError
        An unknown method, ``max_objects`` below 1, features that do not fit the grid or are not finite.
    """
    check_choice("method", method, METHODS)
    check_range("max_objects", max_objects, least=1)
    if method == "maskcut":
        masks = [[each.mask for each in cuts] for cuts in maskcut(features, grid, max_objects, tau)]
    else:
        masks = _segments(features, grid, max_objects)
    parts = [
        [Part(mask, score(mask), separation(own, mask)) for mask in of_image]
        for own, of_image in zip(features, masks, strict=True)
    ]
    if method == "segments":
        return [sorted(of_image, key=lambda part: -part.score)[:max_objects] for of_image in parts]
    return parts


def _segments(features: Tensor, grid: tuple[int, int], max_objects: int) -> list[list[np.ndarray]]:
    values, vectors = (
        each.cpu().numpy() for each in spectral_eigenvectors(features, min(SEGMENTS_K, features.shape[1]))
    )
    masks = []
    for own_values, own_vectors in zip(values, vectors, strict=True):
        count = max(2, min(eigengap_segments(own_values), max_objects + 1))
        points = np.ascontiguousarray(own_vectors[1:].T)
        segments = background_first(kmeans_segments(points, count).reshape(grid))
        masks.append([largest_component(segments == label) for label in np.unique(segments) if label != 0])
    return masks


def score(mask: np.ndarray) -> float:
    """What orders objects, in [0, 1]: the root of the mask's share of the image times the border's share outside of it.

    It gave the best AP50 of eleven candidates (order of the cuts, eigenvalue of the cut, :func:`separation`, border,
    area and products of them) on images of VOC2007 and of COCO; docs/objects.md has the figures.
    """
    labels, shares = border_shares(mask.astype(np.uint8))
    return float(np.sqrt(mask.mean()) * (1 - shares[labels == 1].sum()))


def separation(features: Tensor, mask: np.ndarray) -> float:
    """How far a part stands out: mean cosine of two of its patches less the mean cosine of one of them and another.

    ``features`` (T, D), ``mask`` (rows, columns) bool -> [-2, 2]; 0 for a mask of all patches, or of fewer than four:
    cuts of noise find a few that are alike by chance.
    """
    inside = torch.from_numpy(mask.ravel()).to(features.device)
    count = int(inside.sum())
    if count < FEWEST_PATCHES or count == len(inside):
        return 0.0
    unit = functional.normalize(features.float(), dim=-1)
    own, other = unit[inside].mean(dim=0), unit[~inside].mean(dim=0)
    of_pairs = (count * own @ own - 1) / (count - 1)  # a patch and itself are no pair
    return float(of_pairs - own @ other)


def sharpen_masks(
    image: np.ndarray, masks: Sequence[np.ndarray], settings: CrfSettings, device: torch.device = CPU
) -> list[np.ndarray]:
    """Masks (H, W) bool of an image (H, W, 3) uint8 after the CRF, holes filled.

    The CRF starts from softmax(1 - m, m) of the 0/1 mask m, as MaskCut does.
    """
    if not masks:
        return []
    given = torch.from_numpy(np.stack(masks)).to(device).flatten(1).float()
    unary = -torch.log_softmax(torch.stack([1 - given, given], dim=1), dim=1)
    pixels = torch.from_numpy(image).to(device).expand(len(masks), *image.shape)
    labels = infer(pixels, unary, settings).argmax(dim=1).cpu().numpy().astype(bool)
    return [ndimage.binary_fill_holes(each) for each in labels.reshape(len(masks), *image.shape[:2])]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 0 of two that are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 0.0


def distinct(masks: Sequence[np.ndarray], sharp: Sequence[np.ndarray]) -> list[int]:
    """Which of the sharpened masks are objects: MaskCut's rules.

    A mask that agrees with its sharpened one by an IoU below 0.5 is dropped, as is one whose IoU with an earlier object
    exceeds 0.5, one that is not the first and covers less than 1 % of the image, and one of which nothing is left.
    """
    kept: list[int] = []
    for number, (mask, result) in enumerate(zip(masks, sharp, strict=True)):
        small = number > 0 and result.mean() < SMALLEST
        known = any(iou(result, sharp[earlier]) > OVERLAP for earlier in kept)
        if result.any() and not small and not known and iou(mask, result) >= AGREEMENT:
            kept.append(number)
    return kept
