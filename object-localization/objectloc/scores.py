"""How well boxes fit: IoU, CorLoc, and the files of results."""

import csv
import io
import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from objectloc.ground_truth import DataSet, check_boxes
from objectloc.localize import BOXES, SUFFIX
from spectralseg.errors import InputError
from spectralseg.files.records import FOUND_BOX, check
from spectralseg.files.storage import atomic_write, load_json
from spectralseg.progress import phase, say

CORRECT = 0.5  # least IoU
EPSILON = 1e-7
COLUMNS = ("file", "xmin", "ymin", "xmax", "ymax", "iou", "correct")


def bbox_iou(box: ArrayLike, boxes: ArrayLike) -> np.ndarray:
    """Intersection over union of one box (4,) with several (N, 4) -> (N,) float64.

    Corners are (xmin, ymin, xmax, ymax), maxima exclusive. As in the published evaluation, 1e-7 is added to heights and
    to the union; boxes that share no area have 0.
    """
    box, boxes = np.asarray(box, dtype=np.float64), np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(min=0).prod(axis=1)

    def area(corners: np.ndarray) -> np.ndarray:
        return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1] + EPSILON)

    return shared / (area(box) + area(boxes) - shared + EPSILON)


@dataclass
class Scores:
    """What came of a data set's images.

    Attributes
    ----------
    rows
        id -> file, box, best IoU with an annotated box (None without evaluation).
    truth
        id -> annotated boxes (N, 4).
    without_objects
        Ids of images in which nothing is annotated (or, with ``no_hard``, nothing but hard objects).
    problems
        id -> why an image could not be evaluated.
    """

    rows: dict[str, tuple[str, list[float], float | None]] = field(default_factory=dict)
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    without_objects: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def correct(self) -> int:
        """Images whose box fits an annotated one."""
        return sum(iou is not None and iou >= CORRECT for _, _, iou in self.rows.values())

    @property
    def corloc(self) -> float:
        """CorLoc in per cent; NaN without images."""
        return 100 * self.correct / len(self.rows) if self.rows else float("nan")


@phase("reading the annotations")
def read_truth(images: DataSet, scores: Scores) -> list[str]:
    """Note the annotated boxes of all images; return the ids of those that have any."""
    if images.find_boxes is None:
        raise InputError(f"{images.name} has no annotated boxes to compare with")
    for image_id in sorted(images.files):
        try:
            boxes = images.find_boxes(image_id)
        except InputError as error:
            note_problem(scores, image_id, str(error))
            continue
        if len(boxes) > 0:
            scores.truth[image_id] = boxes
        else:
            scores.without_objects.append(image_id)
    return list(scores.truth)


def note_problem(scores: Scores, image_id: str, problem: str) -> None:
    """Count an image that cannot be evaluated, and say why; the others go on."""
    scores.problems[image_id] = problem
    say(f"localize: {image_id} left out: {problem}")


def read_boxes(images: DataSet, ids: Iterable[str], folder: Path, scores: Scores) -> list[str]:
    """Compare the found boxes of ``ids`` with the annotated ones; return the ids that have no found box."""
    missing = []
    for image_id in ids:
        path = folder / BOXES / f"{image_id}{SUFFIX}"
        if (content := load_json(path)) is None:
            missing.append(image_id)
            continue
        record = check(content, FOUND_BOX, path, "delete it and run again")
        box, size = record["box"], (record["height"], record["width"])
        iou = None
        if image_id in scores.truth:
            try:
                check_boxes(scores.truth[image_id], size, images.annotation.replace("{id}", image_id))
            except InputError as error:
                note_problem(scores, image_id, str(error))
                continue
            iou = float(bbox_iou(box, scores.truth[image_id]).max())
        scores.rows[image_id] = (record["file"], box, iou)
    return missing


@phase("writing the results")
def write_results(folder: Path, scores: Scores, settings: dict[str, Any], pickles: bool) -> None:
    """Write ``boxes.csv`` and ``results.json``; with annotations ``results.txt``; and, if asked for, the pickles.

    ``preds.pkl`` and ``gt.pkl`` are the published ones: image's file name -> box (4,), boxes (N, 4).
    """
    evaluated = any(iou is not None for _, _, iou in scores.rows.values())
    _write(folder / "boxes.csv", _table(scores).encode(errors="surrogateescape"))
    if pickles:
        found = {file: np.array(box) for file, box, _ in scores.rows.values()}
        _write(folder / "preds.pkl", pickle.dumps(found))
        if evaluated:
            truth = {file: scores.truth[image_id] for image_id, (file, _, _) in scores.rows.items()}
            _write(folder / "gt.pkl", pickle.dumps(truth))
    content: dict[str, Any] = {"corloc": scores.corloc, "correct": scores.correct} if evaluated else {}
    content |= {
        "images": len(scores.rows),
        "without_objects": scores.without_objects,
        "problems": scores.problems,
        "settings": settings,
        "boxes": {
            file: {"box": box} | ({} if iou is None else {"iou": round(iou, 6)})
            for file, box, iou in scores.rows.values()
        },
    }
    _write(folder / "results.json", (json.dumps(content, indent=1) + "\n").encode())
    if evaluated:
        _write(folder / "results.txt", f"corloc,{scores.corloc:.1f},,\n".encode())


def _table(scores: Scores) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for file, box, iou in scores.rows.values():
        score = ("", "") if iou is None else (f"{iou:.6f}", int(iou >= CORRECT))
        writer.writerow((file, *(f"{side:.10g}" for side in box), *score))
    return text.getvalue()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
