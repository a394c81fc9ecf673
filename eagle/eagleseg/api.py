"""Semantic segments of pictures by a trained model, without files: for notebooks and other programs.

>>> from eagleseg.api import SemanticSegmenter
>>> segment = SemanticSegmenter("outputs/eagle/photographs/best.pth")  # doctest: +SKIP
>>> segment("photo.jpg").show()  # doctest: +SKIP
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from eagleseg.checkpoints.trained import load_trained
from eagleseg.evaluation.evaluate import Probabilities, eagle_crf, label_maps
from eagleseg.evaluation.photographs import enlarged, in_tiles, label_names, whole
from eagleseg.evaluation.pictures import colour_of, with_legend
from eagleseg.evaluation.scores import as_classes
from spectralseg.drawing.pictures import as_html
from spectralseg.errors import InputError, check_choice
from spectralseg.files.images import as_picture
from spectralseg.files.storage import save_picture
from spectralseg.running.devices import pick_device
from spectralseg.settings import check_range

Picture = Image.Image | str | os.PathLike[str] | np.ndarray


@dataclass(frozen=True)
class SemanticSegmentation:
    """Labels of a picture of H x W pixels.

    Attributes
    ----------
    labels
        (H, W) int16: numbers of ``names``, -1 where a cluster has no class.
    names
        Of the classes, or ``cluster 0``, ... of a model that was trained without labels.
    image
        The picture, RGB and upright.
    """

    labels: np.ndarray
    names: list[str]
    image: Image.Image

    @property
    def colours(self) -> dict[str, tuple[int, int, int]]:
        """Name -> RGB in :meth:`picture`, of the labels that the picture has."""
        return {self.names[label]: colour_of(label) for label in np.unique(self.labels).tolist() if label >= 0}

    def picture(self) -> Image.Image:
        """The photograph under a veil of the labels' colours, with their names beside it."""
        return with_legend(self.image, self.labels, self.names)

    def show(self) -> None:
        """Open :meth:`picture` in the system's viewer."""
        self.picture().show()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`picture` as PNG or JPEG."""
        save_picture(Path(path), self.picture())

    def _repr_html_(self) -> str:
        return as_html(self.picture(), "segmentation")


class SemanticSegmenter:
    """A trained model, ready to segment pictures.

    Parameters
    ----------
    checkpoint, weights, dtype, device
        As of ``demo_segmentation.py``: ours (``.pth``) or a published Lightning file; weights of the backbone, where
        they are not those of the training run.

    Raises
    ------
    spectralseg.errors.InputError
        No such file, or not of a trained model; the backbone's weights cannot be had.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        weights: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        self.trained = load_trained(Path(checkpoint), pick_device(device), weights, dtype)
        self.names = label_names(self.trained)

    @overload
    def __call__(self, image: Picture, *arguments: Any, **options: Any) -> SemanticSegmentation: ...

    @overload
    def __call__(
        self, image: list[Picture] | tuple[Picture, ...], *arguments: Any, **options: Any
    ) -> list[SemanticSegmentation]: ...

    def __call__(
        self,
        image: Picture | list[Picture] | tuple[Picture, ...],
        res: int = 320,
        tile: int | None = None,
        flip: bool = True,
        crf: bool = True,
        crf_backend: str = "auto",
        probe: str = "cluster",
        max_side: int = 1024,
    ) -> SemanticSegmentation | list[SemanticSegmentation]:
        """Segment a picture, or several.

        Parameters
        ----------
        image
            Any Pillow image or the path of one, or an array of uint8, (H, W, 3) RGB or (H, W) grey; or a list of such.
        res
            The network sees the picture with so many pixels on its shorter side.
        tile
            Instead, it sees squares of so many pixels of the picture as it is, which overlap by half: for large ones.
        flip, crf, crf_backend
            As of ``demo_segmentation.py``.
        probe
            ``cluster``, or ``linear`` of a model that was trained with labels.
        max_side
            Probabilities and CRF have at most so many pixels on the longer side; labels are enlarged. Without ``tile``.

        Raises
        ------
        spectralseg.errors.InputError
            No picture, a number out of its range, an unknown name or a probe that has learned nothing.
        """
        for name, value in (("res", res), ("tile", tile), ("max_side", max_side)):
            check_range(name, value, least=1)
        check_choice("probe", probe, ("cluster", "linear"))
        if probe not in self.names:
            raise InputError("the linear probe has learned nothing: the model was trained without labels")
        sharpening = eagle_crf(crf_backend, self.trained.device, 0) if crf else None
        pictures = image if isinstance(image, list | tuple) else [image]
        results = []
        for photograph in map(as_picture, pictures):
            if tile is None:
                probabilities = whole(self.trained, photograph, res, flip, max_side)
            else:
                probabilities = in_tiles(self.trained, photograph, tile, flip)
            wanted = Probabilities(probabilities.image, {probe: probabilities.probes[probe]})
            labels = label_maps(wanted, sharpening)[probe]
            if probe == "cluster" and self.trained.match:
                labels = as_classes(labels, self.trained.match)
            results.append(SemanticSegmentation(enlarged(labels, photograph.size), self.names[probe], photograph))
        return results if pictures is image else results[0]
