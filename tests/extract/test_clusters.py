"""Clusters of segments and semantic maps."""

import numpy as np
import pytest

from spectralseg.errors import InputError
from spectralseg.mathematics.clusters import cluster_features, semantic_map


def groups() -> np.ndarray:
    """Three directions, ten vectors of different lengths along each."""
    directions = np.repeat(np.eye(3), 10, axis=0) + 1e-3 * np.random.default_rng(0).normal(size=(30, 3))
    return directions * np.linspace(1, 50, 30)[:, None]


@pytest.mark.parametrize("pca_dim", [0, 2])
def test_directions_count_and_lengths_do_not(pca_dim: int):
    clusters = cluster_features(groups(), 3, pca_dim=pca_dim).reshape(3, 10)
    assert (clusters == clusters[:, :1]).all()
    assert len(np.unique(clusters)) == 3


def test_seeded():
    points = np.random.default_rng(1).normal(size=(200, 8))
    np.testing.assert_array_equal(cluster_features(points, 10, seed=3), cluster_features(points, 10, seed=3))
    assert (cluster_features(points, 10, seed=3) != cluster_features(points, 10, seed=4)).any()


@pytest.mark.parametrize(("clusters", "pca_dim"), [(31, 0), (0, 0), (3, 4), (3, -1)])
def test_impossible_numbers(clusters: int, pca_dim: int):
    with pytest.raises(InputError):
        cluster_features(groups(), clusters, pca_dim=pca_dim)


def test_a_zero_vector_is_no_nan():
    points = groups()
    points[0] = 0
    assert len(cluster_features(points, 3)) == 30


SEGMENTS = np.array([[0, 1], [2, 3]], dtype=np.uint8)


def test_cluster_zero_and_background_stay_apart():
    # segment 2 has no box (erosion cannot do that, a file by hand can): it is background
    np.testing.assert_array_equal(semantic_map(SEGMENTS, [1, 3], [0, 7]), [[0, 1], [0, 8]])


def test_the_published_collision_on_request():
    np.testing.assert_array_equal(semantic_map(SEGMENTS, [1, 2, 3], [0, 1, 0], cluster_offset=0), [[0, 0], [1, 0]])


def test_more_clusters_than_a_png_holds():
    with pytest.raises(InputError, match="0 to 255"):
        semantic_map(SEGMENTS, [1], [255])
    assert semantic_map(SEGMENTS, [1], [254])[0, 1] == 255
