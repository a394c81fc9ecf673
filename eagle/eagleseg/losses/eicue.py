"""EiCue: eigenvectors of a graph of tokens, made of the code's similarity and of colour.

Source: Kim et al., EAGLE, CVPR 2024, section 3.2. As published, colour is taken from the ImageNet-normalised image,
where it says next to nothing (its affinity is 0.96 between black and white): ``released``. ``rgb`` is what the paper
describes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from spectralseg.mathematics.eigen import fix_signs, normalised_cut
from spectralseg.models.backbones import IMAGENET_MEAN, IMAGENET_STD

COLOUR_DEVIATION = 0.1


def normalise(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> ImageNet-normalised."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def colour_affinity(images: Tensor) -> Tensor:
    """C = exp(-d^2 / (2 * 0.1^2)), divided by its maximum, d the distance of two pixels / 255.

    ``images`` (B, 3, h, w) in [0, 255] (or, as published, normalised) -> (B, T, T), T = h * w.
    """
    pixels = _at_least_float32(images.flatten(2).mT) / 255
    affinity = torch.exp(-torch.cdist(pixels, pixels).square() / (2 * COLOUR_DEVIATION**2))
    return affinity / affinity.amax(dim=(1, 2), keepdim=True)


def code_affinity(code: Tensor) -> Tensor:
    """A = relu(z z'), divided by its maximum: (B, d, h, w) -> (B, T, T). An image without any similarity has A = 0."""
    tokens = _at_least_float32(code.flatten(2))
    affinity = functional.relu(tokens.mT @ tokens)
    return affinity / affinity.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def eicue_affinity(code: Tensor, images: Tensor, colour: str) -> Tensor:
    """W = A + C.

    Parameters
    ----------
    code
        (B, d, h, w) output of the head.
    images
        (B, 3, H, W) RGB in [0, 1]; resized to (h, w) by bilinear interpolation.
    colour
        ``released`` (of the ImageNet-normalised image), ``rgb``, or ``none`` for W = A.

    Returns
    -------
    Tensor
        (B, h * w, h * w), float64 for a code of float64, else float32.
    """
    affinity = code_affinity(code)
    if colour == "none":
        return affinity
    shown = _at_least_float32(images)
    if colour == "released":
        shown = normalise(shown)
    small = functional.interpolate(shown, code.shape[-2:], mode="bilinear", align_corners=False)
    return affinity + colour_affinity(small * 255 if colour == "rgb" else small)


@torch.no_grad()
def laplacian_eigenvectors(affinity: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The K smallest eigenvalues and eigenvectors z of L = D^-1/2 (D - W) D^-1/2, by the normalised cut: z = D^1/2 x.

    Parameters
    ----------
    affinity
        (B, T, T) symmetric W, not negative. A token without any weight has degree 1.
    K
        Number of eigenvectors.

    Returns
    -------
    eigenvalues, eigenvectors
        (B, K) ascending, (B, K, T) orthonormal. Signs are by :func:`spectralseg.mathematics.eigen.fix_signs`, whatever
        solver and machine, but that the constant vector is negative: at most half of an image's entries are positive,
        as published. (The published code leaves each vector's sign to LAPACK, and then negates all of an image together
        where more than half of the entries are positive.)
    """
    values, x, degrees = normalised_cut(affinity, K)
    signed = fix_signs((degrees.sqrt().unsqueeze(-1) * x).mT)
    return values, torch.where((signed > 0).all(dim=-1, keepdim=True), -signed, signed)


@torch.no_grad()
def eicue_eigenvectors(code: Tensor, images: Tensor, eigen_cluster: int = 4, colour: str = "released") -> Tensor:
    """The eigenvectors 1 to ``eigen_cluster`` - 1 as maps; parameters as for :func:`eicue_affinity`.

    Returns
    -------
    Tensor
        (B, eigen_cluster - 1, h, w), float64 for a code of float64, else float32; without gradient.
    """
    # In reduced precision the solver never reaches its tolerance: autocast would cost 200 products, and then LAPACK.
    with torch.autocast(code.device.type, enabled=False):
        _, vectors = laplacian_eigenvectors(eicue_affinity(code, images, colour), eigen_cluster)
    return vectors[:, 1:].unflatten(-1, code.shape[-2:])


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
