"""Clusters against classes: cases worked out by hand, properties, and what the published methods gave."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared_data import reference
from spectralseg.errors import InputError
from spectralseg.mathematics.matching import (
    apply_match,
    class_iou,
    confusion_matrix,
    eagle_confusion,
    hungarian_match,
    iou_matrix,
    majority_match,
    match_clusters,
    mean_iou,
    pixel_accuracy,
)


def matrices(max_side: int = 5) -> st.SearchStrategy[np.ndarray]:
    """Square matrices of counts, zeros and ties included."""
    shapes = st.integers(1, max_side).map(lambda side: (side, side))
    return shapes.flatmap(lambda shape: hnp.arrays(np.int64, shape, elements=st.integers(0, 9)))


def pixels(counts: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and truth, shuffled, that have these counts."""
    pairs = [(c, k) for c in range(counts.shape[0]) for k in range(counts.shape[1]) for _ in range(counts[c, k])]
    shuffled = np.random.default_rng(seed).permutation(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    return shuffled[:, 0], shuffled[:, 1]


# counting


def test_counts_by_hand():
    labels = np.uint8([[0, 0, 1], [1, 1, 0]])
    truth = np.uint8([[0, 1, 1], [1, 255, 0]])
    np.testing.assert_array_equal(confusion_matrix(labels, truth, 2, 2), [[2, 1], [0, 2]])


def test_booleans_tensors_and_batches_count_alike():
    labels, truth = np.random.default_rng(0).integers(0, 2, (2, 3, 4, 5))
    expected = confusion_matrix(labels, truth, 2, 2)
    for convert in (np.bool_, np.uint8, lambda array: torch.from_numpy(array.copy())):
        np.testing.assert_array_equal(confusion_matrix(convert(labels), convert(truth), 2, 2), expected)


def test_many_labels_do_not_overflow_a_byte():
    labels, truth = np.full(300, 254, np.uint8), np.full(300, 200, np.uint8)
    assert confusion_matrix(labels, truth, 255, 201)[254, 200] == 300


def test_void_counts_nothing_whatever_the_label():
    counts = confusion_matrix(np.array([0, 7, 1]), np.array([0, -1, 1]), 2, 2, void=-1)
    np.testing.assert_array_equal(counts, np.eye(2))
    assert confusion_matrix(np.array([9]), np.array([255]), 2, 2).sum() == 0
    assert confusion_matrix(np.empty(0, int), np.empty(0, int), 2, 2).sum() == 0
    with pytest.raises(InputError, match="class number 255"):
        confusion_matrix(np.array([0]), np.array([255]), 2, 2, void=None)


@pytest.mark.parametrize(
    ("labels", "truth", "message"),
    [
        ([0, 2], [0, 1], "cluster number 2 is not among the 2 expected, 0 to 1"),
        ([0, -1], [0, 1], "cluster number -1"),
        ([0, 1], [0, 3], "class number 3 is not among the 2"),
        ([0, 1], [0, -1], "class number -1"),
        ([0, 1, 1], [0, 1], r"shape \(3,\) do not fit a truth of shape \(2,\)"),
        ([0.0, 1.0], [0, 1], "whole numbers, not float64"),
    ],
)
def test_what_cannot_be_counted(labels: list, truth: list, message: str):
    with pytest.raises(InputError, match=message):
        confusion_matrix(np.array(labels), np.array(truth), 2, 2)


@given(matrices(), st.integers(1, 7))
def test_streaming_equals_all_at_once(counts: np.ndarray, parts: int):
    labels, truth = pixels(counts)
    streamed = np.zeros_like(counts)
    for some_labels, some_truth in zip(np.array_split(labels, parts), np.array_split(truth, parts), strict=True):
        streamed += confusion_matrix(some_labels, some_truth, *counts.shape)
    np.testing.assert_array_equal(streamed, counts)


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(0, 9), st.integers(1, 9)), elements=st.integers(0, 4)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([255, 3, -1, None]),
)
def test_bytes_count_as_other_numbers_do(labels: np.ndarray, seed: int, void: int | None):
    truth = np.random.default_rng(seed).choice(np.uint8([0, 1, 2, 3]), labels.shape)
    for clusters, classes in ((5, 4), (300, 300)):
        np.testing.assert_array_equal(
            confusion_matrix(labels, truth, clusters, classes, void),
            confusion_matrix(labels.astype(int), truth.astype(int), clusters, classes, void),
        )


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_what_is_beyond_is_said_whatever_the_type(kind: type):
    labels, truth = np.array([0, 7, 9], kind), np.array([0, 1, 255], kind)
    with pytest.raises(InputError, match="cluster number 7 is not among the 5 expected, 0 to 4"):
        confusion_matrix(labels, truth, 5, 2)
    with pytest.raises(InputError, match="class number 1 is not among the 1 expected"):
        confusion_matrix(labels, truth, 8, 1)


