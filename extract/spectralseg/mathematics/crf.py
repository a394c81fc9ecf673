"""Dense conditional random field: sharp edges from coarse label maps.

Source: Kraehenbuehl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NIPS 2011,
by torch operations or by pydensecrf, which is compiled. Two parameterisations: Deep Spectral Methods' (from label maps)
and EAGLE's (from probabilities).
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor

from spectralseg.errors import InputError
from spectralseg.mathematics.meanfield import bilateral_filter, mean_field, position_filter
from spectralseg.settings import Settings, setting

BACKENDS = ("auto", "torch", "pydensecrf")
# Bytes that inference needs for a pixel, and for a pixel and class: the most that was measured, with EAGLE's parameters
# on a noisy image of 3 megapixels; on a GPU (2 and 4 classes, batches of 16) with Deep Spectral Methods'.
MEMORY = {"torch": (700, 28), "pydensecrf": (350, 35), "torch on a GPU": (500, 190)}

# Of torch. Two are a third faster on idle cores, but many times slower where other processes take the cores: threads
# wait for each other after every step. Images side by side in processes use the cores as well.
THREADS = 1
CPU = torch.device("cpu")
CERTAINTY = 0.99  # probability of the given label in the unary term; the others have 0.01
MOST_CERTAIN = 0.98  # ... and at most, of a soft map


Kind = TypeVar("Kind", bound="CrfSettings")


@dataclass(frozen=True)
class CrfSettings(Settings):
    """Parameters of the pairwise terms, under their published names.

    ``w1``, ``alpha``, ``beta``: weight, spatial (pixels) and colour (0..255) deviation of the bilateral term; ``w2``,
    ``gamma``: weight and spatial deviation of the Gaussian term; ``it``: iterations of mean-field inference;
    ``crf_backend``: one of ``BACKENDS``.
    """

    w1: float = 10
    alpha: float = setting(80, above=0)
    beta: float = setting(13, above=0)
    w2: float = 3
    gamma: float = setting(3, above=0)
    it: int = setting(5, least=1)
    crf_backend: str = setting("auto", choices=BACKENDS)

    def resolved(self: Kind, device: torch.device = CPU) -> Kind:
        """The same, with the backend that ``auto`` stands for: torch on a GPU; else pydensecrf where it is installed.

        Raises
        ------
        InputError
            pydensecrf is asked for and not installed, or asked for on a GPU.
        """
        if self.crf_backend == "pydensecrf" and device.type != "cpu":
            raise InputError(f"the crf_backend pydensecrf computes on the CPU alone, not on {device}: take torch")
        if self.crf_backend == "torch" or device.type != "cpu":
            return replace(self, crf_backend="torch")
        try:
            import pydensecrf.densecrf  # noqa: F401
        except ImportError:
            if self.crf_backend == "auto":
                return replace(self, crf_backend="torch")
            raise InputError(
                "there is no pydensecrf here: pip install pydensecrf2==1.1 (with a C++ compiler, on Python 3.10 to "
                "3.12), or take the crf_backend torch, which needs neither"
            ) from None
        return replace(self, crf_backend="pydensecrf")


EAGLE_CRF = CrfSettings(w1=4, alpha=67, beta=3, w2=3, gamma=1, it=10)


def dense_crf(
    image: np.ndarray, labels: np.ndarray, num_classes: int, settings: CrfSettings, device: torch.device = CPU
) -> np.ndarray:
    """Sharpen a label map, or those of a batch.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB, or (B, H, W, 3).
    labels
        (H, W) label map with values below ``num_classes``, or (B, H, W).
    num_classes
        Number of labels.
    settings
        Pairwise terms.
    device
        Where torch computes. Batches are for GPUs: on a CPU the images take turns.

    Returns
    -------
    np.ndarray
        uint8 label map, as ``labels``.

    Raises
    ------
    InputError
        Labels that are negative or beyond ``num_classes``, sizes that differ, or what :func:`infer` raises.
    """
    if labels.shape != image.shape[:-1]:
        raise InputError(f"a label map of {labels.shape} does not fit an image of {image.shape[:-1]}")
    if labels.max() >= num_classes:
        raise InputError(f"label {labels.max()} in a map of {num_classes} classes; raise --num_classes")
    if labels.min() < 0:
        raise InputError(f"label {labels.min()}: labels count from 0")
    classes, copies = merge_absent(labels, num_classes)
    given = np.searchsorted(classes, labels).reshape(*labels.shape[:-2], 1, -1)
    other = torch.from_numpy(-np.log(np.float32(1 - CERTAINTY)) - np.log(copies)).to(device)[:, None]
    unary = other.repeat(*given.shape[:-2], 1, given.shape[-1])
    unary.scatter_(-2, torch.from_numpy(given).to(device), -float(np.log(np.float32(CERTAINTY))))
    shares = torch.from_numpy(copies).to(device)
    probabilities = infer(torch.from_numpy(image).to(device), unary, settings, shares)
    best = (probabilities / shares[:, None]).argmax(dim=-2).cpu().numpy()
    return classes[best].reshape(labels.shape).astype(np.uint8)


def sharpen_soft(image: np.ndarray, soft: np.ndarray, settings: CrfSettings, device: torch.device = CPU) -> np.ndarray:
    """Sharpen the soft map of an object, or those of a batch, to a mask.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB, or (B, H, W, 3).
    soft
        (H, W) probabilities of the object, or (B, H, W); the unary term takes them within 0.02 and 0.98, for a map is
        never certain.
    settings, device
        As of :func:`dense_crf`.

    Returns
    -------
    np.ndarray
        uint8, 1 the object, as ``soft``.

    Raises
    ------
    InputError
        Sizes that differ, or what :func:`infer` raises.
    """
    if soft.shape != image.shape[:-1]:
        raise InputError(f"a soft map of {soft.shape} does not fit an image of {image.shape[:-1]}")
    flat = soft.reshape(*soft.shape[:-2], -1).clip(1 - MOST_CERTAIN, MOST_CERTAIN).astype(np.float32)
    unary = torch.from_numpy(-np.log(np.stack([1 - flat, flat], axis=-2))).to(device)
    return (
        infer(torch.from_numpy(image).to(device), unary, settings)
        .argmax(dim=-2)
        .cpu()
        .numpy()
        .astype(np.uint8)
        .reshape(soft.shape)
    )


def merge_absent(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes to compute, ascending, and how many of ``num_classes`` each of them stands for (float32).

    All classes that no pixel of the map has start with the same unary energies, so mean-field inference gives them the
    same probabilities at every step: computing the first of them is enough. It halves the time of a map that holds 5 of
    21 classes.
    """
    counts = np.bincount(labels.ravel(), minlength=num_classes)
    present, absent = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    classes = np.sort(np.append(present, absent[:1]))
    copies = np.ones(len(classes), dtype=np.float32)
    copies[np.isin(classes, absent)] = len(absent)
    return classes, copies


