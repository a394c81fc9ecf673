"""Affinities on images of a few pixels, with values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from torch.nn import functional

from spectralseg.mathematics.affinity import (
    PANEL,
    add_sparse,
    colour_grid,
    feature_affinity,
    gram,
    knn_affinity,
    resize_features,
    rw_affinity,
)


def greys(values: list[list[float]]) -> np.ndarray:
    """Rows of grey values -> (rows, columns, 3)."""
    return np.repeat(np.asarray(values, dtype=np.float64)[..., None], 3, axis=2)


# --- nearest neighbours in colour and position ---


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (1, 4)])
def test_knn_of_fewer_points_than_neighbours_is_complete(shape):
    """Each of the two graphs has every directed edge, which adds 1 to W_ij and to W_ji: 2 for each pair, and 2 + 2."""
    colours = np.random.default_rng(0).random((*shape, 3))
    count = shape[0] * shape[1]
    assert np.array_equal(knn_affinity(colours).toarray(), np.full((count, count), 4.0))


def test_knn_by_colour_alone():
    """Greys 0, 0.5 and 0.6; each with itself and one neighbour: 0 -> 1, 1 -> 2, 2 -> 1."""
    affinity = knn_affinity(greys([[0, 0.5, 0.6]]), settings=[(2, 0.0)]).toarray()
    assert np.array_equal(affinity, [[2, 1, 0], [1, 2, 2], [0, 2, 2]])


def test_knn_by_colour_and_position():
    """Greys 0, 0.5 and 0.1 in a row. By colour the neighbours are 0 -> 2, 1 -> 2, 2 -> 0. With w = 2 the columns lie
    at 0, 1 and 2, and squared distances are 3 * 0.25 + 1 = 1.75 (0 to 1), 3 * 0.16 + 1 = 1.48 (1 to 2) and
    3 * 0.01 + 4 = 4.03 (0 to 2): 0 -> 1, 1 -> 2, 2 -> 1. The same in a column of pixels."""
    colours = greys([[0, 0.5, 0.1]])
    assert np.array_equal(knn_affinity(colours, [(2, 0.0)]).toarray(), [[2, 0, 2], [0, 2, 1], [2, 1, 2]])
    with_position = [[2, 1, 0], [1, 2, 2], [0, 2, 2]]
    assert np.array_equal(knn_affinity(colours, [(2, 2.0)]).toarray(), with_position)
    assert np.array_equal(knn_affinity(colours.transpose(1, 0, 2), [(2, 2.0)]).toarray(), with_position)


def test_knn_agrees_with_all_distances():
    colours = np.random.default_rng(3).random((6, 8, 3))
    expected = np.zeros((48, 48))
    y, x = np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 8), indexing="ij")
    for neighbours, weight in ((20, 2.0), (10, 0.1)):
        points = np.concatenate([colours.reshape(48, 3), weight * x.reshape(48, 1), weight * y.reshape(48, 1)], axis=1)
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)
        for i, nearest in enumerate(np.argsort(distances, axis=1)[:, :neighbours]):
            for j in nearest:
                expected[i, j] += 1
                expected[j, i] += 1
    assert np.array_equal(knn_affinity(colours).toarray(), expected)


# --- the 3x3 window around each pixel ---


def test_rw_of_two_by_two():
    """From a corner the clamped window holds itself 2 * 2 times, each side neighbour twice, the opposite corner once.
    Between grey 0 and 1/30 the weight is exp(-900 * 3 / 900)."""
    weight = math.exp(-3)
    affinity = rw_affinity(greys([[0, 0], [0, 1 / 30]])).toarray()
    expected = [[4, 2, 2, weight], [2, 4, 1, 2 * weight], [2, 1, 4, 2 * weight], [weight, 2 * weight, 2 * weight, 4]]
    np.testing.assert_allclose(affinity, expected, rtol=1e-12)


def test_rw_of_three_by_three():
    affinity = rw_affinity(np.zeros((3, 3, 3))).toarray()
    assert np.array_equal(affinity[4].reshape(3, 3), np.ones((3, 3)))  # the middle sees each pixel once
    assert np.array_equal(affinity[0].reshape(3, 3), [[4, 2, 0], [2, 1, 0], [0, 0, 0]])  # a corner
    assert np.array_equal(affinity[1].reshape(3, 3), [[2, 2, 2], [1, 1, 1], [0, 0, 0]])  # the upper border
    assert np.array_equal(affinity[3].reshape(3, 3), [[2, 1, 0], [2, 1, 0], [2, 1, 0]])  # the left border
    assert np.array_equal(affinity.sum(axis=1), np.full(9, 9.0))


def test_rw_of_a_row_of_pixels():
    """One row: the rows above and below are clamped to it, so everything counts three times."""
    affinity = rw_affinity(np.zeros((1, 3, 3))).toarray()
    assert np.array_equal(affinity, [[6, 3, 0], [3, 3, 3], [0, 3, 6]])


def test_rw_is_symmetric_and_local():
    colours = np.random.default_rng(0).random((5, 7, 3)) * 0.05
    affinity = rw_affinity(colours).toarray()
    np.testing.assert_allclose(affinity, affinity.T, rtol=1e-12)
    row, column = np.divmod(np.arange(35), 7)
    far = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column)) > 1
    assert (affinity[far] == 0).all()
    assert (affinity[~far] > 0).all()
    difference = ((colours[2, 3] - colours[3, 4]) ** 2).sum()
    assert affinity[2 * 7 + 3, 3 * 7 + 4] == pytest.approx(math.exp(-900 * difference), rel=1e-12)


# --- sums ---


def test_add_sparse_adds_repeated_entries():
    dense = torch.full((3, 3), 10.0)
    sparse = coo_array(([1.0, 2.0, 4.0, 8.0], ([0, 0, 0, 2], [1, 1, 1, 0])), shape=(3, 3))
    add_sparse(dense, sparse, 0.5)
    assert torch.equal(dense, torch.tensor([[10, 13.5, 10], [10, 10, 10], [14, 10, 10]]))


@pytest.mark.parametrize("shape", [(1, 1), (4, 6)])
@pytest.mark.parametrize("affinity", [knn_affinity, rw_affinity])
def test_add_sparse_of_colour_affinities(shape, affinity):
    sparse = affinity(np.random.default_rng(0).random((*shape, 3)) * 0.05)
    count = shape[0] * shape[1]
    dense = torch.rand(count, count, dtype=torch.float64)
    expected = dense.numpy() + 10 * sparse.toarray()
    add_sparse(dense, sparse, 10)
    np.testing.assert_allclose(dense.numpy(), expected, rtol=1e-12)


# --- features ---


@pytest.mark.parametrize("count", [1, 2, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL, 2 * PANEL + 3])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gram_is_the_full_product(count, batch):
    features = torch.randn(*batch, count, 9, generator=torch.Generator().manual_seed(count))
    product = gram(features)
    torch.testing.assert_close(product.double(), features.double() @ features.double().mT, atol=2e-5, rtol=1e-5)
    if count > PANEL:  # mirrored, so exactly symmetric outside the panels on the diagonal
        assert torch.equal(product[..., :PANEL, PANEL:], product[..., PANEL:, :PANEL].mT)


def test_feature_affinity_threshold():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 1.0]])
    raw = torch.tensor([[1.0, 0.0, -3.0], [0.0, 4.0, 2.0], [-3.0, 2.0, 10.0]])
    assert torch.equal(feature_affinity(features, threshold_at_zero=False), raw)
    assert torch.equal(feature_affinity(features), raw.clamp(min=0))


def test_resize_features_by_hand():
    """Twice as many columns: new centres lie at -0.25 (clamped to 0), 0.25, 0.75 and 1.25 (clamped to 1)."""
    features = torch.tensor([[[0.0, 10.0], [1.0, 30.0]]])
    resized = resize_features(features, (1, 2), (1, 4))
    assert torch.equal(resized, torch.tensor([[[0.0, 10], [0.25, 15], [0.75, 25], [1, 30]]]))
    resized = resize_features(features, (2, 1), (4, 1))
    assert torch.equal(resized, torch.tensor([[[0.0, 10], [0.25, 15], [0.75, 25], [1, 30]]]))


@given(st.tuples(*[st.integers(1, 6)] * 4), st.integers(1, 2))
def test_resize_features_is_torch_interpolation(sides, batch):
    rows, columns, new_rows, new_columns = sides
    picture = torch.randn(batch, 3, rows, columns, generator=torch.Generator().manual_seed(0))
    features = torch.stack(  # cell by cell, so that the row-major order is spelled out
        [picture[:, :, row, column] for row in range(rows) for column in range(columns)], dim=1
    )
    resized = resize_features(features, (rows, columns), (new_rows, new_columns))
    expected = functional.interpolate(picture, (new_rows, new_columns), mode="bilinear", align_corners=False)
    assert resized.shape == (batch, new_rows * new_columns, 3)
    for row in range(new_rows):
        for column in range(new_columns):
            torch.testing.assert_close(resized[:, row * new_columns + column], expected[:, :, row, column])


def test_colour_grid_crops_before_it_resizes():
    """4 x 6 whole pixels of a 5 x 7 image; the last row and column are white and must leave no trace."""
    pixels = np.full((5, 7, 3), 255, dtype=np.uint8)
    pixels[:4, :6] = 0
    pixels[:4, :6, 0] = [0, 0, 100, 100, 200, 200]
    colours = colour_grid(Image.fromarray(pixels), (4, 6), (2, 3))
    assert colours.shape == (2, 3, 3)
    assert colours.dtype == np.float64
    assert colours.max() < 201 / 255
    assert np.array_equal(colours[..., 1:], np.zeros((2, 3, 2)))
    assert np.array_equal(colours[0], colours[1])
    # Pillow's bilinear filter halves with weights (1, 3, 3, 1) / 8; at the border those inside are scaled to one
    expected = np.array([100 / 7, 100, (6 * 200 + 100) / 7]) / 255
    np.testing.assert_allclose(colours[0, :, 0], expected, atol=0.6 / 255)


@pytest.mark.parametrize(("height", "width"), [(37, 50), (32, 48), (47, 33)])
def test_released_grid_is_the_published_one(height, width):
    """Published: the whole photograph, resized to the grid of its whole patches. No difference where none is cut."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    photograph, grid = Image.fromarray(pixels), (height // 16, width // 16)
    theirs = np.array(photograph.resize((width // 16, height // 16), Image.BILINEAR)) / 255.0
    covered = (grid[0] * 16, grid[1] * 16)
    assert np.array_equal(colour_grid(photograph, covered, grid, "released"), theirs)
    assert np.array_equal(colour_grid(photograph, covered, grid), theirs) == (covered == (height, width))


def test_colour_grid_of_the_same_size_keeps_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(colour_grid(Image.fromarray(pixels), (4, 6), (4, 6)), pixels / 255)
