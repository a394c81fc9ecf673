"""Mean-field inference in a dense conditional random field, in torch operations on a CPU or a GPU.

Source: Kraehenbuehl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NIPS 2011,
with Potts' compatibility and the symmetric normalisation of the kernels that pydensecrf has.
"""

import functools

import torch
from torch import Tensor

from spectralseg.mathematics.lattice import GaussianFilter

MOST_KEPT = 2**20  # pixels of images whose filter over positions is kept for the next images of their size


def mean_field(unary: Tensor, filters: list[tuple[float, GaussianFilter]], iterations: int, copies: Tensor) -> Tensor:
    """Probabilities of the labels (algorithm 1).

    Parameters
    ----------
    unary
        (N, C) float32 energies, C at least 2.
    filters
        Weight and kernel of each pairwise term.
    iterations
        How many.
    copies
        (C,) float32: how many labels of equal energies a column stands for, as of
        :func:`spectralseg.mathematics.crf.infer`.

    Returns
    -------
    Tensor
        (N, C) float32.
    """
    two = unary.shape[1] == 2
    if two:  # log odds of label 1: one column is enough, as the other is 1 minus it
        field, gain = unary[:, :1] - unary[:, 1:], (1 / copies).sum()
    else:
        field, gain = -unary, 1 / copies
    activation = torch.sigmoid if two else softmax
    mean = activation(field)
    if two:
        for weight, gaussian in filters:
            field -= weight / copies[0] * gaussian(torch.ones_like(mean))
    for _ in range(iterations):
        messages = field.clone()
        for weight, gaussian in filters:
            messages += gaussian(mean).mul_(weight * gain)
        mean = activation(messages)
    return torch.cat([1 - mean, mean], dim=1) if two else mean


def softmax(values: Tensor) -> Tensor:
    """Softmax over the columns of (N, C)."""
    if values.shape[1] < 16:  # torch takes up to ten times as long over rows that are shorter than a vector register
        return values.T.softmax(0).T.contiguous()
    return values.softmax(1)


def position_filter(height: int, width: int, deviation: float, device: torch.device, images: int = 1) -> GaussianFilter:
    """Kernel over the positions of images: (row-major) pixels ``deviation`` apart are 1 apart."""
    build = _kept_position_filter if images * height * width <= MOST_KEPT else _kept_position_filter.__wrapped__
    return build(height, width, deviation, device, images)


@functools.lru_cache(maxsize=4)
def _kept_position_filter(
    height: int, width: int, deviation: float, device: torch.device, images: int
) -> GaussianFilter:
    return GaussianFilter(positions(height, width, device).repeat(1, images) / deviation, images)


def bilateral_filter(images: Tensor, spatial: float, colour: float) -> GaussianFilter:
    """Kernel over the positions and colours of images, (B, H, W, 3) uint8."""
    count, height, width, _ = images.shape
    places = positions(height, width, images.device).repeat(1, count)
    return GaussianFilter(torch.cat([places / spatial, images.reshape(-1, 3).T.float() / colour]), count)


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """(2, H * W) float32: column and row of each pixel."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.stack([columns.repeat(height), rows.repeat_interleave(width)]).float()
