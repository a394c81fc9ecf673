"""What the networks see of an image: size, crop, the blurred second view, and augmentation; all as functions.

Sources: Hamilton et al., STEGO, ICLR 2022 (size, crop, augmentation); Kim et al., EAGLE, CVPR 2024 (blurred view).
Randomness comes from the generator that is given, never from torch's own.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from eagleseg.data.sources import VOID
from spectralseg.files.images import view

BLUR_PROBABILITY, BLUR_SIGMA, BLUR_KERNEL = 0.5, (0.1, 2.0), 3
FLIP_PROBABILITY, ZOOM = 0.5, (0.8, 1.0)
JITTER, HUE, GREY_PROBABILITY = 0.3, 0.1, 0.2


def to_picture(image: Tensor) -> Image.Image:
    """(3, H, W) RGB in [0, 1] -> picture."""
    pixels = (image * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def cut(
    image: Image.Image, label: NDArray[np.uint8] | None, res: int, crop: str, generator: torch.Generator
) -> tuple[Image.Image, Image.Image | None]:
    """Shorter side to ``res`` pixels (nearest neighbour), then a square of ``res`` pixels, of image and label alike.

    Parameters
    ----------
    image
        RGB.
    label
        (H, W) uint8 of the image's size, or None.
    res
        Pixels per side of the square.
    crop
        ``center`` or ``random``.
    generator
        Of the random place.
    """
    pictures = [image] if label is None else [image, Image.fromarray(label)]
    if crop == "center":
        pictures = [view(picture, res, res) for picture in pictures]
    else:
        pictures = [view(picture, res, None) for picture in pictures]
        width, height = pictures[0].size
        left, top = (int(torch.randint(side - res + 1, (), generator=generator)) for side in (width, height))
        pictures = [picture.crop((left, top, left + res, top + res)) for picture in pictures]
    return pictures[0], None if label is None else pictures[1]


def flip_and_zoom(
    image: Image.Image, label: Image.Image | None, generator: torch.Generator
) -> tuple[Image.Image, Image.Image | None]:
    """Mirror at probability 0.5, and cut out 80 to 100 % of the area at the same size; image and label alike."""
    res = image.width
    side = max(1, round(res * _uniform(*ZOOM, generator) ** 0.5))
    left, top = (int(torch.randint(res - side + 1, (), generator=generator)) for _ in range(2))
    mirrored = _uniform(0, 1, generator) < FLIP_PROBABILITY
    box = (left, top, left + side, top + side)

    def apply(picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
        picture = picture.resize((res, res), resampling, box=box)
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture

    changed = apply(image, Image.Resampling.BILINEAR)
    return changed, None if label is None else apply(label, Image.Resampling.NEAREST)


def jitter(rgb: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation (up to 30 %) and hue (up to 0.1) changed; grey at probability 0.2.

    (3, H, W) in [0, 1] -> the same.
    """
    rgb = transforms.adjust_brightness(rgb, _uniform(1 - JITTER, 1 + JITTER, generator))
    rgb = transforms.adjust_contrast(rgb, _uniform(1 - JITTER, 1 + JITTER, generator))
    rgb = transforms.adjust_saturation(rgb, _uniform(1 - JITTER, 1 + JITTER, generator))
    rgb = transforms.adjust_hue(rgb, _uniform(-HUE, HUE, generator))
    if _uniform(0, 1, generator) < GREY_PROBABILITY:
        rgb = transforms.rgb_to_grayscale(rgb, num_output_channels=3)
    return rgb


def maybe_blurred(rgb: Tensor, generator: torch.Generator) -> Tensor:
    """With probability 0.5 a Gaussian blur of 3 x 3 pixels with sigma from 0.1 to 2: (3, H, W) -> the same."""
    sigma = _uniform(*BLUR_SIGMA, generator)  # drawn always: what follows does not depend on whether it is used
    if _uniform(0, 1, generator) < BLUR_PROBABILITY:
        rgb = transforms.gaussian_blur(rgb, [BLUR_KERNEL, BLUR_KERNEL], [sigma, sigma])
    return rgb


def label_tensor(label: Image.Image) -> Tensor:
    """(H, W) int64 with -1 for void."""
    numbers = torch.from_numpy(np.array(label)).long()
    return numbers.masked_fill_(numbers == VOID, -1)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
