"""Feature maps of convolutional networks, for LOST: DINO's ResNet-50, and torchvision's ResNet-50 and VGG-16."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

from spectralseg.errors import InputError, check_choice
from spectralseg.models.backbones import IMAGENET_MEAN, IMAGENET_STD, RANDOM_SEED
from spectralseg.models.resnets import DINO_RESNET50, load_convolutions, load_resnet50

ADDRESSES = {
    "resnet50": DINO_RESNET50,
    "resnet50_imagenet": models.ResNet50_Weights.IMAGENET1K_V1.url,
    "vgg16_imagenet": models.VGG16_Weights.IMAGENET1K_V1.url,
}
LARGEST_STRIDE = 32  # pixels per cell of a ResNet without dilation


@dataclass(frozen=True)
class Convnet:
    """A frozen network in evaluation mode that ends with its last feature map.

    Attributes
    ----------
    name
        A key of ``ADDRESSES``.
    model
        (B, 3, H, W) -> (B, D, rows, columns).
    weights
        Where the weights came from, in words that are the same on every machine.
    """

    name: str
    model: nn.Module
    weights: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Features and grid of one image.

        (1, 3, H, W) RGB in [0, 1] -> (T, D) features of T = rows * columns cells, standardised over the whole map
        (LayerNorm over cells and channels, as in LOST), and (rows, columns).
        """
        mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        feature_map = self.model((images - mean) / std)[0]
        features = feature_map.flatten(1).T
        return functional.layer_norm(features, features.shape), tuple(feature_map.shape[-2:])


def load_convnet(name: str, weights: str | None = None, dilate: int = 2, device: str | torch.device = "cpu") -> Convnet:
    """Build a network and load its weights.

    Parameters
    ----------
    name
        ``resnet50`` (DINO), ``resnet50_imagenet`` or ``vgg16_imagenet``.
    weights
        Path or address of a checkpoint in torchvision's layout, or ``random`` (fixed seed); None: the published file.
    dilate
        Dilation of ResNet's last stages: 1 (a cell is 32 pixels), 2 (16) or 4 (8).
    device
        Where it goes.

    Raises
    ------
    InputError
        No such network or dilation; weights that are absent, unreachable or do not fit.
    """
    check_choice("network", name, ADDRESSES)
    if dilate not in (1, 2, 4):
        raise InputError(f"dilate={dilate}: 1, 2 or 4")
    if name == "vgg16_imagenet":
        model = _vgg16()
        origin = load_convolutions(model, weights, ADDRESSES[name])
    else:
        model, origin = load_resnet50(weights, LARGEST_STRIDE // dilate, ADDRESSES[name])
    return Convnet(name, model.to(device).eval().requires_grad_(False), origin)


def _vgg16() -> nn.Module:
    """VGG-16's convolutions without the last pooling; named ``features.*`` as in torchvision's checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return nn.Sequential(OrderedDict(features=make_layers(cfgs["D"])[:-1]))
