"""IoU, CorLoc and the files that hold them."""

import csv
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectloc.scores import EPSILON, Scores, bbox_iou, write_results
from shared_data import reference

boxes = st.tuples(*[st.floats(-50, 500)] * 2, *[st.floats(1, 300)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def test_iou_by_hand():
    """Two squares of 4 that share 1: 1 / 7. The published 1e-7 stand in heights and in the union."""
    expected = 1 / (2 * (2 + EPSILON) + 2 * (2 + EPSILON) - 1 + EPSILON)
    assert bbox_iou((0, 0, 2, 2), [(1, 1, 3, 3)]) == pytest.approx([expected], rel=1e-14)
    assert bbox_iou((0, 0, 2, 2), [(2, 0, 4, 2), (5, 5, 6, 6)]).tolist() == [0, 0]
    assert bbox_iou((0, 0, 2, 2), []).shape == (0,)


def test_recorded_iou():
    recorded = json.loads(reference("localization.json").read_text())["bbox_iou"]
    assert bbox_iou(recorded["box"], recorded["boxes"]) == pytest.approx(recorded["iou"], abs=1e-6)


@given(boxes, boxes, st.floats(-100, 100))
def test_iou_is_symmetric_and_moves_along(a, b, shift):
    iou = bbox_iou(a, [b])[0]
    assert 0 <= iou <= 1
    assert bbox_iou(b, [a])[0] == pytest.approx(iou, abs=1e-9)
    moved = [tuple(side + shift for side in box) for box in (a, b)]
    assert bbox_iou(moved[0], [moved[1]])[0] == pytest.approx(iou, abs=1e-6)
    assert bbox_iou(a, [a])[0] == pytest.approx(1, abs=1e-6)


def test_results_in_the_published_layout(tmp_path):
    scores = Scores(
        rows={"a": ("a.jpg", [0.0, 0.0, 10.0, 10.0], 0.5), "b": ("b.jpg", [1.5, 2.0, 3.0, 4.0], 0.25)},
        truth={"a": np.array([[0.0, 0, 10, 8]]), "b": np.array([[0.0, 0, 1, 1], [2, 2, 3, 3]])},
        without_objects=["c"],
        problems={"d": "damaged"},
    )
    write_results(tmp_path, scores, {"mode": "lost"}, pickles=True)
    assert (tmp_path / "results.txt").read_text() == "corloc,50.0,,\n"
    found = pickle.loads((tmp_path / "preds.pkl").read_bytes())
    truth = pickle.loads((tmp_path / "gt.pkl").read_bytes())
    assert list(found) == list(truth) == ["a.jpg", "b.jpg"]
    assert found["b.jpg"].tolist() == [1.5, 2, 3, 4]
    assert truth["b.jpg"].shape == (2, 4)
    with open(tmp_path / "boxes.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "xmin", "ymin", "xmax", "ymax", "iou", "correct"],
            ["a.jpg", "0", "0", "10", "10", "0.500000", "1"],
            ["b.jpg", "1.5", "2", "3", "4", "0.250000", "0"],
        ]
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["boxes"]["b.jpg"] == {"box": [1.5, 2.0, 3.0, 4.0], "iou": 0.25}
    assert {name: summary[name] for name in ("corloc", "correct", "images", "without_objects", "problems")} == {
        "corloc": 50.0,
        "correct": 1,
        "images": 2,
        "without_objects": ["c"],
        "problems": {"d": "damaged"},
    }
