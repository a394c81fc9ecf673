"""Pictures of what a detector did: the box on the photograph, the values it read, how LOST's seed grew."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from objectloc.detectors import Box, Detection, pixel_box
from objectloc.options import PICTURES
from spectralseg.drawing.pictures import BOX, contact_sheet, draw_box, eigenvector_picture, line_width
from spectralseg.errors import InputError, check_choice
from spectralseg.mathematics.cuts import component_at

ANNOTATED, SEED, EXPANSION = (30, 190, 80), (255, 210, 0), (40, 140, 255)
HEIGHT = 300  # of a panel of a sheet, in pixels


def draw_picture(
    kind: str,
    image: Image.Image,
    box: Box,
    detection: Detection | None,
    step: tuple[float, float],
    truth: np.ndarray | None = None,
) -> Image.Image:
    """A picture of one image.

    Parameters
    ----------
    kind
        ``pred``: the found box (red), its seed (yellow) and annotated boxes (green). ``fms``: a sheet of that and of
        the values that led to the box. ``seed_expansion``: for LOST, the box that the seed alone gives and the one that
        it grew to, with the patches that it grew by (blue).
    image
        RGB.
    box
        (xmin, ymin, xmax, ymax) in pixels of ``image``.
    detection
        None for trivial boxes.
    step
        Height and width of a patch in pixels of ``image``.
    truth
        Annotated boxes (N, 4).

    Raises
    ------
    InputError
        No such kind, or the detector has nothing of this kind to show.
    """
    check_choice("kind", kind, PICTURES)
    found = draw_found(image, box, detection, step, truth)
    if kind == "pred":
        return found
    if kind == "seed_expansion":
        if detection is None or detection.seed is None or "expansion" not in detection.maps:
            raise InputError("--visualize seed_expansion shows nothing here: it is for LOST")
        return _expansion(image, found, detection, detection.seed, step)
    if detection is None:
        raise InputError(f"--visualize {kind} shows nothing here: trivial boxes come from no values")
    mask = image.copy()
    fill_patches(mask, (tuple(cell) for cell in np.argwhere(detection.mask)), EXPANSION, step, strength=0.45)
    return contact_sheet([("found box", found), ("mask", mask), *_maps(image, detection, step)], height=HEIGHT)


def draw_found(
    image: Image.Image,
    box: Box,
    detection: Detection | None,
    step: tuple[float, float],
    truth: np.ndarray | None = None,
) -> Image.Image:
    """The photograph with annotated boxes, the seed's patch, and the found box on top."""
    picture = image.copy()
    width = line_width(image)
    for annotated in () if truth is None else truth:
        draw_box(picture, annotated, ANNOTATED, width)
    if detection is not None and detection.seed is not None:
        fill_patches(picture, [detection.seed], SEED, step)
    draw_box(picture, box, BOX, width)
    return picture


def fill_patches(
    picture: Image.Image,
    cells: Iterable[tuple[int, int]],
    colour: tuple[int, int, int],
    step: tuple[float, float],
    strength: float = 0.6,
) -> None:
    """Lay a veil of a colour over patches (row, column)."""
    veil = Image.new("L", picture.size, 0)
    draw = ImageDraw.Draw(veil)
    for row, column in cells:
        top, left, bottom, right = row * step[0], column * step[1], (row + 1) * step[0], (column + 1) * step[1]
        draw.rectangle((round(left), round(top), round(right) - 1, round(bottom) - 1), fill=round(255 * strength))
    picture.paste(Image.new("RGB", picture.size, colour), (0, 0), veil)


def _maps(image: Image.Image, detection: Detection, step: tuple[float, float]) -> list[tuple[str, Image.Image]]:
    """Each of the detector's maps as a heat map over the image."""
    if step[0] == step[1]:
        return [(name, eigenvector_picture(values, image.size, step[0])) for name, values in detection.maps.items()]
    rows, columns = detection.mask.shape  # cells that are not square: drawn at the size of the padded image, then cut
    whole = (round(columns * step[1]), round(rows * step[0]))
    return [
        (name, eigenvector_picture(values, whole).crop((0, 0, *image.size))) for name, values in detection.maps.items()
    ]


def _expansion(
    image: Image.Image, found: Image.Image, detection: Detection, seed: tuple[int, int], step: tuple[float, float]
) -> Image.Image:
    """LOST's seed alone beside what it grew to."""
    similar = detection.maps["seed similarity"] > 0
    alone = component_at(similar, seed)
    before = draw_found(image, pixel_box(alone, step, (image.height, image.width)), detection, step)
    after = found.copy()
    grown = [tuple(cell) for cell in np.argwhere(detection.maps["expansion"] > 0) if tuple(cell) != seed]
    fill_patches(after, grown, EXPANSION, step, strength=0.45)
    maps = dict(_maps(image, detection, step))
    return contact_sheet(
        [
            ("seed alone", before),
            ("similar to the seed", maps["seed similarity"]),
            (f"grown by {len(grown)} patches", after),
            ("mask values", maps["mask values"]),
        ],
        columns=2,
        height=HEIGHT,
    )
