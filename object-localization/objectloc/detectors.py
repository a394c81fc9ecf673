"""One box per image: eigenseg, LOST, DINO-seg, TokenCut and MaskCut, as pure functions on patches.

Sources: Melas-Kyriazi et al., "Deep Spectral Methods", CVPR 2022 (eigenseg); Simeoni et al., "Localizing Objects with
Self-Supervised Transformers and no Labels", BMVC 2021 (LOST, and DINO-seg as its baseline); Caron et al., "Emerging
Properties in Self-Supervised Vision Transformers", ICCV 2021 (the attention that DINO-seg reads); Wang et al.,
"Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut", CVPR 2022 (TokenCut);
Wang et al., "Cut and Learn for Unsupervised Object Detection and Instance Segmentation", CVPR 2023 (MaskCut).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from spectralseg.errors import InputError, check_choice
from spectralseg.mathematics.cuts import component_at, cut
from spectralseg.mathematics.objects import find_parts
from spectralseg.mathematics.regions import CROSS, bounding_box, largest_component

Box = tuple[float, float, float, float]

ATTENTION_MASS = 0.6  # share of the attention that DINO-seg keeps
CENTRAL_SHARE = 0.7


@dataclass(frozen=True)
class Detection:
    """What a detector found on the grid of patches.

    Attributes
    ----------
    mask
        (rows, columns) bool: what the box encloses, a connected component or a background; never empty.
    seed
        (row, column) of the patch that the method started from, if it has one.
    maps
        Name -> (rows, columns) values that led to the mask, for pictures.
    """

    mask: np.ndarray
    seed: tuple[int, int] | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)

    def box(self, step: tuple[float, float], size: tuple[int, int]) -> Box:
        """(xmin, ymin, xmax, ymax) in pixels, maxima exclusive, clipped to the image.

        Parameters
        ----------
        step
            Height and width of a patch in pixels.
        size
            Height and width of the image in pixels; the grid may reach beyond it (padding).
        """
        return pixel_box(self.mask, step, size)


def pixel_box(mask: np.ndarray, step: tuple[float, float], size: tuple[int, int]) -> Box:
    """Box of a mask (rows, columns) in pixels; see :meth:`Detection.box`."""
    xmin, ymin, xmax, ymax = bounding_box(mask)
    down, right = step
    height, width = size
    left, top = min(right * xmin, width), min(down * ymin, height)  # a fine CNN's last cells may be padding alone
    return (left, top, min(right * xmax, width), min(down * ymax, height))


def eigenseg(eigenvector: np.ndarray, grid: tuple[int, int]) -> Detection:
    """Deep Spectral Methods: the largest 8-connected component where an eigenvector is positive.

    Parameters
    ----------
    eigenvector
        (T,) of T = rows * columns patches: number 1 of a Laplacian (number 0 is constant), number 0 of an affinity.
    grid
        (rows, columns).

    Notes
    -----
    The mask is inverted if it covers more than half of the image, but not all of it, or nothing (the box is then the
    whole image).
    """
    values = _on_grid(eigenvector, grid)
    if not np.isfinite(values).all():
        raise InputError("the eigenvector holds NaN or infinite values; compute it again")
    mask = values > 0
    if 0.5 < mask.mean() < 1 or not mask.any():
        mask = ~mask
    return Detection(largest_component(mask), maps={"eigenvector": values})


def eigenseg_map(soft: np.ndarray) -> Detection:
    """The largest 8-connected component of a soft map (rows, columns) above 1/2.

    A map that is the same everywhere tells nothing: the box is then the whole image.
    """
    mask = soft > 0.5
    return Detection(largest_component(mask if mask.any() else ~mask), maps={"map": soft})


def lost(features: Tensor, grid: tuple[int, int], k_patches: int = 100, gram_bias: float = 0.0) -> Detection:
    """LOST: grow a region from the patch that is similar to the fewest others.

    Parameters
    ----------
    features
        (T, D) keys of the patches, not normalised.
    grid
        (rows, columns), T = rows * columns.
    k_patches
        So many patches of lowest degree may join the seed's expansion (the paper's k).
    gram_bias
        Added to F F' (Darcet et al., "Vision Transformers Need Registers", ICLR 2024, appendix): for backbones whose
        features are nearly all similar it is negative, in units of squared features.

    Returns
    -------
    Detection
        ``maps``: ``degree``, ``seed similarity`` (row of the seed in A), ``expansion`` (1 for the patches of S),
        ``mask values`` (M).

    Notes
    -----
    With A = F F' + gram_bias (the paper's graph joins patches where it is positive): the degree of a patch is the
    number of positive entries of its row, itself left out; the seed has the lowest one; S = {s among the k lowest
    degrees: A[seed, s] > 0}; M = sum of the rows A[s] over S; the mask is the 4-connected component of M > 0 that holds
    the seed.

    Degrees are whole numbers, so ties are common and decide boxes. The published code leaves them to torch's sort
    (not a stable one), and so do the recorded values: the sort here runs on the CPU whatever the device, so that all
    devices break ties alike. A seed with features of zero is similar to nothing: its own patch is then the mask.
    """
    if k_patches < 1:
        raise InputError(f"k_patches={k_patches}: at least one patch must be able to join")
    features = _checked(features, grid).float()
    affinity = features @ features.T + gram_bias
    positive = affinity > 0
    degree = (positive.sum(dim=1) - positive.diagonal().long()).cpu()
    order = torch.argsort(-degree.float(), descending=True).to(features.device)
    seed, candidates = order[0], order[:k_patches]
    similar = candidates[affinity[seed, candidates] > 0]
    votes = affinity[similar].sum(dim=0)
    expansion = torch.zeros_like(votes)
    expansion[similar] = 1
    seed_cell = divmod(int(seed), grid[1])
    maps = {"degree": degree, "seed similarity": affinity[seed], "expansion": expansion, "mask values": votes}
    mask = component_at(_on_grid(votes, grid) > 0, seed_cell)
    return Detection(mask, seed_cell, {name: _on_grid(values, grid) for name, values in maps.items()})


def dino_seg(attention: Tensor, grid: tuple[int, int], head: int = 4, mended: bool = False) -> Detection:
    """DINO-seg: the largest 4-connected component of the patches that hold 60 % of a head's attention from [CLS].

    Parameters
    ----------
    attention
        (heads, T) attention of [CLS] to the patches in the last block; its scale does not matter.
    grid
        (rows, columns), T = rows * columns.
    head
        Which head, from 0. (The published baseline: 4 of ViT-S/16's six.)
    mended
        Consider all components. By default the last one, in reading order of the components' first patches, is left
        out, and where it is the only one the mask is the background around it: a slip of the published code (LOST's
        ``dino_seg``, from there in Deep Spectral Methods), which the published figures and recorded values include.

    Notes
    -----
    A single component that covers the whole grid has no background; the published code fails there, the mask here is
    the whole grid. Published boxes may reach into the padding at the right and bottom; ours are clipped to the image.

    Raises
    ------
    InputError
        No such head, or its attention is 0 everywhere.
    """
    if not 0 <= head < len(attention):
        raise InputError(f"no head {head}: the backbone has {len(attention)}, counted from 0")
    weights = _checked(attention[head], grid).float().cpu()
    ascending, order = torch.sort(weights)
    kept = (ascending / ascending.sum()).cumsum(dim=0) > 1 - ATTENTION_MASS
    mask = np.zeros(len(weights), dtype=bool)
    mask[order[kept].numpy()] = True
    components, count = ndimage.label(mask.reshape(grid), CROSS)
    if count == 0:
        raise InputError("the attention of [CLS] holds no mass")
    if mended:
        found = largest_component(components > 0, CROSS)
    elif count > 1:
        found = largest_component((components > 0) & (components < count), CROSS)
    else:
        found = components == 0 if (components == 0).any() else components > 0
    return Detection(found, maps={"attention": _on_grid(weights, grid), "60 % of the mass": mask.reshape(grid)})


def tokencut(features: Tensor, grid: tuple[int, int], tau: float = 0.2) -> Detection:
    """TokenCut: normalised cut of the graph of patches whose keys are similar.

    Parameters
    ----------
    features
        (T, D) keys of the patches.
    grid
        (rows, columns), T = rows * columns.
    tau
        Patches with a cosine above it are joined by an edge of weight 1, all others of weight 1e-5.

    Notes
    -----
    x is the second smallest solution of (D - W) x = l D x (Shi and Malik, "Normalized Cuts and Image Segmentation",
    2000). The foreground lies above the mean of x; if it does not hold the patch of largest absolute value, it is
    inverted. The mask is the 4-connected component of the foreground that holds this patch.

    Where all pairs of patches are joined alike there is nothing to cut, and x may be any vector: the mask is then the
    whole image. (Published code boxes whatever LAPACK returns.)
    """
    (found,) = cut(features[None], grid, tau)
    if found is None:
        return Detection(np.ones(grid, dtype=bool), maps={"eigenvector": np.zeros(grid)})
    return Detection(found.mask, found.seed, {"eigenvector": found.vector})


def best_object(features: Tensor, grid: tuple[int, int], tau: float) -> Detection:
    """The object of the best score among MaskCut's (:func:`spectralseg.mathematics.objects.find_parts`), without CRF.

    Parameters as for :func:`tokencut`; the whole image where there is nothing to cut.
    """
    (parts,) = find_parts(features[None], grid, tau=tau)
    best = max(parts, key=lambda part: part.score, default=None)
    return Detection(np.ones(grid, dtype=bool) if best is None else best.mask)


def trivial_box(kind: str, size: tuple[int, int]) -> Box:
    """A box that knows an image's (height, width) alone: what a detector must beat.

    ``whole``: all of it; ``central``: 70 % of its height and of its width, in the middle.
    """
    begins = {"whole": 0.0, "central": (1 - CENTRAL_SHARE) / 2}
    check_choice("kind", kind, begins)
    begin = begins[kind]
    end = 1 - begin
    height, width = size
    return (begin * width, begin * height, end * width, end * height)


def _on_grid(values: Tensor | np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.size != grid[0] * grid[1]:
        raise InputError(f"{array.size} patches do not fit a grid of {grid[0]}x{grid[1]}")
    return array.reshape(grid)


def _checked(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(T, ...) values of as many patches as the grid has, all of them finite."""
    if len(values) != grid[0] * grid[1]:
        raise InputError(f"{len(values)} patches do not fit a grid of {grid[0]}x{grid[1]}")
    if not torch.isfinite(values).all():
        raise InputError("the features hold NaN or infinite values; extract them again")
    return values
