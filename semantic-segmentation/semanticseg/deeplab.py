"""DeepLabV3 and DeepLabV3+ on DINO's ResNet-50 and on vision transformers.

Sources: Chen et al., "Rethinking atrous convolution for semantic image segmentation", arXiv 1706.05587 (DeepLabV3), and
"Encoder-decoder with atrous separable convolution", ECCV 2018 (DeepLabV3+); backbones: Caron et al., DINO, ICCV 2021.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import ASPP

from semanticseg.settings import Model
from spectralseg.errors import InputError
from spectralseg.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, load_backbone
from spectralseg.models.resnets import load_resnet50

ASPP_RATES = (12, 24, 36)  # for an output stride of 8
WIDTH, LOW_LEVEL_WIDTH = 256, 48
DROPOUT = 0.1  # DeepLab's; torchvision's ASPP has 0.5
LOW_BLOCK, HIGH_BLOCK = -5, -1


class ResNetFeatures(nn.Module):
    """Outputs of layer1 (256 channels, stride 4) and layer4 (2048 channels, stride 8) of a ResNet-50.

    ``layers`` are the children that freezing counts, in order.
    """

    multiple = 1  # images of any size
    channels = (256, 2048)

    def __init__(self, stages: nn.Sequential) -> None:
        super().__init__()
        self.stages = stages

    @property
    def layers(self) -> list[list[nn.Module]]:
        """One list of modules per layer, from the image on."""
        return [[stage] for stage in self.stages]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), normalised -> (B, 256, H/4, W/4), (B, 2048, H/8, W/8), sides rounded up."""
        features = low = images
        for name, stage in self.stages.named_children():
            features = stage(features)
            if name == "layer1":
                low = features
        return low, features


class ViTFeatures(nn.Module):
    """Outputs of the fifth block from the end and of the last block of a ViT, both after its final norm.

    ``layers`` are the patch embedding, the blocks one by one, and with the last block the norm.
    """

    vit: Any
    multiple: int
    channels: tuple[int, int]

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vit, self.multiple = backbone.model, backbone.patch_size
        if len(self.vit.blocks) < -LOW_BLOCK:
            raise InputError(f"{backbone.name} has {len(self.vit.blocks)} blocks; DeepLab needs at least {-LOW_BLOCK}")
        self.vit.fc_norm = nn.Identity()  # it belongs after pooling, and here is none
        self.channels = (self.vit.embed_dim, self.vit.embed_dim)

    @property
    def layers(self) -> list[list[nn.Module]]:
        """One list of modules per layer, from the image on."""
        *blocks, last = self.vit.blocks
        return [[self.vit.patch_embed], *([block] for block in blocks), [last, self.vit.norm]]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), normalised, whole patches -> twice (B, D, H/P, W/P)."""
        low, high = self.vit.forward_intermediates(
            images, indices=[LOW_BLOCK, HIGH_BLOCK], norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return low, high


class DeepLab(nn.Module):
    """Backbone, atrous spatial pyramid pooling, classifier; with ``plus`` low-level features join before the last.

    Parameters
    ----------
    backbone
        :class:`ResNetFeatures` or :class:`ViTFeatures`.
    num_classes
        Channels of the output.
    plus
        DeepLabV3+ rather than DeepLabV3.
    unfrozen_layers
        The last so many ``layers`` of the backbone train, 0 none, -1 all. Frozen ones stay in evaluation mode: their
        batch norms keep their statistics.
    mean, std
        RGB normalisation of images in [0, 1].
    """

    def __init__(
        self,
        backbone: ResNetFeatures | ViTFeatures,
        num_classes: int,
        plus: bool = True,
        unfrozen_layers: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        low, high = backbone.channels
        self.aspp = ASPP(high, list(ASPP_RATES), WIDTH)
        dropout: Any = self.aspp.project[-1]
        dropout.p = DROPOUT
        self.project = _convolution(low, LOW_LEVEL_WIDTH, 1) if plus else None
        self.classifier = nn.Sequential(
            *_convolution(WIDTH + (LOW_LEVEL_WIDTH if plus else 0), WIDTH, 3), nn.Conv2d(WIDTH, num_classes, 1)
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)
        self._freeze(unfrozen_layers)

    def _freeze(self, unfrozen_layers: int) -> None:
        layers = self.backbone.layers
        count = len(layers) if unfrozen_layers == -1 else min(unfrozen_layers, len(layers))
        self.backbone.requires_grad_(count == len(layers))  # all: position embeddings too, which are in no layer
        self._trained = [module for layer in layers[len(layers) - count :] for module in layer]
        for module in self._trained:
            module.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DeepLab":
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        for module in self._trained:
            module.train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> logits (B, num_classes, H, W) float32.

        Images are padded at right and bottom to whole patches, by their border pixels; logits of the padding are cut
        off.
        """
        height, width = images.shape[-2:]
        multiple = self.backbone.multiple
        padding = (-width % multiple, -height % multiple)
        images = (images - self.mean) / self.std
        images = functional.pad(images, (0, padding[0], 0, padding[1]), mode="replicate")
        low, high = self.backbone(images)
        features = self.aspp(high)
        if self.project is not None:
            low = self.project(low)
            features = torch.cat([low, _resized(features, low.shape[-2:])], dim=1)
        logits = _resized(self.classifier(features).float(), images.shape[-2:])
        return logits[..., :height, :width]


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _resized(features: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


def build_model(
    model: Model,
    num_classes: int,
    seed: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[DeepLab, str]:
    """The model that the settings ask for, its new layers from ``seed``; and where the backbone's weights came from.

    Raises
    ------
    InputError
        No such model or backbone, or weights that are absent, unreachable or do not fit.
    """
    if model.name not in ("deeplabv3plus", "deeplabv3"):
        raise InputError(f"no model.name '{model.name}': deeplabv3plus or deeplabv3")
    if model.backbone == "dino_resnet50":
        stages, origin = load_resnet50(model.weights)
        features: ResNetFeatures | ViTFeatures = ResNetFeatures(stages)
        own = IMAGENET_MEAN, IMAGENET_STD
    else:
        backbone = load_backbone(model.backbone, model.weights)
        if not backbone.is_vit:
            raise InputError(f"model.backbone={model.backbone} has no layers to train: dino_resnet50 or a ViT has")
        features, origin, own = ViTFeatures(backbone), backbone.weights, (backbone.mean, backbone.std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plus = model.name == "deeplabv3plus"
        network = DeepLab(features, num_classes, plus, model.unfrozen_backbone_layers, mean or own[0], std or own[1])
    return network, origin


def parameter_counts(network: nn.Module) -> tuple[int, int]:
    """Parameters in all, and those that train."""
    counts = [(math.prod(value.shape), value.requires_grad) for value in network.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trains in counts if trains)
