"""Batches of augmented images: what a step sees depends on the seed and the step alone, so runs can be resumed."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from semanticseg.augment import Augmentation, seed_of
from semanticseg.matches import UNMATCHED
from semanticseg.pseudolabels import VOID, Labelled, read_segments
from spectralseg.errors import InputError
from spectralseg.files.images import load_image


class PseudoLabelled(Dataset):
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
        How label maps of patches become pixels, see :func:`semanticseg.pseudolabels.at_pixels`.
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

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | str:
        """(epoch, index) -> image (3, C, C) uint8 and classes (C, C) uint8, 255 void; or the reason why not.

        The reason is returned because an error would come out of a worker process as a traceback.
        """
        epoch, index = key
        entry = self.files[index]
        try:
            image = load_image(entry.image)
            clusters = read_segments(entry.segments, image.height, image.width, self.num_clusters, self.enlarge)
            labels = self.table[clusters]
            if (unmatched := (labels == UNMATCHED) & (clusters != VOID)).any():
                raise InputError(f"{entry.segments}: matching says nothing about its cluster {clusters[unmatched][0]}")
        except InputError as error:
            return str(error)
        return self.augmentation(image, labels, seed_of(self.seed, epoch, index))


class Batches(Sampler):
    """Keys (epoch, index) of one process's share of each batch, from batch number ``start`` to ``end``.

    Every epoch is a new permutation; images that do not fill its last batch are left out. ``batch_size`` counts the
    images of all processes.
    """

    def __init__(
        self, images: int, batch_size: int, seed: int, start: int, end: int, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__()
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.start, self.end, self.rank, self.world = start, end, rank, world
        self.per_epoch = images // batch_size

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled, order = -1, torch.empty(0)
        share = self.batch_size // self.world
        for number in range(self.start, self.end):
            epoch, position = divmod(number, self.per_epoch)
            if epoch != shuffled:
                order = torch.randperm(self.images, generator=torch.Generator().manual_seed(seed_of(self.seed, epoch)))
                shuffled = epoch
            first = position * self.batch_size + self.rank * share
            yield [(epoch, index) for index in order[first : first + share].tolist()]


def check_batches(images: int, batch_size: int, world: int) -> None:
    """Raise an :class:`InputError` if there cannot be a batch, or a process would have fewer than two images of it."""
    if batch_size > images:
        raise InputError(f"data.loader.batch_size={batch_size} is more than the {images} images to train on; lower it")
    if batch_size % world or batch_size // world < 2:
        raise InputError(
            f"data.loader.batch_size={batch_size} must be a multiple of the {world} processes and give each at least 2"
            " images: batch norm needs them"
        )


def make_loader(dataset: PseudoLabelled, batches: Batches, num_workers: int) -> DataLoader:
    """A loader that reads in up to ``num_workers`` processes, no more than there are cores for this one.

    They are spawned: forking after torch has started its threads may deadlock.
    """
    workers = min(num_workers, (os.cpu_count() or 1) // batches.world)
    context = "spawn" if workers else None
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, multiprocessing_context=context
    )


def collate(items: list[tuple[Tensor, Tensor] | str]) -> tuple[Tensor, Tensor] | str:
    """Images (B, 3, C, C) and classes (B, C, C), or the reason why one of them cannot be had."""
    for item in items:
        if isinstance(item, str):
            return item
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.stack(labels)
