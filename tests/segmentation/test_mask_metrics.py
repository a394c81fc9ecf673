"""Measures of masks: by hand, by properties, and as the published evaluation gave them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from objectseg.metrics import THRESHOLDS, MeanScores, accuracy, f_beta, f_beta_curve, iou
from shared_data import reference
from spectralseg.errors import InputError

shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)
masks = hnp.arrays(bool, shapes)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(shapes)
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))


def mask(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_by_hand():
    prediction, truth = mask("##", "#."), mask("#.", "##")
    assert accuracy(prediction, truth) == 0.5
    assert iou(prediction, truth) == 0.5
    assert f_beta(prediction, truth) == pytest.approx(2 / 3)  # precision and recall are 2/3
    prediction, truth = mask("##", "##"), mask("#.", "..")
    assert (accuracy(prediction, truth), iou(prediction, truth)) == (0.25, 0.25)
    assert f_beta(prediction, truth) == pytest.approx(1.3 * 0.25 * 1 / (0.3 * 0.25 + 1))


def test_nothing_there():
    empty, full = mask("..", ".."), mask("##", "##")
    assert (accuracy(empty, empty), iou(empty, empty), f_beta(empty, empty)) == (1, 0, 1)
    for prediction, truth in ((full, empty), (empty, full)):
        assert (accuracy(prediction, truth), iou(prediction, truth), f_beta(prediction, truth)) == (0, 0, 0)
    curve = f_beta_curve(np.full((2, 2), 0.5), empty)  # 0 while a threshold lets the map pass
    assert [curve[index] for index in (0, 126, 127, 253)] == [0, 0, 1, 1]


@pytest.mark.parametrize("measure", [accuracy, iou, f_beta, f_beta_curve])
def test_shapes_that_differ(measure):
    with pytest.raises(InputError, match=r"shape \(1, 2\) does not fit a true mask of shape \(2, 2\)"):
        measure(mask("##"), mask("##", ".."))


@given(masks)
def test_perfect_predictions(truth: np.ndarray):
    assert accuracy(truth, truth) == f_beta(truth, truth) == 1
    assert iou(truth, truth) == (1 if truth.any() else 0)
    assert (f_beta_curve(truth.astype(float), truth) == 1).all()


@given(pairs())
def test_definitions(pair: tuple[np.ndarray, np.ndarray]):
    prediction, truth = pair
    both = (prediction & truth).sum()
    assert iou(prediction, truth) == iou(truth, prediction)
    assert 0 <= iou(prediction, truth) <= accuracy(prediction, truth) <= 1 or not (prediction | truth).any()
    if both:
        precision, recall = both / prediction.sum(), both / truth.sum()
        assert f_beta(prediction, truth) == pytest.approx(1.3 * precision * recall / (0.3 * precision + recall))
        assert min(precision, recall) - 1e-12 <= f_beta(prediction, truth) <= max(precision, recall) + 1e-12


@given(pairs(), st.integers(0, 1000))
def test_each_threshold_of_the_curve_is_a_mask(pair: tuple[np.ndarray, np.ndarray], seed: int):
    truth = pair[1]
    soft = np.random.default_rng(seed).integers(0, 256, truth.shape) / 255  # ties with thresholds
    expected = [f_beta(soft > threshold, truth) for threshold in THRESHOLDS]
    np.testing.assert_allclose(f_beta_curve(soft, truth), expected, rtol=1e-12)


def test_thresholds():
    assert len(THRESHOLDS) == 254
    assert THRESHOLDS[[0, -1]].tolist() == [1 / 255, 254 / 255]


def test_mean_over_images_and_one_threshold_for_all():
    truth = mask("#.")
    means = MeanScores()
    # the first image is right for thresholds below 0.8, the second for those from 0.2 on: 0.2..0.8 suits both
    first = means.add(truth, truth, np.array([[0.8, 0.0]]))
    second = means.add(mask("##"), truth, np.array([[0.9, 0.2]]))
    assert first == {"accuracy": 1, "iou": 1, "f_beta": 1, "f_max": 1}
    assert second["iou"] == 0.5
    result = means.means()
    assert result["miou"] == result["accuracy"] == 0.75
    assert result["f_max"] == 1
    assert 0.2 <= result["f_max_threshold"] < 0.8

    means = MeanScores()  # thresholds that suit one do not suit the other: the mean of both is at most (1 + 0.52) / 2
    means.add(truth, truth, np.array([[0.3, 0.0]]))
    means.add(truth, truth, np.array([[0.9, 0.5]]))
    assert means.means()["f_max"] == pytest.approx((1 + f_beta(mask("##"), truth)) / 2)


def test_recorded_values():
    numbers = np.load(reference("regions.npz"))
    recorded = json.loads(reference("regions.json").read_text())["mask_metrics"]
    predictions, truths = numbers["mask_metrics/pred"], numbers["mask_metrics/target"]
    for index, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        assert np.float32(accuracy(prediction, truth)) == np.float32(recorded["acc"][index])
        assert np.float32(iou(prediction, truth)) == np.float32(recorded["iou"][index])
        assert np.float32(iou(prediction, truth)) == np.float32(recorded["iou_both_empty"][index])

    logits = numbers["mask_metrics/soft_logits"].astype(np.float64)
    softs = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))  # softmax over background and foreground
    means = MeanScores()
    for soft, truth in zip(softs, truths, strict=False):  # soft maps of the first two
        means.add(soft > 0.5, truth, soft)
    assert means.means()["f_max"] == pytest.approx(recorded["f_max"], abs=2e-7)  # recorded in float32

    means = MeanScores()  # stored in 8 bits, rounded up, the map passes the same thresholds
    for soft, truth in zip(softs, truths, strict=False):
        means.add(soft > 0.5, truth, np.ceil(255 * soft) / 255)
    assert means.means()["f_max"] == pytest.approx(recorded["f_max"], abs=2e-7)
