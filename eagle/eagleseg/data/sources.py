"""Photographs and label maps in files of whatever data set: every label map comes out as classes and ``VOID``."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spectralseg.errors import InputError
from spectralseg.files.images import load_image
from spectralseg.files.label_maps import load_labels

VOID = 255  # of the label maps here; -1 in the data set's items, because losses and metrics leave that out
MAX_CLASSES = 254
_BEYOND = 254  # in a table: a number that no label map may hold


class Source:
    """Photographs, and label maps of the same names.

    Parameters
    ----------
    name
        Of the data set, for messages.
    class_names
        In the order of their numbers.
    images, labels
        Path of each photograph and, where there are any, of its label map.
    table
        (256,) uint8: what a number in a label file stands for: a class, or ``VOID``; see :func:`label_table`.
    hint
        What to do about a number that stands for nothing.

    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        images: Sequence[str],
        labels: Sequence[str] | None,
        table: NDArray[np.uint8] | None = None,
        hint: str = "",
    ) -> None:
        if not images:
            raise InputError(f"{name} holds no image for this split")
        self.name, self.class_names, self.images, self.labels = name, tuple(class_names), images, labels
        self.table, self.hint = table, hint

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_labels(self) -> bool:
        """Whether every photograph has a label map."""
        return self.labels is not None

    def id(self, index: int) -> str:
        """File stem of a photograph."""
        return Path(self.images[index]).stem

    def photograph(self, index: int) -> Image.Image:
        """RGB, whole, as :func:`spectralseg.files.images.load_image` decodes it."""
        return load_image(self.images[index])

    def label(self, index: int) -> NDArray[np.uint8]:
        """(H, W) uint8: classes 0..n-1 and ``VOID``.

        Raises
        ------
        InputError
            The label map cannot be read, or holds numbers that are no class of this data set.
        """
        assert self.labels is not None, "has_labels was not asked for"
        assert self.table is not None
        path = self.labels[index]
        numbers = self._numbers(path)
        label = self.table[numbers]
        if (label == _BEYOND).any():
            wrong = ", ".join(map(str, np.unique(numbers[label == _BEYOND])[:5]))
            raise InputError(f"{path} holds the label {wrong}, beyond those of {self.name}{self.hint}")
        return label

    def pair(self, index: int) -> tuple[Image.Image, NDArray[np.uint8] | None]:
        """A photograph and its label map, or None without labels; an :class:`InputError` if their sizes differ."""
        image = self.photograph(index)
        if self.labels is None:
            return image, None
        label = self.label(index)
        if label.shape != image.size[::-1]:
            sizes = (
                f"{image.width}x{image.height} pixels, but {self.labels[index]} has {label.shape[1]}x{label.shape[0]}"
            )
            raise InputError(f"{self.images[index]} has {sizes}")
        return image, label

    def _numbers(self, path: str) -> NDArray[np.uint8]:
        return load_labels(path)


class MatSource(Source):
    """Photographs and label maps in MATLAB files, under the keys ``img`` (H, W, >= 3) and ``gt`` (H, W)."""

    def photograph(self, index: int) -> Image.Image:
        """RGB of the first three channels."""
        path = self.images[index]
        pixels = _mat_array(path, "img")
        if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
            raise InputError(f"{path}: 'img' is {pixels.dtype} of shape {pixels.shape}, not uint8 of (H, W, 3 or more)")
        return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))

    def _numbers(self, path: str) -> NDArray[np.uint8]:
        numbers = _mat_array(path, "gt")
        if numbers.ndim != 2 or ((numbers < 0) | (numbers > 255) | (numbers % 1 != 0)).any():
            raise InputError(f"{path}: 'gt' is no map (H, W) of whole numbers from 0 to 255")
        return numbers.astype(np.uint8)


def _mat_array(path: str, key: str) -> NDArray:
    from scipy.io import loadmat, whosmat

    try:
        with open(path, "rb") as file:
            content = loadmat(file, variable_names=[key])
            if key not in content:
                file.seek(0)
                names = ", ".join(entry[0] for entry in whosmat(file)) or "nothing"
                raise InputError(f"{path} has no key '{key}' (it holds {names})")
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except InputError:
        raise
    except Exception as error:  # a different type for each kind of damage
        message = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as a MATLAB file: {message or type(error).__name__}") from None
    return np.asarray(content[key])


def label_table(classes: Iterable[int], void: Iterable[int] = ()) -> NDArray[np.uint8]:
    """Lookup table of :class:`Source`: number i stands for the i-th of ``classes``; ``void`` and 255 are void."""
    table = np.full(256, _BEYOND, dtype=np.uint8)
    values = list(classes)
    table[: len(values)] = values
    table[[*void, 255]] = VOID
    return table