# matching


def test_matching_by_hand():
    # cluster 0: 1 pixel of class 0, 3 of class 1; cluster 1: 4 of class 0, 2 of class 1
    counts = np.array([[1, 3], [4, 2]])
    # unions: class 0 has 5 pixels, class 1 has 5; cluster 0 has 4, cluster 1 has 6
    np.testing.assert_allclose(iou_matrix(counts), [[1 / 8, 3 / 6], [4 / 7, 2 / 9]])
    assert match_clusters(counts) == [(0, 1), (1, 0)]
    confusion = apply_match(counts, [(0, 1), (1, 0)])
    np.testing.assert_array_equal(confusion, [[4, 2], [1, 3]])
    np.testing.assert_allclose(class_iou(confusion), [4 / 7, 3 / 6])
    assert mean_iou(class_iou(confusion)) == pytest.approx(15 / 28)
    assert pixel_accuracy(confusion) == 0.7


def test_iou_and_counts_choose_differently():
    counts = np.array([[0, 2], [2, 5]])
    assert hungarian_match(counts) == [(0, 0), (1, 1)]  # 0 + 5 pixels, not 2 + 2
    assert hungarian_match(iou_matrix(counts)) == [(0, 1), (1, 0)]  # 2/7 + 2/7, not 0 + 5/9
    assert majority_match(iou_matrix(counts)) == [(0, 1), (1, 1)]


def test_more_clusters_than_classes_share_classes():
    counts = np.array([[5, 0], [3, 1], [0, 4]])
    assert match_clusters(counts) == [(0, 0), (1, 0), (2, 1)]
    np.testing.assert_array_equal(apply_match(counts, match_clusters(counts)), [[8, 1], [0, 4]])


def test_fewer_clusters_than_classes():
    counts = np.array([[6, 1, 2]])  # everything is background
    confusion = apply_match(counts, match_clusters(counts))
    np.testing.assert_allclose(class_iou(confusion), [6 / 9, 0, 0])
    assert mean_iou(class_iou(confusion)) == pytest.approx(2 / 9)


def test_a_match_that_does_not_fit():
    counts = np.array([[1, 0], [0, 1], [0, 0]])
    apply_match(counts, [(1, 1), (0, 0)])  # cluster 2 has no pixel
    for match, message in (
        ([(0, 0)], "nothing about the clusters 1"),
        ([(0, 0), (0, 1), (1, 1)], "cluster 0 twice"),
        ([(0, 0), (1, 2)], r"\(1, 2\) is beyond 3 clusters, 2 classes"),
        ([(0, 0), (3, 1)], r"\(3, 1\) is beyond"),
        ([(0, 0), (-1, 1)], r"\(-1, 1\) is beyond"),
    ):
        with pytest.raises(InputError, match=message):
            apply_match(counts, match)


