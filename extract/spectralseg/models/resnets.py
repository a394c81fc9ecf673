"""ResNet-50 with DINO's weights, as a stack of stages."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from spectralseg.errors import InputError
from spectralseg.models import weights as checkpoints
from spectralseg.models.backbones import DINO_ADDRESS, RANDOM_SEED

DINO_RESNET50 = f"{DINO_ADDRESS}dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
STRIDES = {8: (False, True, True), 16: (False, False, True), 32: (False, False, False)}


def load_resnet50(weights: str | None = None, output_stride: int = 8) -> tuple[nn.Sequential, str]:
    """ResNet-50 (He et al., CVPR 2016) without pooling and classifier.

    Parameters
    ----------
    weights
        Path or address of a checkpoint with torchvision's names, or ``random`` (fixed seed); None: DINO's published
        file, downloaded once.
    output_stride
        Pixels per cell of the last stage: 8, 16 or 32. The last stages are dilated instead of strided.

    Returns
    -------
    nn.Sequential
        conv1, bn1, relu, maxpool, layer1, ..., layer4. (B, 3, H, W) -> (B, 2048, ceil(H / stride), ceil(W / stride)).
    str
        Where the weights came from, in words that are the same on every machine.

    Raises
    ------
    InputError
        Weights that are absent, unreachable or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        whole = models.resnet50(replace_stride_with_dilation=list(STRIDES[output_stride]))
    stages = [(name, stage) for name, stage in whole.named_children() if name not in ("avgpool", "fc")]
    model = nn.Sequential(OrderedDict(stages))
    if weights == "random":
        return model, f"random (seed {RANDOM_SEED})"
    path = _local(weights)
    tensors = {name: value for name, value in checkpoints.read_checkpoint(path).items() if not name.startswith("fc.")}
    # Checkpoints from before torch 0.4.1 lack this counter.
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    checkpoints.load_into(model, counters | tensors, path)
    return model, checkpoints.fingerprint(path)


def _local(weights: str | None) -> Path:
    if weights is not None and "://" not in weights:
        return Path(weights)
    try:
        return checkpoints.download(weights or DINO_RESNET50)
    except ConnectionError as error:
        raise InputError(
            f"the weights of dino_resnet50 cannot be had ({error}); download them elsewhere and pass their path"
        ) from error
