"""Pictures of label maps: overlays with a legend, and rows of image, truth and predictions."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from spectralseg.drawing.pictures import GAP, INK, PAPER, caption_font, contact_sheet, overlay
from spectralseg.files.label_maps import voc_palette
from spectralseg.models.lab_hog import rgb_to_lab

FONT_SIZE = 14
VEIL = 0.6


def shown(labels: NDArray) -> NDArray[np.uint8]:
    """Labels (H, W) with -1 for void -> numbers of VOC's colours: class 0 gets one of its own, void none (0)."""
    return _unlike_colours()[(np.asarray(labels).astype(np.int16) + 1).clip(0, 255)]


@functools.cache
def _unlike_colours() -> NDArray[np.uint8]:
    """VOC's colours, each as far from all before it, in CIELAB, as can be: VOC's own 1 and 9 are both red."""
    rgb = torch.tensor(voc_palette(), dtype=torch.float32).view(-1, 3).T[None, ..., None] / 255
    lab = rgb_to_lab(rgb)[0, ..., 0].T
    order, nearest = [0], torch.full((len(lab),), torch.inf)
    for _ in range(len(lab) - 1):
        nearest = torch.minimum(nearest, (lab - lab[order[-1]]).norm(dim=1))
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    return np.array(order, dtype=np.uint8)


def colour_of(label: int) -> tuple[int, int, int]:
    """RGB of a label."""
    red, green, blue = np.array(voc_palette()).reshape(-1, 3)[shown(np.array(label))].tolist()
    return red, green, blue


def with_legend(photograph: Image.Image, labels: NDArray, names: Sequence[str]) -> Image.Image:
    """The photograph under a veil of colours, and at its right the name of each label in it, the largest first.

    Parameters
    ----------
    photograph
        Of any size.
    labels
        (H, W) whole numbers, -1 void; enlarged to the photograph if smaller.
    names
        Name of each label.

    Returns
    -------
    PIL.Image.Image
        RGB, as high as the photograph (or the legend, if that is higher), and wider.
    """
    numbers, counts = np.unique(labels[labels >= 0], return_counts=True)
    order = numbers[np.argsort(-counts, kind="stable")]
    font = caption_font(FONT_SIZE)
    line = round(1.6 * FONT_SIZE)
    width = max((round(font.getlength(names[number])) for number in order), default=0) + line + 3 * GAP
    height = max(photograph.height, 2 * GAP + line * len(order))
    picture = Image.new("RGB", (photograph.width + width, height), PAPER)
    picture.paste(overlay(photograph, shown(labels), VEIL), (0, 0))
    draw = ImageDraw.Draw(picture)
    for row, number in enumerate(order):
        left, middle = photograph.width + GAP, GAP + row * line + line // 2
        draw.rectangle(
            (left, middle - FONT_SIZE // 2, left + FONT_SIZE, middle + FONT_SIZE // 2), colour_of(number), outline=INK
        )
        draw.text((left + line, middle), names[number], fill=INK, font=font, anchor="lm")
    return picture


def rows_of_labels(
    photographs: Sequence[Image.Image], columns: Mapping[str, Sequence[NDArray]], ids: Sequence[str]
) -> Image.Image:
    """A row per image: the photograph, then its label maps as veils.

    ``columns`` are captions with one label map (H, W) per photograph, -1 void.
    """
    panels = []
    for index, photograph in enumerate(photographs):
        panels.append((ids[index], photograph))
        for caption, maps in columns.items():
            panels.append((caption, overlay(photograph, shown(maps[index]), VEIL)))
    return contact_sheet(panels, columns=1 + len(columns))
