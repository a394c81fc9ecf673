"""Graphs that break solvers: disconnected, constant, of low rank, tiny, damaged."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralseg.errors import InputError
from spectralseg.mathematics import solvers
from spectralseg.mathematics.eigen import spectral_eigenvectors

SETTINGS = [
    {},
    {"lapnorm": False},
    {"normalize": False},
    {"threshold_at_zero": False},
    {"which_matrix": "affinity"},
    {"which_matrix": "affinity_svd"},
]


def seeded(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def islands(count: int, components: int) -> torch.Tensor:
    """Features of disconnected components: each has three coordinates of its own."""
    features = torch.zeros(count, 3 * components)
    for patch in range(count):
        component = patch % components
        features[patch, 3 * component : 3 * component + 3] = seeded(1, 3, patch).abs()
    return features


@pytest.mark.filterwarnings("error")  # the fallback to LAPACK warns
@pytest.mark.parametrize(("count", "K"), [(300, 5), (300, 12), (60, 12)])
@pytest.mark.parametrize("components", [1, 2, 4, 5, 6, 11, 12, 13, 20, 40])
@pytest.mark.parametrize("lapnorm", [True, False])
def test_zero_comes_as_often_as_there_are_components(count, K, components, lapnorm):
    """Both below K and above it, above the block's width too; by the iteration and (60 patches) by LAPACK."""
    assert solvers.is_small(count, K) == (count == 60)
    features = islands(count, components)
    values, vectors = spectral_eigenvectors(features, K, lapnorm=lapnorm)
    zeros = min(components, K)
    assert values[:zeros].abs().max() < 1e-5
    assert (values[zeros:] > 1e-2).all()
    # an eigenvector of 0 is constant on each component
    for vector in vectors[:zeros]:
        for component in range(components):
            own = vector[component::components]
            assert own.max() - own.min() < 2e-3 * vector.abs().max()
    exact = spectral_eigenvectors(features, K, lapnorm=lapnorm, solver="dense")[0]
    torch.testing.assert_close(values, exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 30, 300])
def test_constant_features(count):
    """W is all ones and D = T: eigenvalues 0 and then 1, or 0 and then T, or T and then 0."""
    K = min(count, 5)
    features = torch.full((count, 6), 0.3)
    rest = torch.ones(K - 1)
    for which, expected in (
        ({}, torch.cat([torch.zeros(1), rest])),
        ({"lapnorm": False}, torch.cat([torch.zeros(1), count * rest])),
        ({"which_matrix": "affinity"}, torch.cat([torch.full((1,), float(count)), 0 * rest])),
        ({"which_matrix": "affinity_svd"}, torch.cat([torch.full((1,), count**0.5), 0 * rest])),
    ):
        values, vectors = spectral_eigenvectors(features, K, **which)
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-5)
        length = 1 if which else 1 / count  # x'Dx = 1 with D = T, else x'x = 1
        torch.testing.assert_close(vectors @ vectors.T, length * torch.eye(K), atol=1e-5 * length, rtol=0)
        torch.testing.assert_close(vectors[0], torch.full((count,), (length / count) ** 0.5), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [30, 300])
@pytest.mark.parametrize("which", SETTINGS)
def test_features_that_are_all_zero(count, which):
    """W = 0, and D = 1 by rule: D - W is the identity."""
    values, vectors = spectral_eigenvectors(torch.zeros(count, 6), 4, **which)
    assert torch.equal(values, torch.zeros(4) if "which_matrix" in which else torch.ones(4))
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lapnorm", [True, False])
def test_patches_without_features_are_on_their_own(lapnorm):
    """Every tenth row is zero: its degree counts as 1, and it is an eigenvector of 1. The others are one island."""
    features = seeded(200, 2).abs()
    features[::10] = 0
    values, vectors = spectral_eigenvectors(features, 3, lapnorm=lapnorm)
    # the island by itself, whose second eigenvalue is above 1/2 / above 1
    others = spectral_eigenvectors(features[features.norm(dim=1) > 0], 3, lapnorm=lapnorm)[0]
    both = torch.cat([others, torch.ones(20)]).sort().values[:3]
    torch.testing.assert_close(values, both, atol=1e-5, rtol=0)
    assert vectors[0, ::10].abs().max() < 1e-5
    assert torch.isfinite(vectors).all()


@settings(max_examples=60)
@given(
    st.integers(130, 300),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([0, 1e-7, 1e-5]),
    st.sampled_from(SETTINGS),
    st.integers(0, 10_000),
)
def test_identical_patches(count, K, groups, dimension, noise, which, seed):
    """Flat regions give identical features and matrices of low rank; everything is still found, and at once."""
    dimension = max(dimension, K)
    members = torch.arange(count) % groups
    features = seeded(groups, dimension, seed)[members] + noise * seeded(count, dimension, seed + 1)
    values, vectors = spectral_eigenvectors(features, K, **which)
    exact = spectral_eigenvectors(features, K, solver="dense", **which)[0]
    torch.testing.assert_close(values, exact, atol=2e-5 * max(1, float(exact.abs().max())), rtol=0)
    assert torch.isfinite(vectors).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("which", SETTINGS)
def test_low_rank_needs_no_fallback(which):
    spectral_eigenvectors(seeded(5, 8).abs()[torch.arange(400) % 5], 5, **which)


@pytest.mark.parametrize("which", SETTINGS)
@pytest.mark.parametrize("K", [0, -1, 26])
def test_too_many_or_none(which, K):
    with pytest.raises(InputError, match=f"^K={K} eigenvectors of 25 patches with 30 features: ask for 1 to 25$"):
        spectral_eigenvectors(seeded(25, 30), K, **which)


