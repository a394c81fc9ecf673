"""Augmented images with their pseudo-labels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

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


def check_batches(images: int, batch_size: int, world: int) -> None:
    """Raise an :class:`InputError` if there cannot be a batch, or a process would have fewer than two images of it."""
    if batch_size > images:
        raise InputError(f"data.loader.batch_size={batch_size} is more than the {images} images to train on; lower it")
    if batch_size % world or batch_size // world < 2:
        raise InputError(
            f"data.loader.batch_size={batch_size} must be a multiple of the {world} processes and give each at least 2"
            " images: batch norm needs them"
        )
