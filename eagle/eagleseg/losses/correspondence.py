"""Correspondence loss: points with similar features get similar codes.

Source: Hamilton et al., STEGO, ICLR 2022, section 3.1, with the shifts of Kim et al., EAGLE, CVPR 2024.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spectralseg.settings import Settings, setting

LARGEST_CORRELATION = 0.8  # of codes: above it nothing is gained


@dataclass
class CorrespondenceSettings(Settings):
    """Parameters of the loss, under their published names; ``configs/eagle`` explains them."""

    feature_samples: int = setting(11, least=1)
    neg_samples: int = setting(5, least=1)
    shift_value: float = 3.5
    shift_bias: float = 0.0
    pointwise: bool = True
    zero_clamp: bool = True
    stabalize: bool = True


def random_points(images: int, samples: int, device: torch.device) -> Tensor:
    """(images, samples, samples, 2) points (x, y), uniform in [-1, 1]."""
    return torch.rand(images, samples, samples, 2, device=device) * 2 - 1


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Values at points, bilinear: maps (B, C, h, w) and points (B, n, m, 2) of (x, y) in [-1, 1] -> (B, C, m, n).

    The corners of the square are the centres of the corner cells. (The axes of the points come out exchanged, as
    published.)
    """
    return functional.grid_sample(maps, points.transpose(1, 2), padding_mode="border", align_corners=True)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of all pairs: (B, C, h, w) and (B, C, i, j) -> (B, h, w, i, j)."""
    first, second = functional.normalize(first, dim=1), functional.normalize(second, dim=1)
    return torch.einsum("bchw,bcij->bhwij", first, second)


def correspondence_loss(
    features: tuple[Tensor, Tensor], codes: tuple[Tensor, Tensor], positive: bool, settings: CorrespondenceSettings
) -> tuple[Tensor, Tensor]:
    """Loss -C (F - b) of each pair of points, and C: codes are drawn together where F, of the features, is above b.

    Parameters
    ----------
    features, codes
        Of two images or views at their points, (B, C, h, w) and (B, C, i, j) each; features get no gradient.
    positive
        Whether both show the same image.
    settings
        How F is centred, C clamped, and b computed.

    Returns
    -------
    loss, code_correlation
        (B, h, w, i, j) both.
    """
    first, second = features
    first_code, second_code = codes
    with torch.no_grad():
        F = correlation(first, second)  # (B, h, w, i, j)
        if settings.pointwise:
            mean = F.mean()
            F = F - F.mean(dim=(3, 4), keepdim=True)  # each point of the first against its own mean
            F = F - F.mean() + mean
    C = correlation(first_code, second_code)  # (B, h, w, i, j)
    # The mean of C carries gradient into b, as published: where codes are alike, a b without it changes the gradient by
    # more than its own size.
    if positive:
        b = (F.mean() - C.mean() - settings.shift_bias).abs()
    else:
        b = (F.mean() + C.mean() - settings.shift_bias) * settings.shift_value
    low = 0.0 if settings.zero_clamp else -torch.inf
    high = LARGEST_CORRELATION if settings.stabalize else torch.inf
    return -C.clamp(low, high) * (F - b), C


def other_images(count: int, device: torch.device) -> Tensor:
    """For each image of a batch another one: a random permutation (count,) whose fixed points move on by one."""
    order = torch.randperm(count, device=device)
    return (order + (order == torch.arange(count, device=device))) % count


def positive_and_negative(
    image: tuple[Tensor, Tensor],
    positive: tuple[Tensor, Tensor],
    other_view: tuple[Tensor, Tensor],
    settings: CorrespondenceSettings,
) -> tuple[Tensor, Tensor]:
    """Mean losses of (other view, positive), and of images against others of the batch, at random points.

    Three sets of points are drawn: for the image, for its positive (and the partners of the negative pairs), and for
    the other view.

    Parameters
    ----------
    image, positive, other_view
        Features (B, C, h, w) and code (B, d, h, w) of the clean view, of the clean view with dropout of its own, and of
        the blurred view.
    settings
        Numbers of points and partners, and the shape of the loss.

    Returns
    -------
    positive, negative
        Scalars; the negative one is a mean over ``neg_samples`` draws of partners.
    """
    features, code = image  # (B, C, h, w), (B, d, h, w)
    count, device, n = len(code), code.device, settings.feature_samples
    own_points, positive_points, other_points = (random_points(count, n, device) for _ in range(3))  # (B, n, n, 2)
    own = sample(features, own_points), sample(code, own_points)  # (B, C, n, n), (B, d, n, n)
    same = sample(positive[0], positive_points), sample(positive[1], positive_points)
    other = sample(other_view[0], other_points), sample(other_view[1], other_points)
    agreement, _ = correspondence_loss((other[0], same[0]), (other[1], same[1]), True, settings)
    negatives = []
    for _ in range(settings.neg_samples):
        partners = other_images(count, device)
        partner = sample(features[partners], positive_points), sample(code[partners], positive_points)
        loss, _ = correspondence_loss((own[0], partner[0]), (own[1], partner[1]), False, settings)
        negatives.append(loss.mean())
    return agreement.mean(), torch.stack(negatives).mean()
