"""Feature maps of convolutional networks, for LOST: DINO's ResNet-50, and torchvision's ResNet-50 and VGG-16."""

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

from spectralseg.errors import InputError, check_choice
from spectralseg.models import weights as checkpoints
from spectralseg.models.backbones import DINO_ADDRESS, IMAGENET_MEAN, IMAGENET_STD, RANDOM_SEED

ADDRESSES = {
    "resnet50": f"{DINO_ADDRESS}dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
    "resnet50_imagenet": models.ResNet50_Weights.IMAGENET1K_V1.url,
    "vgg16_imagenet": models.VGG16_Weights.IMAGENET1K_V1.url,
}
CLASSIFIERS = ("fc.", "classifier.")
# torchvision's ResNet takes for each of its last three stages whether dilation shall replace its stride.
DILATED = {1: (False, False, False), 2: (False, False, True), 4: (False, True, True)}


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

    Raises
    ------
    InputError
        No such network or dilation; weights that are absent, unreachable or do not fit.
    """
    check_choice("network", name, ADDRESSES)
    if dilate not in DILATED:
        raise InputError(f"dilate={dilate}: 1, 2 or 4")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = _vgg16() if name == "vgg16_imagenet" else _resnet50(dilate)
    if weights == "random":
        origin = f"random (seed {RANDOM_SEED})"
    else:
        path = _checkpoint(name, weights)
        _load(model, path)
        origin = checkpoints.fingerprint(path)
    return Convnet(name, model.to(device).eval().requires_grad_(False), origin)


def _vgg16() -> nn.Module:
    """VGG-16's convolutions without the last pooling; named ``features.*`` as in torchvision's checkpoint."""
    return nn.Sequential(OrderedDict(features=make_layers(cfgs["D"])[:-1]))


def _resnet50(dilate: int) -> nn.Module:
    """ResNet-50 up to its last stage; torchvision's names."""
    whole = models.resnet50(replace_stride_with_dilation=list(DILATED[dilate]))
    stages = [(name, layer) for name, layer in whole.named_children() if name not in ("avgpool", "fc")]
    return nn.Sequential(OrderedDict(stages))


def _checkpoint(name: str, weights: str | None) -> Path:
    """A local file: ``weights``, or the published one, which torchvision may have fetched already."""
    if weights is not None and "://" not in weights:
        return Path(weights)
    address = weights or ADDRESSES[name]
    fetched = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(address)
    if weights is None and fetched.is_file():
        return fetched
    try:
        return checkpoints.download(address)
    except ConnectionError as error:
        raise InputError(
            f"the weights of {name} cannot be had ({error}); download them elsewhere and pass --weights PATH"
        ) from error


def _load(model: nn.Module, path: Path) -> None:
    tensors = checkpoints.read_checkpoint(path)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(CLASSIFIERS)}
    # Checkpoints from before torch 0.4.1 lack this counter, which evaluation does not use.
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    checkpoints.load_into(model, counters | tensors, path)
