"""From a mask to a cut-out: soft alpha at hair and blurred edges, and colours without the old background.

Sources: Levin, Lischinski, Weiss, "A closed-form solution to natural image matting", TPAMI 2008 (``closed_form``);
Chen, Li, Tang, "KNN matting", CVPR 2012 (``knn``); Germer, Uelwer, Conrad, Harmeling, "Fast multi-level foreground
estimation", ICPR 2020 (the colours). All by pymatting.
"""

import contextlib
import io
import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from threadpoolctl import threadpool_limits

from spectralseg.errors import InputError, check_choice
from spectralseg.mathematics.regions import SQUARE
from spectralseg.settings import check_range

SMALLEST = 3  # pixels: the window of closed-form matting
BAND_SHARE, LEAST_BAND = 0.015, 3  # of the shorter side; pixels
UNKNOWN = 0.5
MOST_PIXELS = {"closed_form": 2_000_000, "knn": 400_000}  # that alpha is solved for, in about 1 GB
METHODS = tuple(MOST_PIXELS)
ABSOLUTE_TOLERANCE = 1e-8  # of the residual: the relative one is never met where no unknown pixel leans to foreground


def require_pymatting() -> Any:
    """The module ``pymatting``, or an error that says how to get it."""
    compiling = "pymatting compiles itself when it is used for the first time: a minute or two"
    notice = threading.Timer(5, print, [compiling], {"file": sys.stderr})  # kept on disk, it loads in 2 s
    notice.daemon = True
    notice.start()
    threads = torch.get_num_threads()
    try:
        import pymatting
    except ImportError as error:  # absent, or numba does not go with the other packages
        raise InputError(
            f"mattes need pymatting ({error}): pip install -e '.[matting]' in the project's folder"
        ) from None
    finally:
        notice.cancel()
        torch.set_num_threads(threads)  # numba sets those of all OpenMP in the process to the number of cores
    return pymatting


def default_band(height: int, width: int, cell: int = 1) -> int:
    """Pixels on each side of a mask's edge to take as unknown: 1.5 % of the image's shorter side, and at least 3.

    Where the mask has cells of ``cell`` pixels, at least half a cell: its edge is off by that much.
    """
    return max(round(BAND_SHARE * min(height, width)), LEAST_BAND, (cell + 1) // 2)


def trimap(mask: np.ndarray, num_erode: int, num_dilate: int) -> np.ndarray:
    """Trimap of a mask: foreground inside the eroded mask, background outside the dilated one, unknown between them.

    Erosions and dilations are with the 3x3 cross, one pixel each; the image's border erodes nothing. Each component of
    the foreground (and of the background) keeps at least its innermost pixels, those that its last erosion would take:
    a thin object without any certain pixel would vanish.

    Parameters
    ----------
    mask
        (H, W) bool, or numbers of which those that are not 0 are foreground.
    num_erode, num_dilate
        Width in pixels of the unknown band inside and outside the edge.

    Returns
    -------
    np.ndarray
        (H, W) float64: 1 foreground, 0 background, 0.5 unknown. Of a mask that is empty or full: 0 or 1 everywhere.

    Raises
    ------
    InputError
        A negative width.
    """
    check_range("num_erode", num_erode, least=0)
    check_range("num_dilate", num_dilate, least=0)
    mask = np.asarray(mask) != 0
    known = np.full(mask.shape, UNKNOWN)
    known[_eroded(mask, num_erode)] = 1
    known[_eroded(~mask, num_dilate)] = 0
    return known


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """``mask`` after ``times`` erosions with the cross; those that would erase a component are skipped for it."""
    if mask.all() or not mask.any():
        return mask
    depth = ndimage.distance_transform_cdt(mask, "taxicab")  # erosion n takes the pixels of depth n
    components, count = ndimage.label(mask, SQUARE)
    deepest = np.zeros(count + 1, dtype=depth.dtype)
    np.maximum.at(deepest, components.ravel(), depth.ravel())
    return mask & (depth > np.minimum(times, deepest[components] - 1))


def estimate_alpha(image: np.ndarray, known: np.ndarray, method: str = "closed_form") -> np.ndarray:
    """Alpha of the unknown pixels, from colours.

    An image of more than ``MOST_PIXELS`` is reduced to that size, and its alpha enlarged (bilinear), which keeps memory
    at 1 GB.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB.
    known
        (H, W) float64 trimap: 1 foreground, 0 background, anything between them unknown.
    method
        ``closed_form``: alpha is locally (in 3x3 windows) an affine function of the colours. ``knn``: pixels that are
        similar in colour and place have similar alpha (20 and 10 neighbours); slower.

    Returns
    -------
    np.ndarray
        (H, W) float64 in [0, 1]; known pixels keep their values.

    Raises
    ------
    InputError
        No such method, sizes that differ, an image below 3x3 pixels, a system that cannot be solved, or no pymatting.
    """
    check_choice("method", method, METHODS)
    height, width = known.shape
    if image.shape[:2] != known.shape:
        raise InputError(f"a trimap of {known.shape} does not fit an image of {image.shape[:2]}")
    unknown = (known > 0) & (known < 1)
    if not unknown.any():
        return known.astype(np.float64)
    scale = min(1.0, math.sqrt(MOST_PIXELS[method] / known.size))
    rows, columns = round(scale * height), round(scale * width)
    if min(rows, columns) < SMALLEST:
        raise InputError(f"an image of {width}x{height} pixels is too narrow for matting")
    foreground, background = (_resized(certain, rows, columns) > 0 for certain in (known >= 1, known <= 0))
    reduced = np.where(foreground == background, UNKNOWN, foreground)
    colours = np.array(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)) / 255
    alpha = _resized(_solve(colours, reduced, method), height, width, Image.Resampling.BILINEAR)
    return np.where(unknown, np.clip(alpha, 0, 1), known)


