"""Where the images and labels of each data set lie: COCO-Stuff, Cityscapes, Potsdam, folders of one's own.

Layouts: ``data/README.md``. What a list or a folder names but does not hold is an error at the start, not in the middle
of an epoch.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from eagleseg.data.settings import DataSettings
from eagleseg.data.sources import MAX_CLASSES, VOID, MatSource, Source, label_table
from spectralseg.errors import InputError
from spectralseg.files.images import find_images, read_lines
from spectralseg.files.label_maps import CITYSCAPES_27_CLASSES, COCO_STUFF_27_CLASSES, POTSDAM_3_CLASSES

# Class of each of COCO-Stuff's fine labels 0..181: its supercategory (Caesar et al., CVPR 2018).
COCO_STUFF_COARSE = (
    *(9, 11, 11, 11, 11, 11, 11, 11, 11, 8, 8, 8, 8, 8, 8, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6, 6, 6, 6, 6, 6, 6, 6),
    *(10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 5, 5, 5, 5, 5, 5, 5, 5, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2),
    *(3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4),
    *(17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17, 17, 23, 15, 15, 17, 15, 21, 15, 25, 13, 13, 13, 13, 13, 22),
    *(26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15, 17, 16, 15, 22, 24, 21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21),
    *(26, 21, 24, 20, 17, 14, 21, 26, 15, 23, 20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14),
    *(18, 18, 18, 18, 18, 18, 18, 26, 26, 19, 19, 24),
)
COCO_STUFF_3_CLASSES = ("sky", "plant", "ground")  # Ji et al., IIC, ICCV 2019; all else is void
CITYSCAPES_FIRST = 7  # label ids below are void (Cordts et al., CVPR 2016)
POTSDAM_COARSE = (0, 1, 2, 2, 0, 1)  # roads, buildings, vegetation, trees, cars, clutter
POTSDAM_RAW = (38, 15, 15)  # images, rows and columns of tiles

COCO_STUFF_LISTS = {  # data set -> name of the list of ids for training, for validation
    "cocostuff27": ("Coco164kFull_Stuff_Coarse.txt", "Coco164kFull_Stuff_Coarse_7.txt"),
    "cocostuff3": ("Coco164kFew_Stuff_6.txt", "Coco164kFew_Stuff_6.txt"),
}
POTSDAM_LISTS = {  # split -> lists, and whether every tile has labels
    "train": (["labelled_train.txt"], True),
    "val": (["labelled_test.txt"], True),
    "train+val": (["labelled_train.txt", "labelled_test.txt"], True),
    "unlabelled_train": (["unlabelled_train.txt"], False),
    "all": (["all.txt"], False),
}
LAYOUT = "(set pytorch_data_dir to the folder of the data sets; data/README.md shows the layout)"
DATA_SETS = ("cocostuff27", "cocostuff3", "cityscapes", "potsdam", "potsdamraw", "directory")


def class_names_of(settings: DataSettings) -> tuple[str, ...]:
    """Names of the classes of ``settings.dataset_name``, in order.

    Raises
    ------
    InputError
        No such data set, or a directory whose number of classes is not told.
    """
    name = settings.dataset_name
    known = {
        "cocostuff27": COCO_STUFF_27_CLASSES,
        "cocostuff3": COCO_STUFF_3_CLASSES,
        "cityscapes": CITYSCAPES_27_CLASSES,
        "potsdam": POTSDAM_3_CLASSES,
        "potsdamraw": POTSDAM_3_CLASSES,
    }
    if name in known:
        return known[name]
    if name != "directory":
        raise InputError(f"no dataset_name '{name}'; known are {', '.join(DATA_SETS)}")
    count, names = settings.dir_dataset_n_classes, settings.dir_dataset_class_names
    if count is None:
        raise InputError("dataset_name=directory needs dir_dataset_n_classes, the number of classes")
    if not 1 <= count <= MAX_CLASSES:
        raise InputError(f"dir_dataset_n_classes={count}: must be from 1 to {MAX_CLASSES}")
    if names is not None and len(names) != count:
        raise InputError(f"dir_dataset_class_names has {len(names)} names, but dir_dataset_n_classes is {count}")
    return tuple(names) if names is not None else tuple(f"class {number}" for number in range(count))


def open_source(settings: DataSettings, split: str) -> Source:
    """The whole images of a split of ``settings.dataset_name``.

    Raises
    ------
    InputError
        No such data set or split; a folder, list, image or label map that is missing; a split without images.
    """
    names = class_names_of(settings)
    root = root_of(settings)
    if settings.dataset_name in COCO_STUFF_LISTS:
        return _coco_stuff(root / "cocostuff", split, settings.dataset_name, names)
    if settings.dataset_name == "cityscapes":
        return _cityscapes(root / "cityscapes", split, names)
    if settings.dataset_name == "potsdam":
        return _potsdam(root / "potsdam", split, names)
    if settings.dataset_name == "potsdamraw":
        return _potsdam_raw(root / "potsdamraw" / "processed", names)
    return _directory(directory_of(settings), split, names, settings.dir_dataset_void)


def root_of(settings: DataSettings) -> Path:
    """Folder of all data sets; an error if there is none."""
    root = Path(settings.pytorch_data_dir)
    if not settings.pytorch_data_dir or not root.is_dir():
        raise InputError(f"no such pytorch_data_dir: {settings.pytorch_data_dir or '(none given)'}")
    return root


def directory_of(settings: DataSettings) -> Path:
    """Folder of ``dataset_name=directory``."""
    if not settings.dir_dataset_name:
        raise InputError("dataset_name=directory needs dir_dataset_name, its folder in pytorch_data_dir")
    return Path(settings.pytorch_data_dir) / settings.dir_dataset_name


def _coco_stuff(root: Path, split: str, name: str, class_names: Sequence[str]) -> Source:
    folders = {"train": ["train2017"], "val": ["val2017"], "train+val": ["train2017", "val2017"]}
    _check_split(split, folders, name)
    images, labels = [], []
    for folder in folders[split]:
        ids = _read_list(root / "curated" / folder / COCO_STUFF_LISTS[name][folder == "val2017"])
        images += _present(root / "images" / folder, [f"{image_id}.jpg" for image_id in ids])
        labels += _present(root / "annotations" / folder, [f"{image_id}.png" for image_id in ids])
    coarse = list(COCO_STUFF_COARSE)
    if name == "cocostuff3":
        three = {COCO_STUFF_27_CLASSES.index(kept): number for number, kept in enumerate(COCO_STUFF_3_CLASSES)}
        coarse = [three.get(number, VOID) for number in coarse]
    return Source(name, class_names, images, labels, label_table(coarse))


def _cityscapes(root: Path, split: str, class_names: Sequence[str]) -> Source:
    _check_split(split, ("train", "val", "test"), "cityscapes")
    folder, suffix = root / "leftImg8bit" / split, "_leftImg8bit.png"
    images, labels = [], []
    for city in sorted(path.name for path in _folder(folder).iterdir() if path.is_dir()):
        found = sorted(name for name in os.listdir(folder / city) if name.endswith(suffix) and name[0] != ".")
        images += [str(folder / city / name) for name in found]
        truths = [f"{name.removesuffix(suffix)}_gtFine_labelIds.png" for name in found]
        labels += _present(root / "gtFine" / split / city, truths)
    table = label_table([*[VOID] * CITYSCAPES_FIRST, *range(len(class_names))])
    return Source(f"cityscapes ({folder})", class_names, images, labels, table)


def _potsdam(root: Path, split: str, class_names: Sequence[str]) -> Source:
    _check_split(split, POTSDAM_LISTS, "potsdam")
    lists, has_labels = POTSDAM_LISTS[split]
    files = [f"{tile}.mat" for name in lists for tile in _read_list(root / name)]
    images = _present(root / "imgs", files)
    labels = _present(root / "gt", files) if has_labels else None
    return MatSource("potsdam", class_names, images, labels, label_table(POTSDAM_COARSE))


def _potsdam_raw(folder: Path, class_names: Sequence[str]) -> Source:
    """All tiles, whatever the split, as published; image and labels are in one file."""
    names = [f"{image}_{row}_{column}.mat" for image, row, column in np.ndindex(*POTSDAM_RAW)]
    files = _present(folder, names)
    return MatSource("potsdamraw", class_names, files, files, label_table(POTSDAM_COARSE))


def _directory(root: Path, split: str, class_names: Sequence[str], void: int | None) -> Source:
    images = folder_images(root / "imgs" / split)
    labels = None
    if (root / "labels" / split).is_dir():
        wanted = [f"{Path(image).stem}.png" for image in images]
        labels = _present(root / "labels" / split, wanted)
    if void is not None and not len(class_names) <= void <= 255:
        raise InputError(f"dir_dataset_void={void}: must lie from dir_dataset_n_classes={len(class_names)} to 255")
    hint = (
        f" (dir_dataset_n_classes={len(class_names)}: 0 to {len(class_names) - 1}, and 255 for void; another number for"
        " void: dir_dataset_void)"
    )
    table = label_table(range(len(class_names)), () if void is None else (void,))
    return Source(str(root), class_names, images, labels, table, hint)


def folder_images(folder: Path) -> list[str]:
    """Paths of the images in a folder, sorted; an error if there is no such folder, or no image in it."""
    return sorted(map(str, find_images(_folder(folder), depth=0).values()))


def _check_split(split: str, known: Iterable[str], name: str) -> None:
    if split not in known:
        raise InputError(f"{name} has no split '{split}'; it has {', '.join(known)}")


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"no such folder: {path} {LAYOUT}")
    return path


def _read_list(path: Path) -> list[str]:
    """Ids in a text file, one per line."""
    if not path.is_file():
        raise InputError(f"no such list of images: {path} {LAYOUT}")
    return [line.strip() for line in read_lines(path, "the list")]


def _present(folder: Path, names: Sequence[str]) -> list[str]:
    """Paths of files that must lie in a folder."""
    there = set(os.listdir(_folder(folder)))
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} files are missing in {folder}, the first is {missing[0]}")
    return [str(folder / name) for name in names]
