"""Objects against annotated ones: class-agnostic AP and AR of boxes and masks, as COCO defines them, by pycocotools.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and its evaluation code.
"""

import contextlib
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from objectloc.coco import load_coco
from objectloc.ground_truth import DataSet, upright_size
from objectloc.scores import CORRECT, bbox_iou
from spectralseg.drawing.charts import precision_recall_picture
from spectralseg.errors import InputError
from spectralseg.files.storage import atomic_write, make_folder, save_json, save_picture

CATEGORY = 1
MOST_OBJECTS = (1, 10, 100)  # of an image, for AR
NAMES = (
    "AP",
    "AP50",
    "AP75",
    "APsmall",
    "APmedium",
    "APlarge",
    "AR1",
    "AR10",
    "AR100",
    "ARsmall",
    "ARmedium",
    "ARlarge",
)
KINDS = {"bbox": "boxes", "segm": "masks"}
COLUMNS = ("file", "annotated", "found", "best_score", "iou_of_best", "correct")


@dataclass(frozen=True)
class Evaluation:
    """Scores in per cent by kind (``boxes``, ``masks``), and what a picture of precision and recall is drawn from.

    ``curves``: kind and IoU -> precision (101,) at recalls 0, 0.01, ..., 1.
    """

    scores: dict[str, dict[str, float]]
    curves: dict[str, np.ndarray]


def evaluate_objects(path: Path, images: DataSet, folder: Path) -> dict[str, Any]:
    """Compare ``objects.json`` with a data set; write ``results.json``, ``objects.csv`` and ``precision_recall.png``.

    Parameters
    ----------
    path
        A COCO instances file with scores, as of ``extract.py extract_objects``.
    images
        The data set. Images are told by their file names.
    folder
        Of the results.

    Returns
    -------
    dict
        What ``results.json`` holds: scores in per cent (-1: nothing of that size is annotated), and CorLoc of the box
        with the best score.

    Raises
    ------
    InputError
        A file that is absent, damaged or of other images; nothing is annotated.
    """
    found = load_found(path)
    truth = annotated(images)
    absent = [name for name in images.files.values() if name not in found]
    if absent:
        raise InputError(f"{path} says nothing of {len(absent)} images of {images.name}, {absent[0]} the first")
    if not truth["annotations"]:
        raise InputError(f"nothing is annotated in {images.name}")
    predictions = [
        {"image_id": image["id"], "category_id": CATEGORY, **entry}
        for image in truth["images"]
        for entry in found[image["file_name"]]
    ]
    evaluation = average_precision(truth, predictions)
    rows = per_image(truth, found)
    counted = [row for row in rows if row[1]]
    corloc = 100 * sum(row[-1] for row in counted) / len(counted)
    results = {"objects": str(path), "images": len(rows), "found": len(predictions), "corloc": corloc}
    results |= {"annotated": len(truth["annotations"]), "scores": evaluation.scores}
    make_folder(folder)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
    with atomic_write(folder / "objects.csv") as file:
        file.write(table.getvalue().encode())
    save_picture(folder / "precision_recall.png", precision_recall_picture(evaluation.curves))
    save_json(folder / "results.json", results, indent=1)
    return results