def test_classes_without_a_pixel():
    ious = class_iou(np.array([[3, 0, 0], [1, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(ious, [0.75, 0, np.nan])
    assert mean_iou(ious) == 0.375
    assert mean_iou(ious, undefined=0) == 0.25
    empty = np.zeros((2, 2), dtype=np.int64)
    assert np.isnan([mean_iou(class_iou(empty)), pixel_accuracy(empty)]).all()


@given(matrices(), st.randoms(use_true_random=False))
def test_the_numbers_of_clusters_do_not_matter(counts: np.ndarray, random):
    order = random.sample(range(len(counts)), len(counts))
    for renamed in (counts, counts[order]):
        assert sorted(label for _, label in match_clusters(renamed)) == list(range(len(counts)))
    # where several matches are best they share the sum that is maximised, if not the rest
    sums = [
        sum(iou_matrix(renamed)[pair] for pair in hungarian_match(iou_matrix(renamed)))
        for renamed in (counts, counts[order])
    ]
    assert sums[0] == pytest.approx(sums[1])
    if counts.sum():
        accuracies = [pixel_accuracy(eagle_confusion(renamed)) for renamed in (counts, counts[order])]
        assert accuracies[0] == pytest.approx(accuracies[1])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_clusters_that_are_the_classes_are_perfect(sizes: list[int], random):
    counts = np.diag(sizes)[random.sample(range(len(sizes)), len(sizes))]
    for confusion in (apply_match(counts, match_clusters(counts)), eagle_confusion(counts)):
        assert mean_iou(class_iou(confusion)) == 1
        assert pixel_accuracy(confusion) == 1


# EAGLE's metric


def test_extra_clusters_by_hand():
    # two classes, one extra cluster; cluster 1 goes to class 0, cluster 0 to class 1
    counts = np.array([[1, 5], [6, 2], [0, 4]])
    released = eagle_confusion(counts, "released")
    np.testing.assert_array_equal(released, [[6, 2, 0], [1, 5, 0], [0, 0, 0]])
    assert pixel_accuracy(released) == pytest.approx(11 / 14)
    np.testing.assert_allclose(class_iou(released), [6 / 9, 5 / 8, np.nan])
    strict = eagle_confusion(counts)
    np.testing.assert_array_equal(strict, [[6, 2, 0], [1, 5, 0], [0, 4, 0]])
    assert pixel_accuracy(strict) == pytest.approx(11 / 18)
    assert mean_iou(class_iou(strict)) == pytest.approx((6 / 9 + 5 / 12 + 0) / 3)  # the row of the rest counts as 0


@given(matrices(), st.lists(st.integers(0, 9), min_size=0, max_size=3))
def test_released_is_never_below_strict(counts: np.ndarray, extra: list[int]):
    counts = np.vstack([counts, *(np.full((1, counts.shape[1]), pixels) for pixels in extra)])
    released, strict = (eagle_confusion(counts, protocol) for protocol in ("released", "strict"))
    assert np.trace(released) == np.trace(strict)
    assert strict.sum() == counts.sum()
    if released.sum():
        assert pixel_accuracy(released) >= pixel_accuracy(strict)
        assert mean_iou(class_iou(released)) >= mean_iou(class_iou(strict)) - 1e-12


# recorded values; those of matches in tests/semantic/test_semantic_evaluation.py


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_recorded_cluster_metrics(extra: int):
    numbers = np.load(reference("eagle.npz"))
    recorded = json.loads(reference("eagle.json").read_text())[f"metrics/extra{extra}"]
    prediction, truth, stats = (numbers[f"metrics/extra{extra}/{name}"] for name in ("pred", "target", "stats"))
    counts = confusion_matrix(prediction, truth, 6 + extra, 6, void=-1)
    np.testing.assert_array_equal(counts[:6], stats[:6])
    assert not stats[6:].any()  # dropped before counting
    confusion = eagle_confusion(counts, "released")
    assert 100 * mean_iou(class_iou(confusion)) == pytest.approx(recorded["final/cluster/mIoU"], abs=1e-5)
    assert 100 * pixel_accuracy(confusion) == pytest.approx(recorded["final/cluster/Accuracy"], abs=1e-5)


def test_recorded_linear_metrics():
    """The linear probe's classes are not matched; recorded with the predictions of ``extra5``, cut to 0..5."""
    numbers = np.load(reference("eagle.npz"))
    recorded = json.loads(reference("eagle.json").read_text())["metrics/linear"]
    prediction = np.minimum(numbers["metrics/extra5/pred"], 5)
    confusion = confusion_matrix(prediction, numbers["metrics/extra5/target"], 6, 6, void=-1)
    assert 100 * mean_iou(class_iou(confusion)) == pytest.approx(recorded["final/linear/mIoU"], abs=1e-5)
    assert 100 * pixel_accuracy(confusion) == pytest.approx(recorded["final/linear/Accuracy"], abs=1e-5)