def _resized(
    values: np.ndarray, rows: int, columns: int, resampling: Image.Resampling = Image.Resampling.BOX
) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((columns, rows), resampling), dtype=np.float64)


def _solve(colours: np.ndarray, known: np.ndarray, method: str) -> np.ndarray:
    """Alpha (H, W) from colours (H, W, 3) in [0, 1] and a trimap, by pymatting."""
    pymatting = require_pymatting()
    estimate = {"closed_form": pymatting.estimate_alpha_cf, "knn": pymatting.estimate_alpha_knn}[method]
    with _quiet():
        try:
            alpha = estimate(colours, known, cg_kwargs={"atol": ABSOLUTE_TOLERANCE})
        except ValueError as error:  # no pixel that is certain; no convergence
            raise InputError(f"{method} matting failed: {' '.join(str(error).split())}") from None
    if not np.isfinite(alpha).all():
        raise InputError(f"{method} matting failed: its system of equations is singular")
    return alpha


def cut_out(image: np.ndarray, known: np.ndarray, method: str = "closed_form") -> np.ndarray:
    """Cut the foreground out of an image.

    Parameters
    ----------
    image, known, method
        As in :func:`estimate_alpha`.

    Returns
    -------
    np.ndarray
        (H, W, 4) uint8 RGBA, alpha not premultiplied. Opaque pixels have the image's colours, the others those of the
        foreground alone: nothing of the old background shines through, not even where alpha is 0.

    Raises
    ------
    InputError
        As :func:`estimate_alpha`.
    """
    alpha = np.rint(estimate_alpha(image, known, method) * 255).astype(np.uint8)
    opaque, result = alpha == 255, np.zeros((*alpha.shape, 4), dtype=np.uint8)
    if alpha.any() and not opaque.all():
        pymatting = require_pymatting()
        with _quiet():
            foreground = pymatting.estimate_foreground_ml(image / np.float32(255), alpha / np.float32(255))
        result[..., :3] = np.rint(foreground * 255)
    result[opaque, :3] = image[opaque]
    result[..., 3] = alpha
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Use one thread, so that files do not depend on the number of processes; silence pymatting's performance hints."""
    import numba

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(limits=1), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        numba.set_num_threads(threads)
