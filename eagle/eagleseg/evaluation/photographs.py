"""Probabilities of whole photographs of any size: seen reduced, or in overlapping tiles as they are."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eagleseg.checkpoints.trained import Trained
from eagleseg.evaluation.evaluate import Probabilities, log_probabilities_of
from spectralseg.errors import InputError
from spectralseg.files.images import to_tensor


def label_names(trained: Trained) -> dict[str, list[str]]:
    """Names of the labels of each probe. The linear probe has learned something only where there were labels."""
    clusters = [f"cluster {number}" for number in range(len(trained.model.cluster_probe.clusters))]
    if not trained.match:
        return {"cluster": clusters}
    return {"cluster": trained.class_names, "linear": trained.class_names}


def whole(trained: Trained, photograph: Image.Image, res: int, flip: bool, max_side: int) -> Probabilities:
    """Log-probabilities of both probes for a whole photograph, at most ``max_side`` pixels long, on the model's device.

    The network sees it with ``res`` pixels on the shorter side, rounded to whole patches: nothing is cropped.
    """
    patch = trained.features_of.backbone.patch_size
    seen = [max(1, round(side * res / min(photograph.size) / patch)) * patch for side in photograph.size]
    small = photograph.resize(seen, Image.Resampling.NEAREST)  # as in training
    scale = min(1.0, max_side / max(photograph.size))
    width, height = (max(1, round(side * scale)) for side in photograph.size)
    image = np.array(photograph.resize((width, height), Image.Resampling.BILINEAR))
    probes = log_probabilities_of(trained, to_tensor(small)[None], flip, (height, width))
    return Probabilities(image, {name: values[0] for name, values in probes.items()})


def in_tiles(trained: Trained, photograph: Image.Image, tile: int, flip: bool) -> Probabilities:
    """Log-probabilities of both probes for a photograph as it is, from tiles of ``tile`` pixels.

    Tiles overlap by half, at least; where they do, their probabilities are averaged, with weights that fall linearly
    towards the border of a tile.

    Raises
    ------
    InputError
        The photograph, or the tile, is smaller than a patch.
    """
    patch = trained.features_of.backbone.patch_size
    size = (photograph.height, photograph.width)
    rows, columns = (min(tile, side) // patch * patch for side in size)
    if not rows or not columns:
        raise InputError(f"tiles of {tile} in an image of {size[1]}x{size[0]} pixels are smaller than a patch, {patch}")
    image = to_tensor(photograph)
    weight = (_tent(rows)[:, None] * _tent(columns)).to(trained.device)
    total, sums = torch.zeros(size, device=trained.device), dict[str, torch.Tensor]()
    for top in _starts(size[0], rows):
        for left in _starts(size[1], columns):
            part = (..., slice(top, top + rows), slice(left, left + columns))
            total[part] += weight
            for name, values in log_probabilities_of(trained, image[None][part], flip).items():
                sums.setdefault(name, torch.zeros(values.shape[1], *size, device=trained.device))
                sums[name][part] += weight * values[0].exp()
    return Probabilities(np.array(photograph), {name: values.div_(total).log_() for name, values in sums.items()})


def _starts(side: int, tile: int) -> list[int]:
    """First pixels of tiles that cover a side, the last one at its end."""
    return [*range(0, side - tile, max(1, tile // 2)), side - tile]


def _tent(side: int) -> torch.Tensor:
    ramp = torch.arange(1, side + 1, dtype=torch.float32)
    return torch.minimum(ramp, ramp.flip(0))


def enlarged(labels: NDArray, size: tuple[int, int]) -> NDArray[np.int16]:
    """Label map (H, W) with -1 for void, at ``size`` (width, height), by nearest neighbour."""
    picture = Image.fromarray((labels + 1).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(picture).astype(np.int16) - 1
