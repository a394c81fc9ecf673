"""Rows of ``stream``'s tables: what was found in an image, and back again.

Masks are COCO RLE at the grid of patches.
"""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle

from spectralseg.api import object_box
from spectralseg.errors import InputError
from spectralseg.files.shards import TableFolder, pyarrow  # or a line that says how to have it
from spectralseg.files.storage import parse_json
from spectralseg.mathematics.objects import score
from spectralseg.running.stage import differences

DESCRIPTION = "stream.json"
BOX = pyarrow.list_(pyarrow.int32(), 4)  # (xmin, ymin, xmax, ymax) in pixels, maxima exclusive
SCORE, RLE = pyarrow.float32(), pyarrow.string()
SEGMENT = pyarrow.struct([("label", pyarrow.int32()), ("counts", RLE), ("score", SCORE), ("box", BOX)])
FLOATS = {"float16": (pyarrow.float16(), np.float16), "float32": (pyarrow.float32(), np.float32)}


def schema_of(eigenvectors: str, metadata: bytes) -> pyarrow.Schema:
    """The columns, in order; ``metadata``: JSON of the settings."""
    columns = [(name, pyarrow.string()) for name in ("id", "shard", "name", "error")]
    columns += [(name, pyarrow.int32()) for name in ("width", "height", "rows", "columns", "step")]
    columns += [("box", BOX), ("score", SCORE), ("mask", RLE), ("segments", pyarrow.list_(SEGMENT))]
    columns += [("eigenvalues", pyarrow.list_(pyarrow.float32()))]
    if eigenvectors in FLOATS:
        columns += [("eigenvectors", pyarrow.list_(FLOATS[eigenvectors][0]))]
    return pyarrow.schema(columns, {"spectralseg": metadata})


def made_by(folder: TableFolder) -> dict[str, Any] | None:
    """The settings of a folder's tables; None where it tells nothing."""
    told = folder.read_bytes(DESCRIPTION)
    if told is None:
        return None
    made = parse_json(told.decode(errors="replace"), f"{folder.path}/{DESCRIPTION}")
    if not isinstance(made, dict) or not isinstance(made.get("arguments"), dict):
        raise InputError(f"{folder.path}/{DESCRIPTION} does not tell how its tables were made; choose another folder")
    return made["arguments"]


def check_table(table: pyarrow.Table, made: dict[str, Any], path: str) -> None:
    """Raise an :class:`InputError` if a table is none of ``stream``, or was made with other settings."""
    told = (table.schema.metadata or {}).get(b"spectralseg", b"{}")
    difference = differences(parse_json(told.decode(errors="replace"), path), made)
    if difference:
        raise InputError(f"{path} was made {difference}, unlike {DESCRIPTION}; take it out of the folder")


def row_of(eigs: dict[str, Any], mask: np.ndarray, segments: np.ndarray, boxes: dict[str, Any], kind: str) -> dict:
    """The row of an image, by its eigenvectors record, mask and segments (rows, columns) and boxes record."""
    (rows, columns), step = mask.shape, eigs["step"]
    box = object_box(mask)
    own = dict(zip(boxes["segment_indices"], boxes["bboxes_original_resolution"], strict=True))
    row = {"height": eigs["shape"][2], "width": eigs["shape"][3], "rows": rows, "columns": columns, "step": step}
    row |= {"box": None if box is None else [side * step for side in box], "score": score(mask), "mask": _encode(mask)}
    row["segments"] = [
        {"label": label, "counts": _encode(segments == label), "score": score(segments == label), "box": own.get(label)}
        for label in np.unique(segments).tolist()
    ]
    row["eigenvalues"] = eigs["eigenvalues"].numpy()
    if kind in FLOATS:
        row["eigenvectors"] = eigs["eigenvectors"].numpy().astype(FLOATS[kind][1]).ravel()
    return row


def mask_of(row: dict[str, Any]) -> np.ndarray:
    """(rows, columns) bool."""
    return _decode(row["mask"], row)


def segments_of(row: dict[str, Any]) -> np.ndarray:
    """(rows, columns) uint8, segment numbers."""
    found = np.zeros((row["rows"], row["columns"]), np.uint8)
    for segment in row["segments"]:
        found[_decode(segment["counts"], row)] = segment["label"]
    return found


def eigenvectors_of(row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (K,) and eigenvectors (K, T), float32."""
    values = torch.tensor(row["eigenvalues"], dtype=torch.float32)
    return values, torch.tensor(row["eigenvectors"], dtype=torch.float32).view(len(values), -1)


def _encode(mask: np.ndarray) -> str:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def _decode(counts: str, row: dict[str, Any]) -> np.ndarray:
    return rle.decode({"size": [row["rows"], row["columns"]], "counts": counts.encode()}).astype(bool)
