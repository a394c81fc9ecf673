"""Photographs, true masks and predicted masks of a data set, paired by id and read one image at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spectralseg.errors import InputError, check_choice
from spectralseg.files.images import EXTENSIONS, find_images, load_image, open_picture
from spectralseg.files.label_maps import ENLARGE, load_labels, stretch_labels, upscale_labels

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Paths:
    """The files of one image; ``soft`` is None where no soft maps are given."""

    id: str
    image: Path
    truth: Path
    prediction: Path
    soft: Path | None = None


@dataclass(frozen=True)
class View:
    """What is compared of truth and prediction: shorter side to ``image_size`` pixels, then a centred square.

    ``image_size`` None leaves the size, ``crop`` False leaves the whole.
    """

    image_size: int | None = None
    crop: bool = False

    def __call__(self, pixels: NDArray) -> NDArray:
        """(H, W) or (H, W, 3) pixels -> the same, of other size, by nearest neighbour."""
        height, width = pixels.shape[:2]
        if self.image_size is not None:
            rows, columns = (self.image_size * side // min(height, width) for side in (height, width))
            pixels = stretch_labels(pixels, rows, columns)
        if self.crop:
            height, width = pixels.shape[:2]
            side = min(height, width)
            top, left = round((height - side) / 2), round((width - side) / 2)
            pixels = pixels[top : top + side, left : left + side]
        return pixels


def pair(images: Path, truths: Path, predictions: Path, softs: Path | None = None) -> tuple[list[Paths], list[str]]:
    """The files of each image of the folder ``images``, by stem, and a note for each folder with files of no image.

    Raises
    ------
    InputError
        An image lacks its truth, prediction or soft map: the file that should be there is named.
    """
    files = find_images(images, depth=1)
    folders = {"true mask": truths, "prediction": predictions} | ({"soft map": softs} if softs else {})
    found = {}
    notes = []
    for kind, folder in folders.items():
        found[kind] = find_images(folder, 1, EXTENSIONS if kind == "true mask" else {".png"})
        missing = [stem for stem in files if stem not in found[kind]]
        if missing:
            name = folder / f"{missing[0]}.png"
            others = f", and those of {len(missing) - 1} more of {len(files)} images" if missing[1:] else ""
            raise InputError(f"the {kind} {name} of the image {files[missing[0]]} is missing{others}")
        foreign = [stem for stem in found[kind] if stem not in files]
        if foreign:
            some = ", ".join(foreign[:3]) + (", ..." if foreign[3:] else "")
            notes.append(f"{len(foreign)} of the {kind}s in {folder} belong to no image of {images}: {some}")
    return [Paths(stem, path, *(found[kind][stem] for kind in folders)) for stem, path in files.items()], notes


def read_truth(path: Path) -> Mask:
    """True mask (H, W): the first channel of its RGB picture is above one half. 1-bit, grey and palette masks alike."""
    return np.asarray(load_image(path))[..., 0] > 127


def read_prediction(
    path: Path, shape: tuple[int, int], downsample: int | None, enlarge: str = "patches", crop: bool = False
) -> Mask:
    """Predicted mask at the size of the truth.

    Parameters
    ----------
    path, shape
        The label map, and (H, W) of the truth.
    downsample
        Patch size of predictions at patches; None: they must have the size of the truth.
    enlarge, crop
        How predictions at patches are enlarged, and whether :class:`View` cuts out a square afterwards; see
        :func:`at_pixels`.

    Raises
    ------
    InputError
        Other values than {0, 1} or {0, 255}, or another size.
    """
    values = load_labels(path)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        some = ", ".join(map(str, np.unique(values)[:6]))
        raise InputError(f"{path} holds the values {some}: a mask has 0 and 1, or 0 and 255")
    return at_pixels(values > 0, path, shape, downsample, enlarge, crop)


def read_soft(
    path: Path, shape: tuple[int, int], downsample: int | None, enlarge: str = "patches", crop: bool = False
) -> NDArray[np.float64]:
    """Soft map (H, W) in [0, 1] from a grey PNG of 8 bits (probability * 255) or 16 (probability * 65535).

    The other arguments as for :func:`read_prediction`.
    """
    with open_picture(path, "a soft map") as file:
        mode, values = file.mode, np.array(file)
    largest = 255 if mode == "L" else 65535
    if mode != "L" and not mode.startswith("I"):
        raise InputError(f"{path} is a picture of mode {mode}; a soft map is a grey PNG of 8 or 16 bits")
    return at_pixels(values / largest, path, shape, downsample, enlarge, crop)


def at_pixels(
    values: NDArray,
    path: Path,
    shape: tuple[int, int],
    step: int | None,
    enlarge: str = "patches",
    crop: bool = False,
) -> NDArray:
    """A map at the size of the truth.

    Parameters
    ----------
    values
        (rows, columns) of the pixels, which stay as they are, or of the patches, or of a finer grid within these.
    path
        Named if the size is wrong.
    shape
        (H, W) of the truth.
    step
        Patch size in pixels; None: the map must be one of the pixels.
    enlarge
        ``patches``: every patch gives its value to its own pixels. ``released``: as in the published evaluation
        (``object-segmentation/main.py``), which stretches the map over the whole image, and then fills the part that
        whole patches cover with the *stretched* map, reduced to this part, where the map itself was meant. Rounded
        twice, boundaries of patches lie up to a pixel further right and down.
    crop
        Whether the centred square of truth and map is compared (:class:`View`). The published code knows only the
        square of the truth when it enlarges the map: ``released`` gives a map that ends with the last whole patch, or
        with the square's side, and whose own centre lies up to half a patch above and left of the image's.

    Raises
    ------
    InputError
        Another size, or no such ``enlarge``.
    """
    check_choice("enlarge", enlarge, ENLARGE)
    if values.shape == shape:
        return values
    grid = (0, 0) if step is None else (shape[0] // step, shape[1] // step)
    finer = values.shape[0] // grid[0] if 0 not in grid else 0
    if step is None or finer == 0 or values.shape != (finer * grid[0], finer * grid[1]):
        sizes = f"{path} has {values.shape[1]}x{values.shape[0]} pixels, but its true mask has {shape[1]}x{shape[0]}"
        if step is None:
            raise InputError(f"{sizes}; for predictions at patches set predictions.downsample")
        raise InputError(f"{sizes}, which are {grid[1]}x{grid[0]} patches of {step} pixels (predictions.downsample)")
    if enlarge == "patches":
        return upscale_labels(values, *shape, step)
    height, width = step * grid[0], step * grid[1]
    size = (max(height, min(shape)), max(width, min(shape))) if crop else shape
    full = stretch_labels(values, *size)
    full[:height, :width] = stretch_labels(full, height, width)
    return full


def read(
    pairs: list[Paths], view: View, downsample: int | None, enlarge: str = "patches"
) -> Iterator[tuple[Paths, Mask, Mask, NDArray[np.float64] | None]]:
    """Truth, prediction and soft map (or None) of each image, seen through ``view``, one image at a time.

    Raises
    ------
    InputError
        A file that cannot be read, or ``enlarge="released"`` with a view that both resizes and crops: the published
        code cannot compare the sizes that result.
    """
    if enlarge == "released" and view.crop and view.image_size is not None:
        raise InputError("enlarge=released goes with image_size or with crop, not with both")
    for paths in pairs:
        truth = read_truth(paths.truth)
        how = truth.shape, downsample, enlarge, view.crop
        prediction = read_prediction(paths.prediction, *how)
        soft = None if paths.soft is None else view(read_soft(paths.soft, *how))
        yield paths, view(truth), view(prediction), soft


def read_photograph(path: Path, view: View, shape: tuple[int, int]) -> Image.Image:
    """The photograph as ``view`` shows it, at the size ``shape`` (H, W) of its mask there."""
    photograph = Image.fromarray(view(np.asarray(load_image(path))))
    return photograph if photograph.size == shape[::-1] else photograph.resize(shape[::-1])