def load_found(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Objects by image of a COCO file with scores: file name -> entries with ``bbox``, ``segmentation``, ``score``."""
    content = load_coco(path, outlines=True)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
        for entry in content["annotations"]:
            box, score = [float(side) for side in entry["bbox"]], float(entry["score"])
            if len(box) != 4 or not np.isfinite([*box, score]).all():
                raise ValueError
            kept: dict[str, Any] = {"bbox": box, "score": score}
            if "segmentation" in entry:
                kept["segmentation"] = entry["segmentation"]
            found[names[entry["image_id"]]].append(kept)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} is no file of found objects: an entry lacks its image, its bbox of four numbers or its score"
        ) from None
    return found


def annotated(images: DataSet) -> dict[str, Any]:
    """A data set as COCO's content, of one category: with outlines where its annotations have them, else boxes."""
    if images.find_boxes is None:
        raise InputError(f"{images.name} has no annotated boxes to compare with")
    outlined = _outlined(images)
    entries: list[dict[str, Any]] = []
    pictures = []
    for number, (image_id, name) in enumerate(sorted(images.files.items()), 1):
        height, width = upright_size(images.path(image_id))
        pictures.append({"id": number, "file_name": name, "width": width, "height": height})
        if outlined is not None:
            own = outlined.get(name, [])
        else:
            own = [_as_entry(box) for box in images.find_boxes(image_id)]
        for entry in own:
            entries.append({**entry, "id": len(entries) + 1, "image_id": number, "category_id": CATEGORY})
    return {"images": pictures, "annotations": entries, "categories": [{"id": CATEGORY, "name": "object"}]}


def _outlined(images: DataSet) -> dict[str, list[dict[str, Any]]] | None:
    """COCO's own entries by file name, where each of them has an outline."""
    if images.coco is None:
        return None
    content = load_coco(images.coco, outlines=True)
    if not all("segmentation" in entry for entry in content["annotations"]):
        return None
    names = {image["id"]: image["file_name"] for image in content["images"]}
    entries: dict[str, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        kept = {name: entry[name] for name in ("bbox", "area", "segmentation") if name in entry}
        entries.setdefault(names.get(entry.get("image_id"), ""), []).append(
            {**kept, "iscrowd": entry.get("iscrowd", 0)}
        )
    return entries


def _as_entry(box: np.ndarray) -> dict[str, Any]:
    xmin, ymin, xmax, ymax = box.tolist()
    sides = [xmin, ymin, xmax - xmin, ymax - ymin]
    return {"bbox": sides, "area": sides[2] * sides[3], "iscrowd": 0}


def average_precision(truth: dict[str, Any], predictions: list[dict[str, Any]]) -> Evaluation:
    """AP and AR of boxes, and of masks where both sides have them.

    Parameters
    ----------
    truth
        COCO's content.
    predictions
        COCO's result entries: ``image_id``, ``category_id``, ``bbox``, ``score``, and ``segmentation`` for masks.
    """
    scores: dict[str, dict[str, float]] = {}
    curves: dict[str, np.ndarray] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells what it does
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        results = COCO()
        results.dataset = {
            **truth,
            "annotations": [_result(number, each) for number, each in enumerate(predictions, 1)],
        }
        results.createIndex()
        for kind, name in KINDS.items():
            if kind == "segm" and not all("segmentation" in each for each in [*truth["annotations"], *predictions]):
                continue
            evaluation = COCOeval(coco, results, kind)
            evaluation.params.maxDets = list(MOST_OBJECTS)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            scores[name] = {
                key: 100 * float(v) if v >= 0 else -1.0 for key, v in zip(NAMES, evaluation.stats, strict=True)
            }
            precision = evaluation.eval["precision"][:, :, 0, 0, -1]  # of IoU, recall; all sizes, 100 objects
            curves |= {f"{name}, IoU 0.5": precision[0], f"{name}, IoU 0.75": precision[5]}
    return Evaluation(scores, curves)


def _result(number: int, entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "id": number, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}


def per_image(truth: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    """A row of ``COLUMNS`` for each image: how well the box with the best score fits an annotated one."""
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in truth["images"]}
    for entry in truth["annotations"]:
        if not entry["iscrowd"]:
            boxes[entry["image_id"]].append(_corners(entry["bbox"]))
    rows: list[tuple[Any, ...]] = []
    for image in truth["images"]:
        own, known = found[image["file_name"]], boxes[image["id"]]
        best = max(own, key=lambda entry: entry["score"], default=None)
        fits = 0.0 if best is None or not known else float(bbox_iou(_corners(best["bbox"]), known).max())
        counts = (image["file_name"], len(known), len(own))
        rows.append((*counts, "" if best is None else best["score"], round(fits, 6), int(fits >= CORRECT)))
    return rows


def _corners(sides: list[float]) -> list[float]:
    x, y, width, height = sides
    return [x, y, x + width, y + height]
