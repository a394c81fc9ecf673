"""Correspondence loss: codes shall agree where features agree.

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
    """Loss of each pair of points, and the correlations of their codes.

    Parameters
    ----------
    features, codes
        Of two images or views, (B, C, h, w) each; features get no gradient.
    positive
        Whether both show the same image.

    Returns
    -------
    loss, code_correlation
        (B, h, w, i, j) both.
    """
    with torch.no_grad():
        targets = correlation(*features)  # fd
        if settings.pointwise:
            mean = targets.mean()
            targets = targets - targets.mean(dim=(3, 4), keepdim=True)
            targets = targets - targets.mean() + mean
    correlations = correlation(*codes)  # cd
    # Their mean carries gradient into the shift, as published: where codes are alike, a shift without it changes the
    # gradient by more than its own size.
    if positive:
        shift = (targets.mean() - correlations.mean() - settings.shift_bias).abs()
    else:
        shift = (targets.mean() + correlations.mean() - settings.shift_bias) * settings.shift_value
    low = 0.0 if settings.zero_clamp else -torch.inf
    high = LARGEST_CORRELATION if settings.stabalize else torch.inf
    return -correlations.clamp(low, high) * (targets - shift), correlations


def other_images(count: int, device: torch.device) -> Tensor:
    """For each image of a batch another one: a random permutation (count,) whose fixed points move on by one."""
    order = torch.randperm(count, device=device)
    order[order == torch.arange(count, device=device)] += 1
    return order % count


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

    Returns
    -------
    positive, negative
        Scalars; the negative one is a mean over ``neg_samples`` draws of partners.
    """
    count, device = len(image[1]), image[1].device
    own_points, positive_points, other_points = (
        random_points(count, settings.feature_samples, device) for _ in range(3)
    )
    features, codes = (sample(maps, own_points) for maps in image)
    positive_features, positive_codes = (sample(maps, positive_points) for maps in positive)
    other_features, other_codes = (sample(maps, other_points) for maps in other_view)
    agreement, _ = correspondence_loss(
        (other_features, positive_features), (other_codes, positive_codes), positive=True, settings=settings
    )
    negatives = []
    for _ in range(settings.neg_samples):
        partners = other_images(count, device)
        partner_features, partner_codes = (sample(maps[partners], positive_points) for maps in image)
        loss, _ = correspondence_loss(
            (features, partner_features), (codes, partner_codes), positive=False, settings=settings
        )
        negatives.append(loss.mean())
    return agreement.mean(), torch.stack(negatives).mean()
