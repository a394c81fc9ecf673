"""What ``vis_segmentations`` shows: photographs, label maps and boxes, found and kept without reading them all."""

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectralseg.errors import InputError
from spectralseg.files.images import read_images_list, view_of
from spectralseg.files.label_maps import load_labels
from spectralseg.files.records import load_list
from spectralseg.running.stage import DESCRIPTION_FILE, describe

DRAWN = ("bboxes_original_resolution", "segment_indices")


@dataclass(frozen=True)
class Box:
    """(xmin, ymin, xmax, ymax) in pixels of the photograph, maxima exclusive; its text; the label that colours it."""

    corners: tuple[float, float, float, float]
    text: str
    label: int


@dataclass(frozen=True)
class Sources:
    """Paths of photographs and of label maps by id, of which any may be absent, and records of boxes by id.

    ``cluster_offset`` is the label of cluster 0 in the label maps, None if these are no semantic maps.
    """

    photographs: dict[str, Path]
    label_maps: dict[str, Path]
    records: dict[str, dict[str, Any]] | None
    bbox_file: str
    cluster_offset: int | None

    def view(self, image_id: str) -> tuple[tuple[str, int], ...]:
        """How the photograph was resized or cropped before its boxes were found: arguments of ``load_image``."""
        return tuple(view_of((self.records or {}).get(image_id, {})).items())

    def boxes(self, image_id: str) -> list[Box]:
        """Boxes of an image, coloured as their regions in the label maps; an error if there is no record, or no use."""
        if self.records is None:
            return []
        if image_id not in self.records:
            raise InputError(f"{self.bbox_file} has no entry for {image_id}")
        record = self.records[image_id]
        corners, segments = (record[name] for name in DRAWN)
        clusters = record.get("clusters", [None] * len(segments))
        boxes = []
        for box, segment, cluster in zip(corners, segments, clusters, strict=True):
            label = segment if cluster is None or self.cluster_offset is None else cluster + self.cluster_offset
            text = f"{segment}" if cluster is None else f"{segment}, cluster {cluster}"
            boxes.append(Box(tuple(box), text, label % 256))
        return boxes


class LabelIndex:
    """Which labels each label map holds. A file is read when it is asked about, and again when it has changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, tuple[int, ...]]] = {}

    def labels(self, path: Path) -> tuple[int, ...]:
        """Labels in ascending order; none of a file that is missing or damaged."""
        stamp = time_stamp(path)
        if stamp == 0:
            self._known.pop(path, None)
            return ()
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            try:
                labels = tuple(np.flatnonzero(np.bincount(load_labels(path).ravel())).tolist())
            except InputError:  # said where the image is on view
                labels = ()
            known = self._known[path] = (stamp, labels)
        return known[1]

    def seen(self, paths: Iterable[Path]) -> tuple[int, list[int]]:
        """How many of these files have been read, and the labels found in them."""
        read = [self._known[path][1] for path in paths if path in self._known]
        return len(read), sorted(set().union(*read))

    def find(
        self, paths: dict[str, Path], label: int, count: int, progress: Callable[[int], None] = lambda done: None
    ) -> list[str]:
        """The first ``count`` ids whose label map holds ``label``; ``progress`` is told how many ids are behind it."""
        found: list[str] = []
        for done, (image_id, path) in enumerate(paths.items()):
            if len(found) >= count:
                break
            read_before = len(self._known)
            if label in self.labels(path):
                found.append(image_id)
            if len(self._known) > read_before and done % 50 == 0:
                progress(done)
        return found


def time_stamp(path: str | Path) -> int:
    """Time of the last change, or 0 where there is nothing."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


def missing_label_maps(sources: Sources) -> list[str]:
    """Ids of the images that have no label map, found without opening any."""
    folder = next(iter(sources.label_maps.values())).parent
    names = _file_names(folder, time_stamp(folder))
    return [image_id for image_id, path in sources.label_maps.items() if path.name not in names]


@functools.lru_cache(maxsize=16)
def _file_names(folder: Path, _stamp: int) -> frozenset[str]:
    return frozenset(os.listdir(folder))


def load_sources(images_list: str, images_root: str, segmentations_dir: str, bbox_file: str | None) -> Sources:
    """Read the list and the boxes, again only when they have changed.

    Raises
    ------
    InputError
        A file or folder is missing or no use.
    """
    folder = Path(segmentations_dir)
    if not folder.is_dir():
        raise InputError(f"no such segmentations_dir: {folder}")
    stamps = (time_stamp(images_list), time_stamp(folder / DESCRIPTION_FILE), time_stamp(bbox_file or ""))
    return _load_sources(images_list, Path(images_root), folder, bbox_file, stamps)


@functools.lru_cache(maxsize=4)
def _load_sources(images_list: str, root: Path, folder: Path, bbox_file: str | None, _stamps: tuple) -> Sources:
    files = read_images_list(images_list, root)
    return Sources(
        photographs={image_id: root / name for image_id, name in files.items()},
        label_maps={image_id: folder / f"{image_id}.png" for image_id in files},
        records=None if bbox_file is None else {record["id"]: record for record in load_list(bbox_file, DRAWN)},
        bbox_file=bbox_file or "",
        cluster_offset=_cluster_offset(describe(folder)),
    )


def _cluster_offset(description: dict[str, Any] | None) -> int | None:
    """Label of cluster 0 in a folder of semantic maps, sharpened ones included; None for other label maps."""
    while isinstance(description, dict):
        if "cluster_offset" in description:
            return description["cluster_offset"]
        description = description.get("arguments") or description.get("segmentations")
    return None
