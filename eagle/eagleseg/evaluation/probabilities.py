"""From images to the probabilities of both probes, at full resolution and without holding codes at full resolution.

Source: Kim et al., EAGLE, CVPR 2024, and Hamilton et al., STEGO, ICLR 2022 (evaluation: flip averaging, both probes).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from eagleseg.model.heads import EagleModel

CLUSTER_ALPHA = 4.0  # sharpness of the cluster probe's probabilities before the CRF
CHANNELS_AT_ONCE = 32


@torch.no_grad()
def image_code(features_of: Callable[[Tensor], Tensor], model: EagleModel, images: Tensor, flip: bool = True) -> Tensor:
    """Code of each image; with ``flip`` the mean of those of the image and of its mirror image.

    Parameters
    ----------
    features_of
        (B, 3, H, W) images -> (B, C, h, w) features: a :class:`eagleseg.model.features.Featurizer`.
    model
        In evaluation mode.
    images
        (B, 3, H, W), as ``features_of`` takes them.
    flip
        Whether the mirror image counts too.

    Returns
    -------
    Tensor
        (B, dim, h, w) float32.
    """
    if not flip:
        return model.head(features_of(images))[1].float()
    features = features_of(torch.cat([images, images.flip(-1)]))
    code, mirrored = model.head(features)[1].float().chunk(2)
    return (code + mirrored.flip(-1)) / 2


def linear_logits(model: EagleModel, code: Tensor, size: tuple[int, int]) -> Tensor:
    """Linear probe on the code enlarged to ``size``: (B, dim, h, w) -> (B, n_classes, H, W).

    A linear map and bilinear interpolation commute, so that the small logits are enlarged, not the 512 channels.
    """
    return _enlarge(model.linear_probe(code), size)


def cluster_scores(model: EagleModel, code: Tensor, size: tuple[int, int]) -> Tensor:
    """Inner products of the enlarged code with the unit centroids: (B, dim, h, w) -> (B, clusters, H, W).

    Their largest says the cluster: the norm of the code, which is missing for cosines, is the same for all clusters.
    """
    centroids = functional.normalize(model.cluster_probe.clusters, dim=1)
    return _enlarge(torch.einsum("bdhw,nd->bnhw", code, centroids), size)


def cluster_log_probabilities(
    model: EagleModel, code: Tensor, size: tuple[int, int], alpha: float = CLUSTER_ALPHA
) -> Tensor:
    """log softmax(alpha * cosine) of the code enlarged to ``size``: (B, dim, h, w) -> (B, clusters, H, W)."""
    norm = _enlarged_norm(code, size).clamp_min(1e-12)
    return functional.log_softmax(alpha * cluster_scores(model, code, size) / norm, dim=1)


def _enlarged_norm(code: Tensor, size: tuple[int, int]) -> Tensor:
    """Norm of the enlarged code, (B, 1, H, W), a few channels at a time: all 512 at 320 x 320 would be 0.2 GB."""
    squares = code.new_zeros(())
    for part in code.split(CHANNELS_AT_ONCE, dim=1):
        squares = squares + _enlarge(part, size).square().sum(dim=1, keepdim=True)
    return squares.sqrt()


def _enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