def refine_probabilities(image: Tensor, log_probabilities: Tensor, settings: CrfSettings) -> Tensor:
    """Sharpen probabilities, as EAGLE and STEGO do.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB, or (B, H, W, 3). The CRF gets it as BGR, as published: colour distances are the same, but
        the lattice that approximates them is not, and a percent of the labels differ.
    log_probabilities
        (C, H, W) float32, or (B, C, H, W), on the same device.
    settings
        Pairwise terms; the published ones are ``EAGLE_CRF``.

    Returns
    -------
    Tensor
        float32 probabilities, as ``log_probabilities``.

    Raises
    ------
    InputError
        Sizes that differ, or what :func:`infer` raises.
    """
    *batch, classes, height, width = log_probabilities.shape
    if (*batch, height, width) != image.shape[:-1]:
        raise InputError(f"probabilities of {(*batch, height, width)} do not fit an image of {tuple(image.shape[:-1])}")
    unary = -log_probabilities.reshape(*batch, classes, height * width)
    return infer(image.flip(-1), unary, settings).reshape(log_probabilities.shape)


@torch.no_grad()
def infer(image: Tensor, unary: Tensor, settings: CrfSettings, copies: Tensor | None = None) -> Tensor:
    """Mean-field inference, on the device of ``unary``.

    Parameters
    ----------
    image
        (H, W, 3) uint8, or (B, H, W, 3).
    unary
        (C, H * W) float32 energies, or (B, C, H * W).
    settings
        Pairwise terms.
    copies
        (C,) float32: how many labels of equal energies a row of ``unary`` stands for; one by default. The caller has
        lowered the energies of that row by the logarithm of the number, and the result is the labels' probabilities,
        added up.

    Returns
    -------
    Tensor
        float32 probabilities, as ``unary``.

    Raises
    ------
    InputError
        pydensecrf is asked for and not installed, or the memory that is free is not enough for the image.

    Notes
    -----
    With Potts' compatibility a label receives the messages of its own kind: of ``n`` equal labels with the sum ``Q``,
    ``w * filter(Q / n)``. So the weights of a label that stands for ``n`` are ``w / n``.
    """
    settings = settings.resolved(unary.device)
    together = _images_at_once(image, unary, settings.crf_backend)
    images, energies = image.reshape(-1, *image.shape[-3:]), unary.reshape(-1, *unary.shape[-2:])
    copies = unary.new_ones(unary.shape[-2]) if copies is None else copies
    backend = _by_torch if settings.crf_backend == "torch" else _by_pydensecrf
    parts = zip(images.split(together), energies.split(together), strict=True)
    return torch.cat([backend(*part, settings, copies) for part in parts]).reshape(unary.shape)


