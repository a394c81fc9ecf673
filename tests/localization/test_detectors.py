"""Detectors: the recorded values, cases worked out by hand, and what holds for any image."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectloc.detectors import (
    best_object,
    dino_seg,
    eigenseg,
    lost,
    pixel_box,
    tokencut,
    trivial_box,
)
from objectloc.options import DataOptions, DetectorOptions
from shared_data import reference
from spectralseg.errors import InputError
from spectralseg.mathematics.cuts import WEAK, component_at, similarity_graph

DINO_IMAGES = ("chelsea", "astronaut", "coffee")
IMAGES = (*DINO_IMAGES, "rocket")


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads(reference("localization.json").read_text())


# --- recorded values; test_localization_cli.py has all recorded boxes ---


def test_no_recorded_value_is_left_out(recorded):
    methods = {"lost_centred_k100", "lost_centred_k20", "dino_seg_head0", "dino_seg_head4"}
    settings = {f"eigenseg/{name}" for name in ("laplacian", "laplacian_knn10_ds8", "affinity")}
    assert set(recorded) == {*IMAGES, "bbox_iou"}
    for image in IMAGES:
        assert set(recorded[image]) == (settings if image == "rocket" else settings | methods)


def test_recorded_seeds_of_lost(recorded):
    features = np.load(reference("features.npz"))
    for image in DINO_IMAGES:
        keys = torch.from_numpy(features[f"dino_vits16/{image}/k"][0])
        height, width = features[f"dino_vits16/{image}/shape"][2:]
        for k_patches in (100, 20):
            found = lost(keys - keys.mean(dim=0), (height // 16, width // 16), k_patches)
            assert found.seed == divmod(recorded[image][f"lost_centred_k{k_patches}"]["seed"], width // 16)


# --- boxes ---


def test_box_in_pixels_is_clipped_to_the_image():
    mask = np.zeros((3, 4), dtype=bool)
    mask[1:, 2:] = True
    assert pixel_box(mask, (16, 16), (48, 64)) == (32, 16, 64, 48)
    assert pixel_box(mask, (16, 16), (40, 60)) == (32, 16, 60, 40)  # the last patches are padded
    assert pixel_box(mask, (10.0, 12.5), (29, 50)) == (25, 10, 50, 29)  # cells of a CNN need not be square
    assert pixel_box(mask, (8, 8), (24, 12)) == (12, 8, 12, 24)  # nothing but padding: no area, but not a negative one


def test_trivial_boxes():
    assert trivial_box("whole", (100, 200)) == (0, 0, 200, 100)
    assert trivial_box("central", (100, 200)) == pytest.approx((30, 15, 170, 85))


# --- eigenseg ---


def test_eigenseg_takes_the_largest_component_with_diagonals():
    vector = -np.ones((4, 5))
    vector[0, 0] = vector[1, 1] = vector[2, 2] = 1  # joined by their corners
    vector[0, 3:] = 1  # two cells joined by a side
    found = eigenseg(vector.ravel(), (4, 5))
    assert found.mask.nonzero()[0].tolist() == found.mask.nonzero()[1].tolist() == [0, 1, 2]
    assert found.box((8, 8), (32, 40)) == (0, 0, 24, 24)


def test_eigenseg_inverts_what_covers_more_than_half():
    for positive, expected in (
        ([0, 1], [0, 1]),  # exactly half: as it is
        ([0, 1, 2], [3]),  # more than half: inverted
        ([0, 1, 2, 3], [0, 1, 2, 3]),  # everything: as it is
        ([], [0, 1, 2, 3]),  # nothing: everything
    ):
        vector = -np.ones(4)
        vector[positive] = 1
        assert eigenseg(vector, (1, 4)).mask[0].nonzero()[0].tolist() == expected


@given(st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12))
def test_eigenseg_is_within_the_image_and_connected(values):
    found = eigenseg(np.array(values), (3, 4))
    xmin, ymin, xmax, ymax = found.box((16, 16), (50, 70))
    assert 0 <= xmin < xmax <= 70
    assert 0 <= ymin < ymax <= 50
    positive = np.array(values).reshape(3, 4) > 0
    assert (positive[found.mask]).all() or not (positive[found.mask]).any()


# --- LOST ---


def test_lost_by_hand():
    """An object b of two patches on a ground of a and c.

    a.b = -1, a.c = 1, b.c = -0.5: a and c are similar to each other and not to b, so that their degree is 3 and b's is
    1. The seed is one b, S holds both, and M, the sum of their rows, is positive on b alone.
    """
    a, b, c = (1.0, 0.0), (-1.0, 1.0), (1.0, 0.5)
    found = lost(torch.tensor([a, a, b, a, c, b]), (2, 3), k_patches=6)
    assert found.maps["degree"].tolist() == [[3, 3, 1], [3, 3, 1]]
    assert found.seed in ((0, 2), (1, 2))
    assert found.mask.tolist() == [[False, False, True], [False, False, True]]
    assert found.box((16, 16), (32, 48)) == (32, 0, 48, 32)


def test_a_gram_bias_takes_away_what_all_patches_share():
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    shared = torch.cat([features, torch.full((30, 1), 5.0)], dim=1)
    plain, shifted = lost(features, (5, 6)), lost(shared, (5, 6), gram_bias=-25.0)
    np.testing.assert_array_equal(plain.mask, shifted.mask)
    np.testing.assert_array_equal(plain.maps["degree"], shifted.maps["degree"])
    assert (lost(shared, (5, 6)).maps["degree"] == 29).all()


def test_names_and_numbers_that_there_are_not():
    for ask in (
        lambda: lost(torch.zeros(2, 4), (1, 2), k_patches=0),
        lambda: trivial_box("half", (4, 4)),
        lambda: DetectorOptions(mode="dino"),
        lambda: DataOptions(dataset="VOC"),
    ):
        with pytest.raises(InputError):
            ask()


def test_lost_does_not_cross_corners():
    a, b = (1.0, 0.0), (-1.0, 0.0)
    found = lost(torch.tensor([b, a, a, a, a, b, a, a, a]), (3, 3))  # the patches b touch nowhere, or at corners
    assert found.mask.sum() == 1
    assert found.seed in ((0, 0), (1, 2))


def test_lost_of_a_single_patch_or_of_nothing_is_the_seed_alone():
    random = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    found = lost(random, (5, 6), k_patches=1)
    assert found.maps["expansion"].sum() == 1
    np.testing.assert_allclose(found.maps["mask values"], found.maps["seed similarity"])
    found = lost(torch.zeros(12, 4), (3, 4))
    assert found.mask.sum() == 1
    assert found.mask[found.seed]


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.integers(1, 100))
def test_lost_on_anything(seed, rows, columns, k_patches):
    features = torch.randn(rows * columns, 5, generator=torch.Generator().manual_seed(seed))
    found = lost(features, (rows, columns), k_patches)
    assert found.mask[found.seed]
    assert found.maps["degree"][found.seed] == found.maps["degree"].min()
    assert np.array_equal(component_at(found.maps["mask values"] > 0, found.seed), found.mask)
    # Degrees and signs do not change when all features grow, nor when the feature space is turned by half.
    grown = lost(-2 * features, (rows, columns), k_patches)
    assert np.array_equal(grown.mask, found.mask)


# --- DINO-seg ---


def attention(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_dino_seg_keeps_sixty_per_cent():
    """Ascending shares 0.05 x 4, 0.2, 0.6 add up to .05 .1 .15 .2 .4 1: only the last exceeds 0.4."""
    found = dino_seg(attention(0.05, 0.05, 0.6, 0.2, 0.05, 0.05), (2, 3), head=0, mended=True)
    assert found.mask.tolist() == [[False, False, True], [False, False, False]]


def test_dino_seg_never_considers_the_last_component():
    """The lower right component is the larger one, but it is the last in reading order."""
    weights = np.full((3, 4), 0.007)
    weights[0, 0] = 0.3
    weights[2] = 0.12, 0.15, 0.18, 0.2  # the first two are not among the 60 %
    found, mended = (dino_seg(attention(*weights.ravel()), (3, 4), 0, mended) for mended in (False, True))
    assert np.argwhere(found.maps["60 % of the mass"]).tolist() == [[0, 0], [2, 2], [2, 3]]
    assert np.argwhere(found.mask).tolist() == [[0, 0]]
    assert np.argwhere(mended.mask).tolist() == [[2, 2], [2, 3]]


def test_dino_seg_of_a_single_component():
    """The published code takes the background: here the two patches on the left."""
    found, mended = (dino_seg(attention(0.01, 0.01, 1.0), (1, 3), 0, mended) for mended in (False, True))
    assert found.mask.tolist() == [[True, True, False]]
    assert mended.mask.tolist() == [[False, False, True]]
    assert dino_seg(attention(1.0, 1.0), (1, 2), 0).mask.all()  # there is no background


def test_recorded_dino_seg_of_odd_maps():
    """Boxes by the published code, which does not clip them."""
    recorded = json.loads(reference("dino_seg_odd.json").read_text())
    assert len(recorded) == 16
    mended_too = 0
    for entry in recorded.values():
        rows, columns = entry["grid"]
        size = (16 * rows - 5, 16 * columns - 9)
        xmin, ymin, xmax, ymax = entry["box"]
        expected = (xmin, ymin, min(xmax, size[1]), min(ymax, size[0]))
        assert dino_seg(attention(*entry["attention"]), (rows, columns), 0).box((16, 16), size) == expected
        mended = dino_seg(attention(*entry["attention"]), (rows, columns), 0, mended=True)
        mended_too += mended.box((16, 16), size) == expected
    assert mended_too < 16


def test_dino_seg_of_another_head_and_of_no_attention():
    both = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]])
    assert dino_seg(both, (1, 3), head=1, mended=True).mask.tolist() == [[False, False, True]]
    with pytest.raises(InputError, match="no head 2: the backbone has 2"):
        dino_seg(both, (1, 3), head=2)
    with pytest.raises(InputError, match="no mass"):
        dino_seg(torch.zeros(1, 6), (2, 3), head=0)


@given(st.lists(st.floats(1e-3, 1), min_size=20, max_size=20), st.floats(0.1, 100))
def test_dino_seg_on_anything(values, scale):
    weights = attention(*values)
    found = dino_seg(weights, (4, 5), head=0)
    kept = found.maps["60 % of the mass"]
    assert kept[found.mask].all() or not kept[found.mask].any()
    total = weights.sum().item()
    shares = weights.reshape(4, 5).numpy()
    assert shares[kept].sum() >= 0.6 * total * (1 - 1e-5)
    assert shares[kept].sum() - shares[kept].min() <= 0.6 * total * (1 + 1e-5)  # and no patch more than is needed
    assert found.mask.sum() >= 1


# --- TokenCut ---


def test_similarity_graph():
    features = torch.tensor([[2.0, 0.0], [1.0, 0.1], [0.0, 3.0]])
    expected = np.full((3, 3), WEAK)
    expected[:2, :2] = expected[2, 2] = 1
    np.testing.assert_array_equal(similarity_graph(features, tau=0.2).numpy(), expected)


def test_tokencut_by_hand():
    """Two columns of object among four: the cut parts them, and the smaller side has the larger values."""
    object_, ground = (1.0, 0.0), (0.0, 1.0)
    row = [ground, object_, ground, ground]
    found = tokencut(torch.tensor(row * 3), (3, 4))
    assert found.mask.tolist() == [[False, True, False, False]] * 3
    assert found.box((16, 16), (48, 64)) == (16, 0, 32, 48)
    assert found.mask[found.seed]


@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(2, 7))
def test_tokencut_on_anything(seed, rows, columns):
    features = torch.randn(rows * columns, 6, generator=torch.Generator().manual_seed(seed))
    found = tokencut(features, (rows, columns))
    if found.seed is None:
        assert found.mask.all()
        return
    assert found.mask[found.seed]
    values = found.maps["eigenvector"]
    assert abs(values[found.seed]) >= (1 - 2e-6) * np.abs(values).max()
    assert (values[found.mask] > values.mean() - 1e-9).all()


@pytest.mark.parametrize("features", [torch.ones(12, 4), torch.eye(12), torch.ones(1, 4)])
def test_tokencut_where_there_is_nothing_to_cut(features):
    """All patches alike, none like another, or a single one: any vector is an eigenvector."""
    grid = (3, 4) if len(features) == 12 else (1, 1)
    assert tokencut(features, grid).mask.all()


# --- input that cannot be ---


def test_the_best_object_is_the_largest_that_leaves_the_border_free():
    """Two alike parts; the one in the middle touches no border."""
    labels = np.zeros((6, 8), dtype=int)
    labels[1:5, 1:5], labels[:, 6:] = 1, 2
    found = best_object(torch.eye(3)[torch.from_numpy(labels.ravel())], labels.shape, 0.5)
    np.testing.assert_array_equal(found.mask, labels == 1)
    assert best_object(torch.ones(12, 3), (3, 4), 0.5).mask.all()


@pytest.mark.parametrize("detector", [lost, tokencut, lambda values, grid: eigenseg(values[:, 0].numpy(), grid)])
def test_what_it_is_given_must_fit_and_be_finite(detector):
    with pytest.raises(InputError, match="12 patches do not fit a grid of 3x5"):
        detector(torch.ones(12, 4), (3, 5))
    with pytest.raises(InputError, match="NaN or infinite"):
        detector(torch.full((12, 4), float("nan")), (3, 4))
