"""``lab_hog``: patch statistics that need no weights, for trying the pipeline without a network and for tests.

It knows nothing about objects: a learned backbone must beat it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

ORIENTATIONS = 8
STRIP = 2**23  # pixels of an image that are looked at together: about 1 GB of intermediate values
FAINTEST = 1e-2  # a spread below this (L* runs from 0 to 100) is rounding, not content: it is not blown up


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to CIELAB (D65 white), both (B, 3, H, W); L in [0, 100], a and b about [-128, 127].

    IEC 61966-2-1 for the sRGB curve and primaries, CIE 15 for L*a*b*.
    """
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = rgb.new_tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    white = to_xyz.sum(dim=1)
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz / white[:, None], linear)
    epsilon, kappa = 216 / 24389, 24389 / 27
    f = torch.where(xyz > epsilon, xyz.clamp(min=epsilon) ** (1 / 3), (kappa * xyz + 16) / 116)
    x, y, z = f.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


class LabHog(nn.Module):
    """Mean and standard deviation of CIELAB and a histogram of oriented gradients, per patch.

    The 14 numbers of a patch are standardised over the image, so that cosines between patches spread over [-1, 1].

    Parameters
    ----------
    patch_size
        Side of a patch in pixels.
    """

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of the patch size -> (B, T, 14), row-major patches."""
        statistics = self._statistics(images)
        statistics = statistics - statistics.mean(dim=1, keepdim=True)
        scale = statistics.square().mean(dim=1, keepdim=True).sqrt()
        return statistics / scale.clamp(min=FAINTEST)

    def summary(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 14): one vector for a whole image or crop, in place of a ViT's [CLS].

        The mean statistics of its patches, on a scale that is the same for all images.
        """
        scale = images.new_tensor([25] * 3 + [10] * 3 + [3] * ORIENTATIONS)
        mid_grey = images.new_tensor([50] + [0] * (len(scale) - 1))
        return (self._statistics(images).mean(dim=1) - mid_grey) / scale

    def _statistics(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T, 14), by strips of whole patches; each sees a row of pixels of its neighbours too."""
        rows = max(1, STRIP // (images.shape[-1] * self.patch_size)) * self.patch_size
        strips = [
            self._of_strip(images[..., max(0, top - 1) : top + rows + 1, :], top > 0, top + rows < images.shape[-2])
            for top in range(0, images.shape[-2], rows)
        ]
        return torch.cat(strips, dim=2).flatten(2).transpose(1, 2)

    def _of_strip(self, images: Tensor, above: bool, below: bool) -> Tensor:
        size = self.patch_size
        lab = rgb_to_lab(images)
        own = lab[..., int(above) : lab.shape[-2] - below, :]
        mean = functional.avg_pool2d(own, size)
        centred = own - mean.repeat_interleave(size, dim=2).repeat_interleave(size, dim=3)
        deviation = functional.avg_pool2d(centred**2, size).sqrt()
        return torch.cat([mean, deviation, self._histogram(lab[:, :1], above, below)], dim=1)

    def _histogram(self, lightness: Tensor, above: bool = False, below: bool = False) -> Tensor:
        """(B, 1, H, W) -> (B, ORIENTATIONS, rows, columns): gradient magnitude by orientation, unsigned, soft bins.

        The first row is there for its neighbours' sake alone if ``above``, and the last one if ``below``.
        """
        padded = functional.pad(lightness, (1, 1, 1 - above, 1 - below), mode="replicate")
        dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        magnitude = torch.hypot(dx, dy)
        position = torch.atan2(dy, dx).remainder(math.pi) * (ORIENTATIONS / math.pi)
        bins = torch.arange(ORIENTATIONS, device=lightness.device).view(1, -1, 1, 1)
        distance = (position - bins).abs()
        distance = torch.minimum(distance, ORIENTATIONS - distance)  # orientations are a circle
        return functional.avg_pool2d((1 - distance).clamp(min=0) * magnitude, self.patch_size)
