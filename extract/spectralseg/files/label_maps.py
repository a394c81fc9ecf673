"""Label maps: their files, colours and sizes, and the names of the labels in the data sets.

A label map is an array (rows, columns) of whole numbers in [0, 255]: of the pixels of an image, of its patches, or of a
finer grid within these. A mask is one with two labels.
"""

import functools
import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from spectralseg.errors import InputError, check_choice
from spectralseg.files.images import open_picture
from spectralseg.files.storage import save_picture

MASK_FORMATS = ("palette", "binary")
SOFT = "soft"  # the third format: of maps whose values are probabilities
ENLARGE = ("patches", "released")  # how evaluations enlarge label maps: patch by patch, or as published
STEPS = (8, 16, 14, 32, 4)  # pixels per cell to try, in this order
FINER = (1, 2, 4, 8)  # cells along the side of a patch

# PASCAL VOC: 0 is the background, 255 in a mask is void.
VOC_CLASSES = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

# COCO-Stuff-27 (Ji et al., IIC, ICCV 2019): 12 supercategories of things, then 15 of stuff.
COCO_STUFF_27_CLASSES = (
    *("electronic", "appliance", "food-thing", "furniture-thing", "indoor", "kitchen"),
    *("accessory", "animal", "outdoor", "person", "sports", "vehicle"),
    *("ceiling", "floor", "food-stuff", "furniture-stuff", "rawmaterial", "textile", "wall", "window"),
    *("building", "ground", "plant", "sky", "solid", "structural", "water"),
)

