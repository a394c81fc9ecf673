"""Confusion matrices as pictures, and the names of classes."""

import json

import numpy as np
import pytest

from shared_data import reference
from spectralseg.drawing.charts import confusion_picture
from spectralseg.files import label_maps


@pytest.mark.charts
def test_diagonal_is_darker_than_the_rest():
    names = ["a", "b", "c"]
    perfect = confusion_picture(np.eye(3, dtype=np.int64) * 7, names, names)
    wrong = confusion_picture(np.zeros((3, 3), dtype=np.int64), names, names)
    assert perfect.mode == "RGB"
    assert np.asarray(perfect).mean() < np.asarray(wrong).mean()


def test_names_must_fit():
    with pytest.raises(ValueError, match="3 rows"):
        confusion_picture(np.zeros((2, 2), dtype=np.int64), ["a", "b", "c"], ["a", "b"])


def test_class_names():
    recorded = json.loads(reference("cocostuff27.json").read_text())["classes"]
    assert list(label_maps.COCO_STUFF_27_CLASSES) == recorded
    assert len(label_maps.VOC_CLASSES) == 21
    assert label_maps.VOC_CLASSES[15] == "person"
    assert len(label_maps.CITYSCAPES_27_CLASSES) == 27
    assert label_maps.CITYSCAPES_27_CLASSES[26 - 7] == "car"