def _by_torch(images: Tensor, unary: Tensor, settings: CrfSettings, copies: Tensor) -> Tensor:
    count, height, width, _ = images.shape
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        positions = position_filter(height, width, settings.gamma, unary.device, count)
        filters = [(settings.w2, positions), (settings.w1, bilateral_filter(images, settings.alpha, settings.beta))]
        rows = unary.mT.reshape(-1, unary.shape[1])  # of pixels, image after image
        return mean_field(rows, filters, settings.it, copies).view(count, height * width, -1).mT.contiguous()
    finally:
        torch.set_num_threads(threads)


def _by_pydensecrf(images: Tensor, unary: Tensor, settings: CrfSettings, copies: Tensor) -> Tensor:
    from pydensecrf import densecrf

    (image,), (energies,) = images.contiguous().numpy(), unary.contiguous().numpy()
    model = densecrf.DenseCRF2D(image.shape[1], image.shape[0], len(energies))
    model.setUnaryEnergy(energies)
    # pydensecrf takes a number as Potts' weight, and an array as the diagonal of the compatibility, which is negative
    w1: float | np.ndarray = settings.w1
    w2: float | np.ndarray = settings.w2
    if (copies != 1).any():
        w1, w2 = -w1 / copies.numpy(), -w2 / copies.numpy()
    model.addPairwiseGaussian(sxy=settings.gamma, compat=w2)
    model.addPairwiseBilateral(sxy=settings.alpha, srgb=settings.beta, rgbim=image, compat=w1)
    return torch.from_numpy(np.array(model.inference(settings.it), dtype=np.float32))[None]


def _images_at_once(image: Tensor, unary: Tensor, backend: str) -> int:
    """How many images fit into the memory together; one on a CPU."""
    device, classes = unary.device, unary.shape[-2]
    height, width = image.shape[-3:-1]
    if device.type == "cuda":
        per_pixel, per_class = MEMORY[f"{backend} on a GPU"]
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes
        free = torch.cuda.mem_get_info(device)[0] + kept
    else:
        (per_pixel, per_class), free = MEMORY[backend], psutil.virtual_memory().available
    needed = (per_pixel + per_class * classes) * height * width
    if needed > free:
        share = (free / needed) ** 0.5
        raise InputError(
            f"the CRF of {width}x{height} pixels and {classes} classes needs about {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free: an image of {int(width * share)}x{int(height * share)} would do"
        )
    return free // needed if device.type == "cuda" else 1
