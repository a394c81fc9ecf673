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

from spectralseg.errors import InputError
from spectralseg.mathematics.meanfield import bilateral_filter, mean_field, position_filter
from spectralseg.settings import Settings, setting

BACKENDS = ("auto", "torch", "pydensecrf")
# Bytes that inference needs for a pixel, and for a pixel and class: the most that was measured, with EAGLE's parameters
# on a noisy image of 3 megapixels.
MEMORY = {"torch": (700, 28), "pydensecrf": (350, 35)}

# Of torch. Two are a third faster on idle cores, but many times slower where other processes take the cores: threads
# wait for each other after every step. Images side by side in processes use the cores as well.
THREADS = 1
CERTAINTY = 0.99  # probability of the given label in the unary term; the others have 0.01


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

    def resolved(self: Kind) -> Kind:
        """The same, with the backend that ``auto`` stands for: pydensecrf where it is installed, else torch.

        Raises
        ------
        InputError
            pydensecrf is asked for and not installed.
        """
        if self.crf_backend == "torch":
            return self
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


def dense_crf(image: np.ndarray, labels: np.ndarray, num_classes: int, settings: CrfSettings) -> np.ndarray:
    """Sharpen a label map.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB.
    labels
        (H, W) label map with values below ``num_classes``; {0, 255} count as {0, 1} when there are two classes.
    num_classes
        Number of labels.
    settings
        Pairwise terms.

    Returns
    -------
    np.ndarray
        (H, W) uint8 label map.

    Raises
    ------
    InputError
        Labels that are negative or beyond ``num_classes``, sizes that differ, or what :func:`infer` raises.
    """
    if labels.shape != image.shape[:2]:
        raise InputError(f"a label map of {labels.shape} does not fit an image of {image.shape[:2]}")
    if labels.max() >= num_classes:
        raise InputError(f"label {labels.max()} in a map of {num_classes} classes; raise --num_classes")
    if labels.min() < 0:
        raise InputError(f"label {labels.min()}: labels count from 0")
    classes, copies = merge_absent(labels, num_classes)
    unary = np.empty((len(classes), labels.size), dtype=np.float32)
    unary[:] = -np.log(np.float32(1 - CERTAINTY)) - np.log(copies)[:, None]
    unary[np.searchsorted(classes, labels.ravel()), np.arange(labels.size)] = -np.log(np.float32(CERTAINTY))
    probabilities = infer(image, unary, settings, copies)
    probabilities /= copies[:, None]
    return classes[probabilities.argmax(axis=0)].reshape(labels.shape).astype(np.uint8)


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


def refine_probabilities(image: np.ndarray, log_probabilities: np.ndarray, settings: CrfSettings) -> np.ndarray:
    """Sharpen probabilities, as EAGLE and STEGO do.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB. The CRF gets it as BGR, as published: colour distances are the same, but the lattice that
        approximates them is not, and a percent of the labels differ.
    log_probabilities
        (C, H, W) float32.
    settings
        Pairwise terms; the published ones are ``EAGLE_CRF``.

    Returns
    -------
    np.ndarray
        (C, H, W) float32 probabilities.

    Raises
    ------
    InputError
        Sizes that differ, or what :func:`infer` raises.
    """
    if log_probabilities.shape[1:] != image.shape[:2]:
        raise InputError(f"probabilities of {log_probabilities.shape[1:]} do not fit an image of {image.shape[:2]}")
    unary = -log_probabilities.reshape(len(log_probabilities), -1)
    return infer(image[..., ::-1], unary, settings).reshape(log_probabilities.shape)


def infer(image: np.ndarray, unary: np.ndarray, settings: CrfSettings, copies: np.ndarray | None = None) -> np.ndarray:
    """Mean-field inference.

    Parameters
    ----------
    image
        (H, W, 3) uint8.
    unary
        (C, H * W) energies.
    settings
        Pairwise terms.
    copies
        (C,) float32: how many labels of equal energies a row of ``unary`` stands for; one by default. The caller has
        lowered the energies of that row by the logarithm of the number, and the result is the labels' probabilities,
        added up.

    Returns
    -------
    np.ndarray
        (C, H * W) float32 probabilities.

    Raises
    ------
    InputError
        pydensecrf is asked for and not installed, or the memory that is free is not enough for the image.

    Notes
    -----
    With Potts' compatibility a label receives the messages of its own kind: of ``n`` equal labels with the sum ``Q``,
    ``w * filter(Q / n)``. So the weights of a label that stands for ``n`` are ``w / n``.
    """
    settings = settings.resolved()
    height, width = image.shape[:2]
    _require_memory(height, width, len(unary), settings.crf_backend)
    copies = np.ones(len(unary), dtype=np.float32) if copies is None else copies
    image, unary = np.ascontiguousarray(image), np.ascontiguousarray(unary, dtype=np.float32)
    return (_by_torch if settings.crf_backend == "torch" else _by_pydensecrf)(image, unary, settings, copies)


@torch.no_grad()
def _by_torch(image: np.ndarray, unary: np.ndarray, settings: CrfSettings, copies: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(image)
    height, width, _ = image.shape
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        positions = position_filter(height, width, settings.gamma, pixels.device)
        filters = [(settings.w2, positions), (settings.w1, bilateral_filter(pixels, settings.alpha, settings.beta))]
        energies = torch.from_numpy(unary).T.contiguous()
        return mean_field(energies, filters, settings.it, torch.from_numpy(copies)).T.contiguous().numpy()
    finally:
        torch.set_num_threads(threads)


def _by_pydensecrf(image: np.ndarray, unary: np.ndarray, settings: CrfSettings, copies: np.ndarray) -> np.ndarray:
    from pydensecrf import densecrf

    model = densecrf.DenseCRF2D(image.shape[1], image.shape[0], len(unary))
    model.setUnaryEnergy(unary)
    # pydensecrf takes a number as Potts' weight, and an array as the diagonal of the compatibility, which is negative
    w1: float | np.ndarray = settings.w1
    w2: float | np.ndarray = settings.w2
    if (copies != 1).any():
        w1, w2 = -w1 / copies, -w2 / copies
    model.addPairwiseGaussian(sxy=settings.gamma, compat=w2)
    model.addPairwiseBilateral(sxy=settings.alpha, srgb=settings.beta, rgbim=image, compat=w1)
    return np.array(model.inference(settings.it))


def _require_memory(height: int, width: int, classes: int, backend: str) -> None:
    per_pixel, per_class = MEMORY[backend]
    needed, free = (per_pixel + per_class * classes) * height * width, psutil.virtual_memory().available
    if needed > free:
        share = (free / needed) ** 0.5
        raise InputError(
            f"the CRF of {width}x{height} pixels and {classes} classes needs about {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free: an image of {int(width * share)}x{int(height * share)} would do"
        )
