"""ResNet-50 as a stack of stages, with DINO's weights; loading of convolutional networks in torchvision's layout."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision import models

from spectralseg.errors import InputError
from spectralseg.models import weights as checkpoints
from spectralseg.models.backbones import DINO_ADDRESS, RANDOM_ORIGIN, RANDOM_SEED

DINO_RESNET50 = f"{DINO_ADDRESS}dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
# Output stride -> for each of torchvision's last three stages, whether dilation replaces its stride.
DILATED = {8: (False, True, True), 16: (False, False, True), 32: (False, False, False)}


def load_resnet50(
    weights: str | None = None, output_stride: int = 8, published: str = DINO_RESNET50
) -> tuple[nn.Sequential, str]:
    """ResNet-50 (He et al., CVPR 2016) without pooling and classifier.

    Parameters
    ----------
    weights
        Path or address of a checkpoint with torchvision's names, or ``random`` (fixed seed); None: the published file.
    output_stride
        Pixels per cell of the last stage: 8, 16 or 32. The last stages are dilated instead of strided.
    published
        Address of the published file.

    Returns
    -------
    nn.Sequential
        conv1, bn1, relu, maxpool, layer1, ..., layer4. (B, 3, H, W) -> (B, 2048, ceil(H / stride), ceil(W / stride)).
    str
        Where the weights came from, in words that are the same on every machine.

    Raises
    ------
    InputError
        Another stride; weights that are absent, unreachable or do not fit.
    """
    if output_stride not in DILATED:
        raise InputError(f"output_stride={output_stride}: 8, 16 or 32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        whole = models.resnet50(replace_stride_with_dilation=list(DILATED[output_stride]))
    stages = [(name, stage) for name, stage in whole.named_children() if name not in ("avgpool", "fc")]
    model = nn.Sequential(OrderedDict(stages))
    return model, load_convolutions(model, weights, published)


def load_convolutions(model: nn.Module, weights: str | None, published: str) -> str:
    """Load a network without classifier, whose weights are random so far; returns where they came from.

    Parameters and errors as for :func:`load_resnet50`.
    """
    if weights == "random":
        return RANDOM_ORIGIN
    path = checkpoints.local_file(weights or published)
    # Checkpoints from before torch 0.4.1 lack this counter, which evaluation does not use.
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    checkpoints.load_into(model, counters | checkpoints.read_checkpoint(path), path, leave_out=("fc.", "classifier."))
    return checkpoints.fingerprint(path)
