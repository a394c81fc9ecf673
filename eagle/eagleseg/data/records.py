"""Features and eigenvectors that the extract stage wrote, for the very square that the loader shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectralseg.errors import InputError
from spectralseg.files.images import patch_grid
from spectralseg.files.records import load_eigs, load_features, patch_features
from spectralseg.files.storage import list_ids
from spectralseg.models.backbones import STATISTICS

BLOCKS = (-3, -2, -1)  # whose keys EAGLE joins


def names(blocks: Sequence[int]) -> list[str]:
    """Names of the keys of several blocks in what the extract stage computes and stores."""
    return [f"k_block_{block}" for block in blocks] if len(blocks) > 1 else ["k"]


def features_from_record(record: dict[str, Any], path: Path) -> Tensor:
    """What the featurizer gives for an image, from a record of ``extract_features`` for the blocks -3, -2, -1.

    Returns
    -------
    Tensor
        (C, h, w) float32.

    Raises
    ------
    InputError
        The record, of the file ``path``, holds the keys of other blocks.
    """
    wanted = ["k"] if record.get("model_name") in STATISTICS else names(BLOCKS)
    missing = [name for name in wanted if name not in record]
    if missing:
        raise InputError(
            f"{path}: the features of '{record.get('id')}' lack {', '.join(missing)}: extract_features"
            " --which_block=-3,-2,-1"
        )
    rows, columns = patch_grid(record["shape"][-2], record["shape"][-1], record["patch_size"])
    keys = [patch_features(record, name, path)[0] for name in wanted]
    return torch.cat(keys, dim=-1).float().mT.unflatten(-1, (rows, columns))


class Records:
    """The files of a folder of the extract stage, one per image of a data set.

    Parameters
    ----------
    folder
        Written by ``extract_features`` (blocks -3,-2,-1) or ``extract_eigs``.
    ids
        Of the images.
    res
        Pixels of the loader's square: the files must be of ``--resize res --center_crop res``.
    patch_size
        Pixels per patch of the backbone.

    Raises
    ------
    InputError
        The folder is absent, or lacks the file of an image.
    """

    setting, suffix = "", ".pth"

    def __init__(self, folder: str, ids: list[str], res: int, patch_size: int) -> None:
        self.folder, self.res, self.patch_size = Path(folder), res, patch_size
        there = set(list_ids(folder, self.suffix))
        missing = [image_id for image_id in ids if image_id not in there]
        if missing:
            some = f"{missing[0]}{self.suffix} is not there"
            raise InputError(f"{self.setting}={folder} lacks {len(missing)} of {len(ids)} images: {some}")

    def _check_view(self, record: dict[str, Any], path: Path, image: str) -> None:
        """Whether the record shows what the loader shows of the file ``image``."""
        shape = tuple(record.get("shape", ()))[-2:]
        views = (record.get("resize"), record.get("center_crop"))
        if shape and (shape != (self.res, self.res) or views not in ((None, None), (self.res, self.res))):
            raise InputError(
                f"{path} is of {shape[1]}x{shape[0]} pixels with resize={views[0]}, center_crop={views[1]}; the loader"
                f" shows {self.res}x{self.res}: extract with --resize {self.res} --center_crop {self.res}"
            )
        file = record.get("file")
        if file is not None and Path(file).name != Path(image).name:
            raise InputError(f"{path} was made from {file}, not from {image}")


class FeatureRecords(Records):
    """Keys of the last three blocks."""

    setting = "features_dir"

    def load(self, image_id: str, image: str) -> Tensor:
        """(3D, h, w) float32 features of an image, of the path ``image``."""
        path = self.folder / f"{image_id}{self.suffix}"
        record = load_features(path)
        self._check_view(record, path, image)
        if record["patch_size"] != self.patch_size:
            raise InputError(f"{path} has patches of {record['patch_size']} pixels; patch_size is {self.patch_size}")
        return features_from_record(record, path)

    def require_backbone(self, image_id: str, model_name: str, weights: str) -> None:
        """Raise an :class:`InputError` where an image's record tells of another backbone than this one."""
        path = self.folder / f"{image_id}{self.suffix}"
        record = load_features(path)
        for name, own in (("model_name", model_name), ("weights", weights)):
            stored = record.get(name, own)  # the published code does not tell the weights
            if stored != own:
                raise InputError(f"features_dir: {path} is of {name} {stored}, the backbone is of {own}")


class EigenvectorRecords(Records):
    """Laplacian eigenvectors, a fixed EiCue.

    ``count`` eigenvectors are used, the first of which, being constant, is left out.
    """

    setting = "eigs_dir"

    def __init__(self, folder: str, ids: list[str], res: int, patch_size: int, count: int) -> None:
        super().__init__(folder, ids, res, patch_size)
        self.count = count

    def load(self, image_id: str, image: str) -> Tensor:
        """(count - 1, h, w) float32: eigenvectors 1, 2, ... of an image, of the path ``image``."""
        path = self.folder / f"{image_id}{self.suffix}"
        record = load_eigs(path)
        self._check_view(record, path, image)
        matrix = record.get("which_matrix", "laplacian")
        if matrix != "laplacian":
            raise InputError(f"{path} is of which_matrix={matrix}; an EiCue is made of Laplacian eigenvectors")
        vectors = record["eigenvectors"]
        if len(vectors) < self.count:
            raise InputError(f"{path} has {len(vectors)} eigenvectors; eigen_cluster={self.count} needs as many")
        side = self.res // self.patch_size
        if vectors.shape[1] != side * side:
            raise InputError(
                f"{path} has eigenvectors of {vectors.shape[1]} cells; {side}x{side} patches of {self.patch_size}"
                " pixels are needed (no --image_downsample_factor)"
            )
        return vectors[1 : self.count].reshape(self.count - 1, side, side)