def test_affinity_svd_has_no_more_than_the_features():
    assert spectral_eigenvectors(seeded(25, 3), 3, "affinity_svd")[1].shape == (3, 25)
    with pytest.raises(InputError, match="K=4 eigenvectors of 25 patches with 3 features: ask for 1 to 3"):
        spectral_eigenvectors(seeded(25, 3), 4, "affinity_svd")


def test_the_number_of_cells_after_resizing_counts():
    features = seeded(16, 6).abs()
    assert spectral_eigenvectors(features, 40, grid=(4, 4), resize_to=(8, 8))[1].shape == (40, 64)
    with pytest.raises(InputError, match="K=5 eigenvectors of 4 patches with 6 features: ask for 1 to 4"):
        spectral_eigenvectors(features, 5, grid=(4, 4), resize_to=(2, 2))


@pytest.mark.parametrize("which", SETTINGS)
def test_one_patch(which):
    values, vectors = spectral_eigenvectors(torch.tensor([[3.0, 4.0]]), 1, **which)
    expected = 1.0 if "which_matrix" in which else 0.0
    torch.testing.assert_close(values, torch.tensor([expected]), atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors, torch.tensor([[1.0]]), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="K=5 eigenvectors of 1 patches"):
        spectral_eigenvectors(torch.tensor([[3.0, 4.0]]), 5, **which)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("which", SETTINGS)
def test_damaged_features_are_refused(value, which):
    features = seeded(2 * 40, 6).view(2, 40, 6)
    features[1, 17, 3] = value
    with pytest.raises(InputError, match="NaN, infinite or immense"):
        spectral_eigenvectors(features, 4, **which)


@pytest.mark.parametrize("scale", [2.0**-120, 1e-18, 1e19])
@pytest.mark.parametrize("which", [*SETTINGS, {"normalize": False, "lapnorm": False}])
def test_the_scale_of_features_does_not_matter(which, scale):
    features = seeded(200, 5).abs()
    values, vectors = spectral_eigenvectors(features, 4, **which)
    scaled_values, scaled_vectors = spectral_eigenvectors(scale * features, 4, **which)
    torch.testing.assert_close(scaled_values, values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scaled_vectors.abs(), vectors.abs(), atol=1e-4, rtol=1e-4)


def test_eigenvalues_of_the_scale_of_features():
    features = seeded(200, 5).abs()
    for which, power in (("affinity", 2), ("affinity_svd", 1)):
        plain = spectral_eigenvectors(features, 3, which, normalize=False)[0]
        for scale in (2.0**-60, 2.0**50):
            values = spectral_eigenvectors(scale * features, 3, which, normalize=False)[0]
            torch.testing.assert_close(values, scale**power * plain, atol=0, rtol=1e-5)
    with pytest.raises(InputError, match="eigenvalues are too large for float32; normalize the features"):
        spectral_eigenvectors(1e20 * features, 3, "affinity", normalize=False)


@pytest.mark.parametrize("count", [60, 300])
@pytest.mark.parametrize("lapnorm", [True, False])
def test_degrees_that_cancel(count, lapnorm):
    """All degrees are zero, so that D = 1 by rule, and the eigenvalues of D - W are 1 minus those of W."""
    ramp = torch.linspace(-1, 1, count)[:, None]
    squares = (count + 1) * count / 3 / (count - 1)  # of the ramp, summed: the one eigenvalue of W that is not 0
    simplex = torch.eye(count) - 1 / count
    for features, normalize, expected in (
        (ramp, True, [1.0 - count, 1, 1]),
        (ramp, False, [1 - squares, 1, 1]),
        (simplex, True, [-1 / (count - 1)] * 3),
    ):
        values, _ = spectral_eigenvectors(features, 3, normalize=normalize, threshold_at_zero=False, lapnorm=lapnorm)
        torch.testing.assert_close(values, torch.tensor(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("which", [{}, {"lapnorm": False}, {"which_matrix": "affinity"}])
def test_what_does_not_converge_goes_to_lapack(which, monkeypatch):
    features = seeded(200, 40)
    exact = spectral_eigenvectors(features, 5, solver="dense", **which)
    solver = solvers.leading_eigenpairs
    monkeypatch.setattr(solvers, "leading_eigenpairs", lambda *args, **_: solver(*args[:3], 1e-9, max_iterations=1))
    with pytest.warns(UserWarning, match="did not converge; computed by dense LAPACK instead"):
        values, vectors = spectral_eigenvectors(features, 5, **which)
    assert torch.equal(values, exact[0])
    assert torch.equal(vectors, exact[1])


def test_indefinite_plain_laplacian_goes_to_lapack():
    """With negative affinities D - W has negative eigenvalues and no Cholesky factor: the smallest are found still."""
    features = seeded(200, 3)
    values, _ = spectral_eigenvectors(features, 5, threshold_at_zero=False, lapnorm=False)
    unit = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    affinity = unit @ unit.T
    degree = affinity.sum(axis=1)
    degree[degree < 1e-12] = 1
    expected = np.linalg.eigvalsh(np.diag(degree) - affinity / affinity.max())[:5]
    assert expected[0] < -1
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-3)


def test_half_precision_features_are_computed_in_float32():
    features = seeded(200, 12).abs().half()
    values, vectors = spectral_eigenvectors(features, 4)
    assert values.dtype == vectors.dtype == torch.float32
    torch.testing.assert_close(values, spectral_eigenvectors(features.float(), 4)[0])
