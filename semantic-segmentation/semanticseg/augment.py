"""Augmentation of self-training, the same for image and label map where it moves pixels.

In this order: shorter side to ``resize_size`` (bicubic; labels by nearest neighbour), random crop, random resized crop
to the same size, horizontal flip; then on the image alone colour jitter, grey, Gaussian blur.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2


class Augmentation(nn.Module):
    """Random views of an image and its label map.

    Parameters
    ----------
    resize_size, crop_size
        In pixels; ``crop_size`` is at most ``resize_size``.
    """

    def __init__(self, resize_size: int = 256, crop_size: int = 224) -> None:
        super().__init__()
        self.transforms = v2.Compose(
            [
                v2.Resize(resize_size, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomCrop(crop_size),
                v2.RandomResizedCrop(crop_size, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=0.1),
            ]
        )

    def forward(self, image: Image.Image, labels: NDArray[np.uint8], seed: int) -> tuple[Tensor, Tensor]:
        """The view that ``seed`` chooses.

        RGB image and (H, W) label map -> (3, crop_size, crop_size) uint8 and (crop_size, crop_size) uint8. torch's
        global random state is left as it is.
        """
        pixels = tv_tensors.Image(np.array(image).transpose(2, 0, 1))
        mask = tv_tensors.Mask(labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            view, labels_of_view = self.transforms(pixels, mask)
        return view.as_subclass(Tensor), labels_of_view.as_subclass(Tensor)


def seed_of(*numbers: int) -> int:
    """One seed from several whole numbers (the run's, the epoch's, the image's), so that views do not repeat."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
