"""Masks, segments, components and boxes: recorded values, hand-worked maps, properties."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared_data import reference
from spectralseg.errors import InputError
from spectralseg.files.label_maps import infer_grid
from spectralseg.mathematics import kmeans
from spectralseg.mathematics.regions import (
    CROSS,
    background_first,
    border_shares,
    bounding_box,
    eigengap_segments,
    kmeans_segments,
    largest_component,
    segment_boxes,
    smooth_mask,
)

LABEL_MAPS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4))


@pytest.mark.parametrize("index", range(5))
def test_recorded_border_shares_and_components(index: int):
    """Recorded boxes: test_segmentation_commands.py."""
    recorded = json.loads(reference("regions.json").read_text())
    maps = np.load(reference("regions.npz"))
    segments = maps[f"boxes/{index}/segmap"]
    labels, shares = border_shares(segments)
    assert labels.tolist() == recorded[f"border/{index}"]["indices"]
    np.testing.assert_allclose(shares, recorded[f"border/{index}"]["fraction"], atol=1e-6)

    component = largest_component(segments > 0)
    np.testing.assert_array_equal(component, maps[f"largest_cc/{index}"])
    assert component.sum() == recorded[f"largest_cc/{index}"]


def test_recorded_adaptive_counts():
    recorded = json.loads(reference("regions.json").read_text())
    eigs = np.load(reference("eigs.npz"))
    prefix = "adaptive_clusters/"
    counts = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
    assert len(counts) == 26
    assert {key: eigengap_segments(eigs[f"{key}/eigenvalues"]) for key in counts} == counts


def test_eigengap_leaves_out_the_first_gap():
    # gaps 0.9, 0.01, 0.04, 0.02: the largest but for number 0 is number 2
    assert eigengap_segments(np.array([0.0, 0.9, 0.91, 0.95, 0.97])) == 3
    # an affinity's run down, with gaps 50, 1, 30, 4: number 2 again
    assert eigengap_segments(np.array([90.0, 40, 39, 9, 5])) == 3


def test_corners_count_twice():
    # a 2x3 map: sides (0 0 1), (2 2 2), (0 2), (1 2) = ten places
    labels, shares = border_shares(np.array([[0, 0, 1], [2, 2, 2]]))
    assert labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(shares, [0.3, 0.2, 0.5])


def test_background_swaps_labels():
    segments = np.array([[2, 2, 2], [2, 0, 2], [2, 1, 2]], dtype=np.uint8)
    np.testing.assert_array_equal(background_first(segments), [[0, 0, 0], [0, 2, 0], [0, 1, 0]])


@given(LABEL_MAPS)
def test_background_first_renames_and_changes_no_region(segments: np.ndarray):
    swapped = background_first(segments)
    labels, shares = border_shares(swapped)
    assert shares[labels == 0] == shares.max()
    np.testing.assert_array_equal(swapped[..., None] == swapped.ravel(), segments[..., None] == segments.ravel())


def test_a_mask_that_erosion_would_erase_is_kept():
    cell = np.zeros((5, 5), dtype=bool)
    cell[2, 2] = True
    np.testing.assert_array_equal(smooth_mask(cell, num_erode=3, num_dilate=0), cell)
    np.testing.assert_array_equal(smooth_mask(cell, num_erode=1, num_dilate=1)[1:4, 1:4], CROSS)


def test_each_erosion_is_skipped_on_its_own():
    # one erosion of a 3x3 block leaves its centre; the second would leave nothing and is skipped
    block = np.zeros((5, 5), dtype=bool)
    block[1:4, 1:4] = True
    eroded = smooth_mask(block, num_erode=2, num_dilate=0)
    assert eroded.sum() == 1
    assert eroded[2, 2]


def test_the_border_of_the_image_erodes_nothing():
    assert smooth_mask(np.ones((3, 3), dtype=bool), num_erode=2, num_dilate=0).all()


def test_boxes_by_hand():
    segments = np.array([[0, 1, 1, 0], [0, 1, 1, 2], [0, 0, 0, 2]], dtype=np.uint8)
    assert segment_boxes(segments, 0, 0) == ([1, 2], [(1, 0, 3, 2), (3, 1, 4, 3)])
    assert segment_boxes(segments, 0, 0, skip_background=False)[0] == [0, 1, 2]
    assert segment_boxes(np.zeros((2, 2), dtype=np.uint8), 2, 3) == ([], [])
    assert bounding_box(segments == 2) == (3, 1, 4, 3)


def test_largest_component_is_eight_connected_and_may_be_empty():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    assert largest_component(mask).sum() == 2
    assert largest_component(mask, CROSS).sum() == 1
    assert not largest_component(np.zeros((2, 2), dtype=bool)).any()


def test_kmeans_finds_separated_groups_and_is_seeded():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(centre, 0.01, size=(20, 2)) for centre in (0, 1, 2)])
    labels = kmeans_segments(points, 3)
    assert [len(np.unique(labels[start : start + 20])) for start in (0, 20, 40)] == [1, 1, 1]
    assert len(np.unique(labels)) == 3
    np.testing.assert_array_equal(labels, kmeans_segments(points, 3))


@pytest.mark.parametrize("count", [1, 2, 5, 15])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kmeans_gives_the_labels_of_scikit_learn(count: int, dtype: type, monkeypatch: pytest.MonkeyPatch):
    from sklearn.cluster import KMeans

    points = np.random.default_rng(count).normal(size=(200, 4)).astype(dtype)
    expected = KMeans(count, n_init=10, random_state=3).fit(points)
    labels, inertia = kmeans.kmeans(points, count, 10, 3)
    np.testing.assert_array_equal(labels, expected.labels_)
    assert inertia == pytest.approx(expected.inertia_, rel=1e-5)
    monkeypatch.setattr(kmeans, "NUMBERS_AT_ONCE", 1)  # start by start
    np.testing.assert_array_equal(kmeans.kmeans(points, count, 10, 3)[0], labels)


def test_a_cluster_without_points_takes_the_farthest():
    points, centres = np.array([[0.0], [1.0], [9.0]]), np.array([[[0.5], [0.5]]])
    labels, inertia = kmeans._lloyd(points, centres)
    assert labels.tolist() == [[0, 0, 1]]
    assert inertia == pytest.approx(0.5)
    with pytest.raises(InputError, match="not finite"):
        kmeans_segments(np.array([[0.0], [np.nan]]), 2)


def test_fewer_distinct_points_than_segments():
    points = np.repeat([[0.0, 0.0], [1.0, 1.0]], 5, axis=0)
    assert len(np.unique(kmeans_segments(points, 4))) == 2
    assert not kmeans_segments(np.zeros((6, 2)), 4).any()


@pytest.mark.parametrize(
    ("height", "width", "cells", "expected"),
    [
        (375, 500, 23 * 31, ((23, 31), 16)),
        (375, 500, 46 * 62, ((46, 62), 8)),
        (224, 224, 256, ((16, 16), 14)),
        (250, 333, 30 * 40, ((30, 40), 8)),  # 16-pixel patches, twice as fine: not 31 x 41
        (100, 100, 9, ((3, 3), 32)),
        (20, 20, 25, ((5, 5), 4)),
    ],
)
def test_grid_of_published_files(height: int, width: int, cells: int, expected: tuple):
    assert infer_grid(height, width, cells) == expected


def test_no_grid_fits():
    with pytest.raises(InputError, match="patch size"):
        infer_grid(375, 500, 714)
