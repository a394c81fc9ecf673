"""Boxes of a simple table: a CSV with the columns file, xmin, ymin, xmax, ymax, one row per object."""

import csv
import math
from pathlib import Path

from objectloc.coco import Annotated
from spectralseg.errors import InputError

SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_table(path: Path) -> Annotated:
    """Boxes by image. Further columns are ignored; a row without any coordinate is an image without an object.

    Raises
    ------
    InputError
        The file is absent, no text, or lacks a column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in ("file", *SIDES) if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {', '.join(missing)}; its first line must name the columns")
            annotated: Annotated = {}
            for row in reader:
                _add(annotated, row, f"{path}, line {reader.line_num}")
    except FileNotFoundError:
        raise InputError(f"no such annotations: {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from None
    return annotated


def _add(annotated: Annotated, row: dict[str, str | None], where: str) -> None:
    name = (row["file"] or "").strip()
    if not name:
        raise InputError(f"{where}: no file is named")
    boxes = annotated.setdefault(name, [])
    texts = [(row[side] or "").strip() for side in SIDES]
    if isinstance(boxes, str) or not any(texts):
        return
    try:
        box = tuple(float(text) for text in texts)
        if not all(map(math.isfinite, box)):
            raise ValueError
    except ValueError:
        annotated[name] = f"{where}: a box needs four numbers, not '{','.join(texts)}'"
        return
    boxes.append(box)
