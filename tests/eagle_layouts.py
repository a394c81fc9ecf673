"""EAGLE's data sets in their layouts on disk, made small for a test from any pictures with labels."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from shared_data import shared

Pair = tuple[Image.Image, np.ndarray]  # RGB picture, (H, W) uint8 of label numbers
Splits = Mapping[str, Sequence[Pair]]


def scene(seed: int, width: int = 64, height: int = 48, classes: int = 3) -> Pair:
    """A noisy picture of one rectangle for each class above 0, in the class's colour."""
    random = np.random.default_rng(seed)
    label = np.zeros((height, width), dtype=np.uint8)
    for number in range(1, classes):
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        label[top : top + height // 3, left : left + width // 3] = number
    colours = np.array([(40, 60, 80), (200, 60, 50), (60, 200, 90), (90, 90, 220), (220, 220, 60)])
    pixels = colours[label % len(colours)] + random.integers(-30, 31, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), label


def scenes(count: int, first: int = 0, **options: int) -> list[Pair]:
    """``count`` of them."""
    return [scene(first + number, **options) for number in range(count)]


def camvid(split: str, count: int) -> list[Pair]:
    """Street scenes of CamVid with labels 0..10, and 11 for void; skips where ../shared is absent."""
    root = shared() / "data" / "CamVid"
    images = sorted((root / "imgs" / split).glob("*.jpg"))[:count]
    labels = [root / "labels" / split / f"{image.stem}.png" for image in images]
    return [
        (Image.open(image).convert("RGB"), np.array(Image.open(label)))
        for image, label in zip(images, labels, strict=True)
    ]


def cityscapes() -> Pair:
    """The one image of Cityscapes with its label ids; skips where ../shared is absent."""
    root = shared() / "data" / "Cityscapes-1"
    (image,), (label,) = (list(root.glob(pattern)) for pattern in ("images/*.png", "annotations/*_labelIds.png"))
    return Image.open(image).convert("RGB"), np.array(Image.open(label))


def potsdam(side: int = 128) -> list[Pair]:
    """Aerial tiles with labels 0..5; skips where ../shared is absent."""
    root = shared() / "data" / "aerial-tiles" / "potsdam"
    (image,), (label,) = (list((root / name).glob("*.png")) for name in ("images", "annotations"))
    picture, numbers = Image.open(image).convert("RGB"), np.array(Image.open(label))
    corners = [(x, y) for y in range(0, picture.height, side) for x in range(0, picture.width, side)]
    return [(picture.crop((x, y, x + side, y + side)), numbers[y : y + side, x : x + side]) for x, y in corners]


def write_directory(root: Path, splits: Splits, labels: bool = True) -> Path:
    """``imgs/<split>/scene0.jpg``, ... and ``labels/<split>/scene0.png``."""
    for split, pairs in splits.items():
        for number, (picture, label) in enumerate(pairs):
            _save(picture, root / "imgs" / split / f"scene{number}.jpg")
            if labels:
                _save(Image.fromarray(label), root / "labels" / split / f"scene{number}.png")
    return root


def write_cocostuff(root: Path, splits: Splits, few: bool = False) -> Path:
    """``cocostuff/`` with the lists of the 27-class data set, or with ``few`` of the 3-class one."""
    for split, pairs in splits.items():
        folder = f"{split}2017"
        first = 1000 * list(splits).index(split)
        ids = [f"{first + number:012d}" for number in range(len(pairs))]
        for image_id, (picture, label) in zip(ids, pairs, strict=True):
            _save(picture, root / "cocostuff" / "images" / folder / f"{image_id}.jpg")
            _save(Image.fromarray(label), root / "cocostuff" / "annotations" / folder / f"{image_id}.png")
        name = "Few_Stuff_6" if few else "Full_Stuff_Coarse_7" if split == "val" else "Full_Stuff_Coarse"
        write_list(root / "cocostuff" / "curated" / folder / f"Coco164k{name}.txt", ids)
    return root


def write_cityscapes(root: Path, splits: Splits, cities: Sequence[str] = ("bonn", "aachen")) -> Path:
    """``cityscapes/`` with the images dealt to cities in turn."""
    for split, pairs in splits.items():
        for number, (picture, label) in enumerate(pairs):
            city = cities[number % len(cities)]
            name = f"{city}_{number:06d}_000019"
            _save(picture, root / "cityscapes" / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            truth = root / "cityscapes" / "gtFine" / split / city
            _save(Image.fromarray(label), truth / f"{name}_gtFine_labelIds.png")
    return root


def write_potsdam(root: Path, splits: Splits, unlabelled: Sequence[Pair] = ()) -> Path:
    """``potsdam/`` with a fourth (infrared) channel, as the published tiles have it."""
    ids: dict[str, list[str]] = {}
    for split, pairs in {**splits, "unlabelled": unlabelled}.items():
        ids[split] = [f"{split}{number}" for number in range(len(pairs))]
        for tile, (picture, label) in zip(ids[split], pairs, strict=True):
            write_mat(root / "potsdam" / "imgs" / f"{tile}.mat", img=_four_channels(picture))
            if split != "unlabelled":
                write_mat(root / "potsdam" / "gt" / f"{tile}.mat", gt=label)
    lists = {"labelled_train": ids.get("train", []), "labelled_test": ids.get("val", [])}
    lists |= {"unlabelled_train": ids["unlabelled"], "all": sum(ids.values(), [])}
    for name, tiles in lists.items():
        write_list(root / "potsdam" / f"{name}.txt", tiles)
    return root


def write_potsdam_raw(root: Path, pairs: Iterable[Pair], grid: tuple[int, int, int]) -> Path:
    """``potsdamraw/processed/`` of images x rows x columns tiles."""
    for (image, row, column), (picture, label) in zip(np.ndindex(*grid), pairs, strict=True):
        path = root / "potsdamraw" / "processed" / f"{image}_{row}_{column}.mat"
        write_mat(path, img=_four_channels(picture), gt=label)
    return root


def write_list(path: Path, names: Sequence[str]) -> None:
    """A name per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_mat(path: Path, **arrays: np.ndarray) -> None:
    """A MATLAB file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, arrays)


def _four_channels(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return np.concatenate([pixels, 255 - pixels[..., :1]], axis=2)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if path.suffix == ".jpg" else {}
    picture.save(path, **options)
