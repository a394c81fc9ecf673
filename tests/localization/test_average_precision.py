"""AP and AR of several objects per image: pycocotools' own figures, by hand, and through main.py."""

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from objectloc.average_precision import annotated, average_precision, per_image
from objectloc.ground_truth import open_data_set
from objectloc.options import DataOptions
from shared_data import shared

BOX = [10.0, 10.0, 20.0, 20.0]


def truth_of(*boxes: list[float], **more: object) -> dict:
    entries = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0} | more
        for n, b in enumerate(boxes, 1)
    ]
    image = {"id": 1, "file_name": "a.png", "width": 100, "height": 80}
    return {"images": [image], "annotations": entries, "categories": [{"id": 1, "name": "object"}]}


def test_by_hand():
    truth = truth_of(BOX, [60.0, 40.0, 20.0, 20.0])
    right = {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.9}
    wrong = right | {"bbox": [40.0, 0.0, 10.0, 10.0], "score": 0.95}
    scores = average_precision(truth, [right]).scores["boxes"]
    assert scores["AP"] == scores["AP50"] == pytest.approx(100 * 51 / 101)  # recall 1/2: 51 of 101 recalls are reached
    assert (scores["AR1"], scores["AR100"], scores["APlarge"]) == (50, 50, -1)
    assert average_precision(truth, [right, wrong]).scores["boxes"]["AP50"] == pytest.approx(50 * 51 / 101)
    assert per_image(truth, {"a.png": [right, wrong]}) == [("a.png", 2, 2, 0.95, 0.0, 0)]
    assert per_image(truth, {"a.png": []}) == [("a.png", 2, 0, "", 0.0, 0)]
    crowd = truth_of(BOX, iscrowd=1)
    crowd["annotations"].append(truth_of([60.0, 40.0, 20.0, 20.0])["annotations"][0] | {"id": 2})
    other = right | {"bbox": [60.0, 40.0, 20.0, 20.0], "score": 0.5}
    assert average_precision(crowd, [right, other]).scores["boxes"]["AP"] == pytest.approx(
        100
    )  # a crowd counts neither way


def jittered(content: dict, seed: int, scale: float = 8) -> dict:
    """Found objects: the annotated ones, some moved, some missing, with random scores."""
    random = np.random.default_rng(seed)
    entries = []
    for entry in content["annotations"]:
        if random.random() < 0.8 and entry["bbox"][2] > 1 and entry["bbox"][3] > 1:
            x, y, width, height = entry["bbox"]
            moved = [x + random.normal(0, scale), y + random.normal(0, scale), width, height]
            kept = {name: entry[name] for name in ("image_id", "segmentation") if name in entry}
            entries.append(
                kept | {"id": len(entries) + 1, "category_id": 1, "bbox": moved, "score": float(random.random())}
            )
    return {"images": content["images"], "annotations": entries, "categories": [{"id": 1, "name": "object"}]}


def directly(truth: dict, found: list[dict], kind: str) -> np.ndarray:
    """Pycocotools alone, by way of its files' reader."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(each) for each in found]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats


@pytest.mark.charts
def test_coco_photographs_as_pycocotools_says(localization, tmp_path):
    """64 images, 547 annotations, through main.py; boxes and masks, whose outlines are polygons and runs."""
    folder = shared() / "data" / "COCO"
    source = folder / "annotations" / "instances_train2017.json"
    content = json.loads(source.read_text())
    found = jittered(content, 0)
    (tmp_path / "objects.json").write_text(json.dumps(found))
    images = ["--dataset", "folder", "--images_root", folder / "images" / "train2017", "--annotations", source]
    results = localization("--objects", tmp_path / "objects.json", *images)
    one = [{"id": 1, "name": "object"}]
    truth = content | {"annotations": [each | {"category_id": 1} for each in content["annotations"]], "categories": one}
    kept = ("image_id", "category_id", "bbox", "score")
    boxes = [{name: entry[name] for name in kept} for entry in found["annotations"]]
    scores = results.summary["scores"]
    np.testing.assert_allclose(list(scores["boxes"].values()), directly(truth, boxes, "bbox"), atol=1e-9)
    assert set(scores) == {"boxes", "masks"}
    assert scores["masks"]["AP50"] > scores["boxes"]["AP50"] > 10  # only the boxes were moved
    rows = list(csv.DictReader((results.folder / "objects.csv").open()))
    assert len(rows) == 64
    correct = [int(row["correct"]) for row in rows if row["annotated"] != "0"]
    assert results.summary["corloc"] == pytest.approx(100 * np.mean(correct))
    with Image.open(results.folder / "precision_recall.png") as picture:
        assert picture.width > 300
    assert "boxes: AP " in results.said


def test_voc_boxes_as_pycocotools_says(localization, tmp_path):
    root = shared() / "data"
    truth = annotated(open_data_set(DataOptions("VOC07", "test", str(root))))
    found = jittered(truth, 1)
    (tmp_path / "objects.json").write_text(json.dumps(found))
    summary = localization("--objects", tmp_path / "objects.json", "--set", "test", "--data_root", root).summary
    assert (summary["images"], set(summary["scores"])) == (300, {"boxes"})
    expected = directly(truth, found["annotations"], "bbox")
    np.testing.assert_allclose(list(summary["scores"]["boxes"].values()), expected, atol=1e-9)


ONE_IMAGE = [{"id": 1, "file_name": "a.png"}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such annotations"),
        ([], "no COCO instances file"),
        ({"images": [], "annotations": []}, "says nothing of 1 images of folder_images, a.png the first"),
        ({"images": ONE_IMAGE, "annotations": [{"image_id": 1, "bbox": BOX}]}, "lacks its image"),
        ({"images": ONE_IMAGE, "annotations": [{"image_id": 1, "bbox": [1, 2, 3], "score": 1}]}, "of four numbers"),
    ],
    ids=["absent", "a list", "no image", "no score", "a short box"],
)
def test_errors(localization, tmp_path: Path, content: object, reason: str):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "a.png")
    (tmp_path / "boxes.csv").write_text("file,xmin,ymin,xmax,ymax\na.png,1,1,9,9\n")
    if content is not None:
        (tmp_path / "objects.json").write_text(json.dumps(content))
    images = ["--dataset", "folder", "--images_root", tmp_path / "images", "--annotations", tmp_path / "boxes.csv"]
    assert reason in localization("--objects", tmp_path / "objects.json", *images, fails=True).error