# Cityscapes label ids 7 to 33 (Cordts et al., CVPR 2016).
CITYSCAPES_27_CLASSES = (
    *("road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel"),
    *("pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider"),
    *("car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)

POTSDAM_3_CLASSES = ("roads and cars", "buildings and clutter", "vegetation and trees")


# --- files ---


def save_labels(path: str | Path, labels: np.ndarray) -> None:
    """Write a label map (rows, columns) as a palette PNG: values stay label indices, and viewers show VOC's colours."""
    save_picture(path, label_picture(labels))


def save_mask(path: str | Path, mask: np.ndarray, mask_format: str = "palette") -> None:
    """Write a mask (rows, columns), what is not 0 being foreground.

    ``palette``: as :func:`save_labels`, with labels 0 and 1. ``binary``: an 8-bit grey PNG with 0 and 255, which the
    published evaluation and other tools read.
    """
    check_choice("mask_format", mask_format, MASK_FORMATS)
    foreground = np.asarray(mask) != 0
    if mask_format == "palette":
        save_labels(path, foreground)
        return
    save_picture(path, Image.fromarray(foreground * np.uint8(255)))


def save_soft(path: str | Path, soft: np.ndarray) -> None:
    """Write a soft map (rows, columns) in [0, 1] as an 8-bit grey PNG of its values * 255."""
    save_picture(path, Image.fromarray(np.rint(soft * 255).astype(np.uint8)))


def load_soft(path: str | Path) -> np.ndarray:
    """Read what :func:`save_soft` wrote -> (rows, columns) float32 in [0, 1]; errors as of :func:`load_labels`."""
    return load_labels(path).astype(np.float32) / 255


def load_labels(path: str | Path) -> np.ndarray:
    """Read a label map: palette, grey or 1-bit PNG -> (rows, columns) uint8.

    Raises
    ------
    InputError
        The file is absent, damaged, or a colour picture.
    """
    with open_picture(path, "a label map") as file:
        labels = np.array(file)
    if labels.ndim != 2 or (labels.size and labels.max() > 255):
        raise InputError(f"{path} is a picture of mode {file.mode}, not a label map (palette, grey or 1-bit PNG)")
    return labels.astype(np.uint8)


# --- colours ---


@functools.cache
def voc_palette() -> tuple[int, ...]:
    """The colour map of PASCAL VOC for 256 labels: 768 values in [0, 255], r, g, b of label 0 first.

    Bit 3j of a label is bit 7 - j of its red, bit 3j + 1 of its green, bit 3j + 2 of its blue (VOC development kit,
    ``VOClabelcolormap.m``).
    """
    return tuple(
        sum(((label >> (3 * j + channel)) & 1) << (7 - j) for j in range(3))
        for label in range(256)
        for channel in range(3)
    )


def label_picture(label_map: ArrayLike) -> Image.Image:
    """A palette image of a label map: pixel values stay the labels, viewers show VOC colours.

    Parameters
    ----------
    label_map
        (rows, columns) booleans or whole numbers in [0, 255].

    Raises
    ------
    InputError
        The map is not two-dimensional, or a label does not fit into a byte.
    """
    labels = np.asarray(label_map)
    if labels.ndim != 2:
        raise InputError(f"expected a (rows, columns) label map, got shape {labels.shape}")
    as_bytes = labels.astype(np.uint8)
    if not np.array_equal(as_bytes, labels):
        raise InputError(f"labels must be whole numbers from 0 to 255, got {labels.min()} to {labels.max()}")
    picture = Image.fromarray(as_bytes)
    picture.putpalette(voc_palette())
    return picture


# --- sizes ---


def enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool that was made on a reduced copy, at ``size`` (width, height): smoothly, then sharp again."""
    if mask.shape == size[::-1]:
        return mask
    return np.asarray(Image.fromarray(mask * np.uint8(255)).resize(size, Image.Resampling.BICUBIC)) > 127


def upscale_labels(labels: np.ndarray, height: int, width: int, step: int) -> np.ndarray:
    """Label map at patches -> label map at pixels: every patch gives its label to its own pixels.

    Parameters
    ----------
    labels
        (rows, columns) label map of an image: of its patches, of a finer grid within these, or of its pixels. Of any
        dtype.
    height, width
        Of the image, in pixels.
    step
        Patch size in pixels.

    Returns
    -------
    np.ndarray
        (height, width). The part that whole patches cover is the map enlarged to that part; the border at the right and
        bottom, which belongs to no patch, is taken from the map stretched over the whole image.

    Raises
    ------
    InputError
        A step or size below 1, or an empty map.
    """
    if step < 1:
        raise InputError(f"step={step}: a patch has at least one pixel")
    full = stretch_labels(labels, height, width)
    covered = (height // step * step, width // step * step)
    if labels.shape != (height, width) and 0 not in covered:
        full[: covered[0], : covered[1]] = stretch_labels(labels, *covered)
    return full


def stretch_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(rows, columns) or (rows, columns, C) pixels of any dtype, resized to (height, width) by nearest neighbour.

    Pixel x takes column floor(x * columns / width), in double precision, as in OpenCV, whose ``cv2.INTER_NEAREST`` the
    published code uses; Pillow and torchvision take the column below the centre of the pixel instead.

    Raises
    ------
    InputError
        A size below 1, or an empty map.
    """
    if min(height, width, *labels.shape) < 1:
        raise InputError(f"a label map of shape {labels.shape} cannot be enlarged to {width}x{height} pixels")
    rows, columns = (
        np.minimum(np.arange(size) * (1 / (size / cells)), cells - 1).astype(np.intp)  # OpenCV's order of operations
        for size, cells in zip((height, width), labels.shape[:2], strict=True)
    )
    return labels.take(columns, axis=1).take(rows, axis=0)  # many times faster than indexing at once


def find_step(shape: tuple[int, ...], height: int, width: int) -> int | None:
    """Patch size in pixels of a label map of ``shape`` (rows, columns), from the size of its image; None: none fits.

    The first step s of 8, 16, 14, 32, 4 with shape = (H // s, W // s), else of twice, 4 times or 8 times that.
    """
    for finer in FINER:
        for step in STEPS:
            if shape == (height // step * finer, width // step * finer):
                return step
    return None


def infer_grid(height: int, width: int, cells: int) -> tuple[tuple[int, int], int]:
    """Grid and step of an eigenvector that does not tell them (files of the published code).

    Parameters
    ----------
    height, width
        Of the image, in pixels.
    cells
        T', the number of entries of the eigenvector.

    Returns
    -------
    grid, step
        (rows, columns), and pixels per cell: the first step s of 8, 16, 14, 32, 4 with (H // s) * (W // s) = T', else
        the first s for whose grid T' is k^2 times that count: a grid k times finer, with step s / k.

    Raises
    ------
    InputError
        No step fits.
    """
    for step in STEPS:
        rows, columns = height // step, width // step
        if rows * columns == cells:
            return (rows, columns), step
    for step in STEPS:
        rows, columns = height // step, width // step
        if rows * columns == 0:
            continue
        finer = math.isqrt(cells // (rows * columns))
        if finer > 1 and finer**2 * rows * columns == cells and step % finer == 0:
            return (finer * rows, finer * columns), step // finer
    raise InputError(
        f"{cells} patches fit no usual grid on an image of {width}x{height} pixels; the file must name its patch size "
        "(fields 'grid' and 'step')"
    )
