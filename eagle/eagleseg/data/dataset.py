"""The data sets as training, evaluation and prediction see them: squares, labels, the blurred view, stored features.

Source: Kim et al., EAGLE, CVPR 2024, and Hamilton et al., STEGO, ICLR 2022 (sizes, crops, views).
"""

import functools
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from eagleseg.data.crops import generator_for, open_crops
from eagleseg.data.folders import open_source
from eagleseg.data.records import EigenvectorRecords, FeatureRecords
from eagleseg.data.settings import DataSettings
from eagleseg.data.sources import Source
from eagleseg.data.views import (
    cut,
    flip_and_zoom,
    jitter,
    label_tensor,
    maybe_blurred,
    to_picture,
)
from spectralseg.errors import InputError
from spectralseg.files.images import find_images, to_tensor

__all__ = [
    "DataSettings",
    "EagleDataset",
    "build_dataset",
    "image_folder",
    "to_picture",
]


class EagleDataset(Dataset):
    """Squares of ``res`` pixels of the images of a source.

    An item is a dict: ``id`` (str), ``index`` (int), ``img`` (3, res, res) float32 RGB in [0, 1]; with labels
    ``label`` (res, res) int64, -1 for void; in training ``img_blur``, ``img`` as it is or blurred; from stored records
    ``features`` (3D, h, w) and ``eigs`` (eigen_cluster - 1, h, w), float32.

    Random draws depend on the seed, the epoch and the index alone: not on the number of workers or processes, nor on
    whether features are stored.

    Parameters
    ----------
    source
        Images and labels.
    settings
        Of the view.
    res
        Pixels per side, at least 1.
    training
        Whether there is a blurred view, augmentation, a random crop and stored records.
    """

    def __init__(self, source: Source, settings: DataSettings, res: int, training: bool) -> None:
        if res < 1:
            raise InputError(f"res={res}: must be at least 1 pixel")
        self.source, self.settings, self.res, self.training = source, settings, res, training
        self.features: FeatureRecords | None = None
        self.eigs: EigenvectorRecords | None = None
        if training and settings.features_dir:
            self.features = FeatureRecords(settings.features_dir, self.ids, res, settings.patch_size)
        if training and settings.eigs_dir:
            count = settings.eigen_cluster
            self.eigs = EigenvectorRecords(settings.eigs_dir, self.ids, res, settings.patch_size, count)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def name(self) -> str:
        """Name of the data set, for messages."""
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self.source.class_names

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.source.class_names)

    @property
    def has_labels(self) -> bool:
        """Whether every image has a label map."""
        return self.source.has_labels

    @functools.cached_property
    def ids(self) -> list[str]:
        """File stem of each image."""
        return [self.source.id(index) for index in range(len(self.source))]

    def path(self, index: int) -> Path:
        """The file of an image."""
        return Path(self.source.images[index])

    def photograph(self, index: int) -> Image.Image:
        """An image, RGB and whole."""
        return self.source.photograph(index)

    def require_backbone(self, model_name: str, weights: str) -> None:
        """Raise an :class:`InputError` where the stored features are of another backbone.

        Parameters
        ----------
        model_name, weights
            What the backbone in use tells of itself (:class:`spectralseg.models.backbones.Backbone`).
        """
        if self.features is not None:
            self.features.require_backbone(self.source.id(0), model_name, weights)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """An item by its index, or by (epoch, index).

        An :class:`InputError` names the file that is missing, damaged or does not fit.
        """
        settings, source = self.settings, self.source
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = generator_for(settings.seed, epoch, index)
        image, label = source.pair(index)
        crop = settings.loader_crop_type if self.training else "center"
        image, label_picture = cut(image, label, self.res, crop, generator)
        if self.training and settings.augment_geometric:
            image, label_picture = flip_and_zoom(image, label_picture, generator)
        rgb = to_tensor(image)
        item: dict[str, Any] = {"id": source.id(index), "index": index, "img": rgb}
        if label_picture is not None:
            item["label"] = label_tensor(label_picture)
        if self.training:
            second = jitter(rgb, generator) if settings.augment_photometric else rgb
            item["img_blur"] = maybe_blurred(second, generator)
        if self.features is not None:
            item["features"] = self.features.load(item["id"], source.images[index])
        if self.eigs is not None:
            item["eigs"] = self.eigs.load(item["id"], source.images[index])
        return item


def build_dataset(settings: DataSettings, split: str, training: bool, res: int | None = None) -> EagleDataset:
    """The data set of a split.

    Parameters
    ----------
    settings
        Which data set.
    split
        ``train``, ``val``, or another one that the data set has.
    training
        Crops (``crop_type``) instead of whole images, and the second view; validation and evaluation see whole images.
    res
        Pixels per side; default: ``settings.res``.

    Raises
    ------
    InputError
        Settings that cannot be, or files that are missing.
    """
    source = open_crops(settings, split) if training and settings.crop_type else open_source(settings, split)
    return EagleDataset(source, settings, settings.res if res is None else res, training)


def image_folder(folder: str | Path, res: int) -> EagleDataset:
    """The photographs in a folder and the folders below it, sorted, without labels and classes.

    Raises
    ------
    InputError
        There is no such folder, no image in it, or two have one file stem, so that results would overwrite each other.
    """
    images, root = sorted(map(str, find_images(folder).values())), str(folder)
    return EagleDataset(Source(root, (), images, None), DataSettings(root, crop_type=None), res, False)
