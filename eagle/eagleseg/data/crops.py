"""Crops of a data set: where they are cut, how they are numbered, and reading them back.

Layout: ``cropped/<data set>_<crop_type>_crop_<ratio>/{img,label}/<split>/<n>.{jpg,png}`` with n = 5 * index of the
image + number of the crop, labels stored + 1, 0 for void (Hamilton et al., STEGO, ICLR 2022, code).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eagleseg.data.folders import class_names_of, directory_of, root_of
from eagleseg.data.settings import DataSettings
from eagleseg.data.sources import VOID, Source, label_table
from spectralseg.errors import InputError
from spectralseg.running.stage import describe

CROPS = 5  # of an image
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, as Pillow takes them


def generator_for(seed: int, epoch: int, index: int) -> torch.Generator:
    """Randomness of one image in one pass over the data: the same in whatever process, and after a resume."""
    state = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def crop_boxes(
    width: int, height: int, ratio: float, crop_type: str = "five", generator: torch.Generator | None = None
) -> list[Box]:
    """Five crops of int(ratio * side) pixels of an image: the corners and the centre, or five at random places.

    Returns
    -------
    list
        Top left, top right, bottom left, bottom right, centre; for ``random`` in the order they were drawn.
    """
    columns, rows = int(width * ratio), int(height * ratio)
    if columns == 0 or rows == 0:
        raise InputError(f"an image of {width}x{height} pixels is too small for crops of ratio {ratio}")
    right, bottom = width - columns, height - rows
    if crop_type == "five":
        corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    else:
        drawn = [torch.randint(last + 1, (CROPS,), generator=generator).tolist() for last in (right, bottom)]
        corners = list(zip(*drawn, strict=True))
    return [(left, top, left + columns, top + rows) for left, top in corners]


def cropped_folder(settings: DataSettings) -> Path:
    """Folder of the crops of a data set; a directory's is named after it."""
    name = settings.dataset_name
    if name == "directory":
        name = directory_of(settings).name
    crops = f"{name}_{settings.crop_type}_crop_{float(settings.crop_ratio)}"
    return root_of(settings) / "cropped" / crops


def open_crops(settings: DataSettings, split: str) -> Source:
    """The crops of a split, in the order of their numbers.

    Raises
    ------
    InputError
        There is no ``pytorch_data_dir``; they were not made, or not all of them: a number or a label map is missing.
    """
    class_names = class_names_of(settings)
    folder = cropped_folder(settings)
    images, labels = folder / "img" / split, folder / "label" / split
    if not images.is_dir():
        raise InputError(f"no such folder: {images}; make the crops with crop_datasets.py, or set crop_type=null")
    found = _numbers(images, ".jpg")
    made_by = describe(images)
    expected = len(found)
    if made_by is not None and isinstance(made_by["arguments"].get("images"), int):
        expected = CROPS * made_by["arguments"]["images"]
    missing = next((number for number, present in enumerate(found) if number != present), len(found))
    if missing < max(expected, len(found)) or len(found) % CROPS:
        raise InputError(f"{images} lacks the crop {missing}.jpg: run crop_datasets.py again, it goes on there")
    paths = None
    if labels.is_dir():
        lacking = sorted(set(found) - set(_numbers(labels, ".png")))
        if lacking:
            raise InputError(f"{labels} lacks {lacking[0]}.png, and {len(lacking) - 1} more label maps of its crops")
        paths = _Numbered(labels, ".png", len(found))
    table = label_table([VOID, *range(len(class_names))])
    return Source(str(folder), class_names, _Numbered(images, ".jpg", len(found)), paths, table)


class _Numbered(Sequence[str]):
    """Paths <folder>/0<suffix>, ..., without a text for each of a million crops in every process."""

    def __init__(self, folder: Path, suffix: str, length: int) -> None:
        self.folder, self.suffix, self.length = str(folder), suffix, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> str:
        if not -self.length <= index < self.length:
            raise IndexError(index)
        return os.path.join(self.folder, f"{index % self.length}{self.suffix}")


def _numbers(folder: Path, suffix: str) -> list[int]:
    """Numbers of the files in a folder, ascending."""
    stems = (name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal())


def stored_label(label: np.ndarray) -> np.ndarray:
    """Label map (H, W) of :class:`eagleseg.data.sources.Source` as crops store it: class + 1, 0 for void."""
    return np.where(label == VOID, 0, label + 1).astype(np.uint8)
