"""Images, true masks and label maps of a data set: paired by id, read one at a time, sharpened by a CRF if asked."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from semanticseg.augment import Augmentation, seed_of
from semanticseg.matches import UNMATCHED
from semanticseg.settings import Data
from spectralseg.commands.semantic import SharpenSettings, extract_crf_segmentations
from spectralseg.errors import InputError, check_choice
from spectralseg.files.images import first_words, load_image, open_picture
from spectralseg.files.label_maps import ENLARGE, STEPS, find_step, load_labels, stretch_labels, upscale_labels
from spectralseg.files.storage import atomic_write, make_folder

Labels = NDArray[np.uint8]
VOID = 255  # of masks and label maps


@dataclass(frozen=True)
class Labelled:
    """The files of one image; an empty path where they are not asked for."""

    id: str
    image: Path = Path()
    truth: Path = Path()
    segments: Path = Path()


def read_ids(path: str | Path) -> list[str]:
    """Ids, one per line, sorted; whatever follows white space is ignored, as VOC's lists have it.

    Raises
    ------
    InputError
        The list is absent, no text, or empty.
    """
    return sorted(set(first_words(path, "the list of ids")))


def pair(
    ids: Sequence[str],
    images: dict[str, Path] | None = None,
    masks_dir: str | Path | None = None,
    segments_dir: str | Path | None = None,
) -> list[Labelled]:
    """The files of each id: its image, its true mask and its label map, as far as they are asked for.

    Raises
    ------
    InputError
        A folder is absent, or a file of an id: the first one that is missing is named, and how many more are.
    """
    if images is not None:
        _require([f"{image_id} has no image in data.images_dir" for image_id in ids if image_id not in images], ids)
    for kind, setting, folder in (
        ("true mask", "data.masks_dir", masks_dir),
        ("label map", "segments_dir", segments_dir),
    ):
        if folder is None:
            continue
        if not Path(folder).is_dir():
            raise InputError(f"{setting}: no such folder: {folder}")
        present = set(os.listdir(folder))
        _require([f"the {kind} {folder}/{name}.png is missing" for name in ids if f"{name}.png" not in present], ids)

    def png(folder: str | Path | None, image_id: str) -> Path:
        return Path() if folder is None else Path(folder) / f"{image_id}.png"

    return [
        Labelled(name, Path() if images is None else images[name], png(masks_dir, name), png(segments_dir, name))
        for name in ids
    ]


def _require(missing: list[str], ids: Sequence[str]) -> None:
    if missing:
        others = f", and so are {len(missing) - 1} more of {len(ids)}" if len(missing) > 1 else ""
        raise InputError(f"{missing[0]}{others}")


def train_ids(data: Data, images: dict[str, Path]) -> list[str]:
    """Ids to train on: those of ``train_list``, or of every image that is not in ``val_list``."""
    if data.train_list is not None:
        return read_ids(data.train_list)
    held_out = set(read_ids(data.val_list))
    ids = [image_id for image_id in images if image_id not in held_out]
    if not ids:
        raise InputError(f"every image of {data.images_dir} is in {data.val_list}: none is left to train on")
    return ids


def read_segments(path: Path, height: int, width: int, num_clusters: int, enlarge: str = "patches") -> Labels:
    """Label map (height, width), enlarged if it is one of patches; 255 is void, a pixel without a label.

    Parameters
    ----------
    path
        A PNG at the size of the image, or of its patches.
    height, width
        Of the image, in pixels.
    num_clusters
        The background included.
    enlarge
        See :func:`at_pixels`.

    Raises
    ------
    InputError
        Its size is neither the image's nor that of the patches, or it holds a number that is no cluster.
    """
    labels = load_labels(path)
    if labels.max(initial=0) >= num_clusters and (largest := labels[labels != VOID].max(initial=0)) >= num_clusters:
        raise InputError(
            f"{path} holds the cluster number {largest}, but they end at {num_clusters - 1} (data.num_clusters)"
        )
    return at_pixels(labels, height, width, path, enlarge)


def at_pixels(labels: Labels, height: int, width: int, path: Path, enlarge: str = "patches") -> Labels:
    """A label map at the size of its image.

    Parameters
    ----------
    labels
        (rows, columns) of the pixels, which stay as they are, or of the patches.
    height, width
        Of the image, in pixels.
    path
        Named if the size is wrong.
    enlarge
        ``patches``: every patch labels its own pixels. ``released``: the map is stretched over the whole image, border
        included, as by the published data set (``semantic-segmentation/dataset/voc.py``); a label then lies up to a
        patch further right and down than what it was computed from.

    Raises
    ------
    InputError
        The size is none that :func:`spectralseg.files.label_maps.find_step` knows, or there is no such ``enlarge``.
    """
    check_choice("enlarge", enlarge, ENLARGE)
    if labels.shape == (height, width):
        return labels
    step = patch_step(labels.shape, height, width, path)
    if enlarge == "released":
        return stretch_labels(labels, height, width)
    return upscale_labels(labels, height, width, step)


def patch_step(shape: tuple[int, ...], height: int, width: int, path: Path) -> int:
    """Patch size in pixels, from the ``shape`` (rows, columns) of a label map and the size of its image."""
    step = find_step(shape, height, width)
    if step is None:
        raise InputError(
            f"{path} has {shape[1]}x{shape[0]} cells, which fits no image of {width}x{height} pixels: neither its"
            f" pixels nor its patches of {', '.join(map(str, STEPS[:-1]))} or {STEPS[-1]} pixels"
        )
    return step


class PseudoLabelled(Dataset[tuple[Tensor, Tensor]]):
    """Augmented images with their pseudo-labels.

    Parameters
    ----------
    files
        Image and label map of each.
    table
        (256,) class of each cluster.
    num_clusters
        Of the label maps, the background included.
    augmentation, seed
        The view of image ``index`` in ``epoch`` follows from the three numbers.
    enlarge
        How label maps of patches become pixels, see :func:`at_pixels`.
    """

    def __init__(
        self,
        files: Sequence[Labelled],
        table: NDArray[np.uint8],
        num_clusters: int,
        augmentation: Augmentation,
        seed: int,
        enlarge: str = "patches",
    ) -> None:
        self.files, self.table, self.num_clusters, self.enlarge = files, table, num_clusters, enlarge
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(epoch, index) -> image (3, C, C) uint8 and classes (C, C) uint8, 255 void."""
        epoch, index = key
        entry = self.files[index]
        image = load_image(entry.image)
        clusters = read_segments(entry.segments, image.height, image.width, self.num_clusters, self.enlarge)
        labels = self.table[clusters]
        if (unmatched := (labels == UNMATCHED) & (clusters != VOID)).any():
            raise InputError(f"{entry.segments}: matching says nothing about its cluster {clusters[unmatched][0]}")
        return self.augmentation(image, labels, seed_of(self.seed, epoch, index))


def sharpen(
    data: Data,
    images: dict[str, Path],
    ids: Sequence[str],
    segments_dir: str,
    output_dir: Path,
    processes: int,
    backend: str,
) -> str:
    """Write label maps with sharp edges (:func:`spectralseg.mathematics.crf.dense_crf`); return their folder.

    Those that exist are kept. Started by a launcher, each process does its share.

    Raises
    ------
    InputError
        A label map cannot be sharpened, or ``output_dir`` holds others.
    """
    first = pair(ids[:1], images, None, segments_dir)[0]
    with open_picture(first.image) as image:
        width, height = image.size
    shape = load_labels(first.segments).shape
    step = 16 if shape == (height, width) else patch_step(shape, height, width, first.segments)
    make_folder(output_dir)
    listed = output_dir / "images.txt"
    with atomic_write(listed) as file:
        file.write("".join(f"{images[image_id].name}\n" for image_id in ids).encode(errors="surrogateescape"))
    extract_crf_segmentations(
        str(listed),
        str(data.images_dir),
        str(segments_dir),
        str(output_dir),
        SharpenSettings(crf_backend=backend, num_classes=data.clusters, downsample_factor=step),
        processes,
    )
    return str(output_dir)
