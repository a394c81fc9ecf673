"""Rankings, robust background detection, the local affinity: cases worked out by hand, and ``lab_graph`` by files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from running import refused_here, run_here
from spectralseg.api import Segmenter
from spectralseg.errors import InputError
from spectralseg.mathematics.affinity import local_affinity, local_edges
from spectralseg.mathematics.eigen import sparse_normalised_cut
from spectralseg.mathematics.ranking import (
    border_ranking,
    manifold_ranking,
    object_map,
    object_threshold,
    otsu_threshold,
    probability,
    robust_background,
)

GRID = (16, 20)
OBJECT = np.s_[5:10, 8:14]


def colours(noise: float) -> np.ndarray:
    """(T, 3): a bright object on a dark ground."""
    cells = np.random.default_rng(0).normal(0.3, noise, (*GRID, 3))
    cells[OBJECT] += 0.4
    return cells.reshape(-1, 3)


def test_local_affinity_by_hand():
    i, j = local_edges((3, 4), 1)
    pairs = set(zip(i.tolist(), j.tolist(), strict=True))
    border = {0, 1, 2, 3, 4, 7, 8, 9, 10, 11}
    inner = {(a, b) for a in range(12) for b in (5, 6) if a != b and abs(a % 4 - b % 4) <= 1}  # all rows are near
    assert pairs == {(a, b) for a in border for b in border if a < b} | {(min(pair), max(pair)) for pair in inner}
    assert len(i) == len(pairs)
    W = local_affinity(np.array([[0.0], [0.1], [0.4]]), (1, 3), radius=1, scale=0.1).toarray()
    np.testing.assert_allclose(W, np.exp([[-np.inf, -1, -4], [-1, -np.inf, -3], [-4, -3, -np.inf]]))


@pytest.mark.parametrize("noise", [0, 0.05])  # without noise the square grid has eigenvalues of multiplicity 2
def test_sparse_cut_equals_lapack(noise: float):
    values = np.random.default_rng(1).normal(0.3, noise, (400, 3))
    W = local_affinity(values, (20, 20))
    (found, x), (expected, dense) = sparse_normalised_cut(W, 20), sparse_normalised_cut(W, 20, dense=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    D = W.sum(axis=1)[:, None]
    np.testing.assert_allclose(x.numpy().T @ (D * x.numpy()), np.eye(20), atol=1e-9)
    # solutions: (D - W) x = l D x; and the span of those below the last gap of LAPACK's
    np.testing.assert_allclose((D * x.numpy() - W @ x.numpy()), found.numpy() * D * x.numpy(), atol=1e-5)
    last = int(np.argmax(np.diff(expected[10:]).round(6))) + 11
    overlap = np.linalg.svd(dense[:, :last].numpy().T @ (D * x[:, :last].numpy()))[1]
    np.testing.assert_allclose(overlap, 1, atol=1e-8)


def test_ranking_with_all_eigenvectors_is_the_closed_form():
    W = local_affinity(colours(0.05)[:60], (6, 10))
    values, x = sparse_normalised_cut(W, 60)
    query = np.random.default_rng(0).random(60)
    expected = np.linalg.solve(np.diag(W.sum(axis=1)) - 0.99 * W.toarray(), query)
    np.testing.assert_allclose(manifold_ranking(values.numpy(), x.numpy().T, query), expected)


@pytest.mark.parametrize("noise", [0, 0.01])
def test_both_maps_find_the_object(noise: float):
    cells = colours(noise)
    values, x = (each.numpy() for each in sparse_normalised_cut(local_affinity(cells, GRID), 20))
    expected = np.zeros(GRID, dtype=bool)
    expected[OBJECT] = True
    for found in (border_ranking(values, x.T, GRID), robust_background(cells, GRID)):
        assert (found.min(), found.max()) == (0, 1)
        np.testing.assert_array_equal(found > otsu_threshold(found), expected)
    assert object_threshold(found, cells) == otsu_threshold(found)
    np.testing.assert_array_equal(object_map("ranking", GRID, values, x.T) > 0.5, expected)
    np.testing.assert_array_equal(object_map("robust", GRID, colours=cells) > 0.5, expected)


def test_an_image_of_one_colour_has_no_object():
    flat = robust_background(np.full((12, 3), 0.5), (3, 4))
    assert not (flat > otsu_threshold(flat)).any()
    assert not object_map("robust", (3, 4), colours=np.full((12, 3), 0.5)).any()


def test_thresholds_by_hand():
    values = np.array([0.0, 0.1, 0.1, 0.7, 1.0])
    assert 0.1 < otsu_threshold(values) < 0.7
    bent = probability(np.array([0.0, 0.4, 1.0, *values]), 0.4)
    np.testing.assert_allclose(bent[:3], [0, 0.5, 1])
    assert (np.flatnonzero(bent > 0.5) == [2, 6, 7]).all()


@pytest.mark.parametrize("step", [0.0, 0.3])
def test_a_smooth_ground_is_no_object(step: float):
    """A bright bar on a ground whose map rises in the middle: the rise is an object only where it ends at an edge."""
    values = np.full((6, 12), 0.05)
    values[:, 3:9], values[2:5, 5:7] = 0.45, 1.0
    cells = np.zeros((6, 12, 3))
    cells[:, 3:9, 0], cells[2:5, 5:7, 0] = step, 0.9
    assert 0.05 < otsu_threshold(values) < 0.45
    assert (object_threshold(values, cells.reshape(-1, 3)) > 0.45) == (step == 0)


def test_what_cannot_be_ranked():
    values, vectors = np.arange(3.0), np.ones((3, 12))
    for message, arguments in (
        ("at least 3 eigenvectors, not 2", ("ranking", (3, 4), values[:2], vectors[:2])),
        ("do not fit a grid of 3x5", ("ranking", (3, 5), values, vectors)),
        ("a Laplacian, and these are an affinity's", ("ranking", (3, 4), values[::-1], vectors)),
        ("NaN or infinite", ("ranking", (3, 4), values, vectors * np.nan)),
        ("ranking needs eigenvalues", ("ranking", (3, 4))),
        ("robust needs the colours", ("robust", (3, 4), values, vectors)),
    ):
        with pytest.raises(InputError, match=message):
            object_map(*arguments)


def test_lab_graph_from_a_photograph_to_sharp_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By files, at half the size of the photograph, and by the function at its own."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(60, 70, (600, 800, 3), dtype=np.uint8)
    pixels[160:400, 240:480] += np.array([150, 60, 0], dtype=np.uint8)
    truth = np.zeros((600, 800), dtype=bool)
    truth[160:400, 240:480] = True
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    (tmp_path / "list").write_text("a.png\n")
    images = {"images_list": tmp_path / "list", "images_root": tmp_path / "images"}
    features = {"features_dir": tmp_path / "features"}
    command = {"model_name": "lab_graph", "batch_size": 1, "output_dir": tmp_path / "features"}
    assert "give one of them" in refused_here(capsys, "extract_features", **images, **command, resize=9, max_size=9)
    assert "'k', the colours" in refused_here(capsys, "extract_features", **images, **command, which_features="cls")
    run_here("extract_features", **images, **command)
    record = torch.load(tmp_path / "features" / "a.pth", weights_only=True)
    assert (record["shape"], record["max_size"], record["k"].shape) == ((1, 3, 300, 400), 400, (1, 1200, 3))
    eigs = {"eigs_dir": tmp_path / "eigs"}
    run_here("extract_eigs", images_root="-", **features, output_dir=tmp_path / "eigs", which_matrix="local")
    for foreground in ("ranking", "robust"):
        made = {"foreground": foreground, **features, **eigs}
        run_here("extract_single_region_segmentations", **made, output_dir=tmp_path / foreground)
        small = np.array(Image.open(tmp_path / foreground / "a.png")) > 0
        np.testing.assert_array_equal(small, truth[::20, ::20])
    run_here("extract_single_region_segmentations", **made, output_dir=tmp_path / "soft", mask_format="soft")
    Image.fromarray(pixels[::2, ::2]).save(tmp_path / "images" / "a.png")
    sharp = {"segmentations_dir": tmp_path / "soft", "output_dir": tmp_path / "sharp", "downsample_factor": 10}
    run_here("extract_crf_segmentations", "--soft", **images, **sharp, num_classes=2)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "sharp" / "a.png")) > 0, truth[::2, ::2])
    result = Segmenter("lab_graph")(pixels, crf=True)
    assert (result.mask.shape, result.soft.shape, result.eigenvectors.shape) == ((600, 800), (30, 40), (20, 30, 40))
    assert (result.mask != truth).sum() < 0.01 * truth.sum()
    np.testing.assert_array_equal(Segmenter("lab_graph")(pixels, foreground="ranking").soft > 0.5, truth[::20, ::20])
