"""Eigenvectors of the graph of patches: graphs of four nodes by hand, and any features against dense LAPACK."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array

from spectralseg.mathematics.affinity import resize_features
from spectralseg.mathematics.eigen import fix_signs, normalised_cut, spectral_eigenvectors

MATRICES = ("laplacian", "affinity", "affinity_torch", "affinity_svd")


def at_angles(*degrees: float) -> torch.Tensor:
    """Unit features in the plane; their affinities are cosines."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def check(values: torch.Tensor, expected: list[float], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32), atol=tolerance, rtol=0)


# --- four nodes ---

TWO_PAIRS = at_angles(0, 0, 90, 90)  # W has two blocks of ones, D = 2


def test_two_disconnected_pairs():
    """In a block D - W = [[1, -1], [-1, 1]], with eigenvalues 0 and 2; over D = 2 they are 0 and 1."""
    values, vectors = spectral_eigenvectors(TWO_PAIRS, K=4)
    check(values, [0, 0, 1, 1])
    # x'Dx = 1 gives 1/2 on each node, in one pair alone or spread over both; a pair is constant where l = 0
    torch.testing.assert_close(vectors[:2, 0], vectors[:2, 1])
    torch.testing.assert_close(vectors[:2, 2], vectors[:2, 3])
    torch.testing.assert_close(vectors[2:, 0], -vectors[2:, 1])
    torch.testing.assert_close((2 * vectors.square()).sum(dim=1), torch.ones(4))
    check(spectral_eigenvectors(TWO_PAIRS, K=4, lapnorm=False)[0], [0, 0, 2, 2])
    check(spectral_eigenvectors(TWO_PAIRS, K=4, which_matrix="affinity")[0], [2, 2, 0, 0])
    check(spectral_eigenvectors(TWO_PAIRS, K=2, which_matrix="affinity_svd")[0], [math.sqrt(2), math.sqrt(2)])


PATH = at_angles(0, 60, 120, 180)  # neighbours at 60 degrees: 1/2; all others at 120 or 180: below zero, so cut off


def test_path_of_four():
    """W has ones on its diagonal and 1/2 beside it; D = (3, 4, 4, 3) / 2.

    x = (a, b, b, a): (1 - 3l) a = b and (1 - 4l) b = a, so l (12 l - 7) = 0.
    x = (a, b, -b, -a): (1 - 3l) a = b and (3 - 4l) b = a, so 12 l^2 - 13 l + 2 = 0.
    """
    low, high = (13 - math.sqrt(73)) / 24, (13 + math.sqrt(73)) / 24
    values, vectors = spectral_eigenvectors(PATH, K=4)
    check(values, [0, low, 7 / 12, high])
    torch.testing.assert_close(vectors[0], torch.full((4,), 7**-0.5))  # the sum of D is 7
    a, b = 1.0, 1 - 3 * low
    antisymmetric = torch.tensor([a, b, -b, -a]) / math.sqrt(2 * (1.5 * a**2 + 2 * b**2))
    assert torch.allclose(vectors[1], antisymmetric, atol=1e-6) or torch.allclose(vectors[1], -antisymmetric, atol=1e-6)


def test_path_of_four_without_lapnorm():
    """D - W is half the Laplacian of the path of four nodes, whose eigenvalues are 2 - 2 cos(pi k / 4)."""
    values, vectors = spectral_eigenvectors(PATH, K=4, lapnorm=False)
    check(values, [1 - math.cos(math.pi * k / 4) for k in range(4)])
    torch.testing.assert_close(vectors[0], torch.full((4,), 0.5))
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(4), atol=1e-6, rtol=0)


def test_path_of_four_by_affinity():
    """W = 1 + half the path's adjacency, whose eigenvalues are 2 cos(pi k / 5), k = 1..4; uncut it has rank 2.

    F'F of the four uncut features is [[1 + 1/4 + 1/4 + 1, 0], [0, 3/4 + 3/4]] = diag(5/2, 3/2).
    """
    check(spectral_eigenvectors(PATH, 4, "affinity")[0], [1 + math.cos(math.pi * k / 5) for k in (1, 2, 3, 4)])
    check(spectral_eigenvectors(PATH, 4, "affinity", threshold_at_zero=False)[0], [2.5, 1.5, 0, 0])
    values, vectors = spectral_eigenvectors(PATH, 2, "affinity_svd")
    check(values, [math.sqrt(2.5), math.sqrt(1.5)])
    # the singular vectors are the coordinates themselves, two of four positive: the largest entry decides the sign
    torch.testing.assert_close(vectors[0].abs(), torch.tensor([2.0, 1, 1, 2]) / math.sqrt(10))
    torch.testing.assert_close(vectors[1].abs(), torch.tensor([0, 1.0, 1, 0]) / math.sqrt(2), atol=1e-6, rtol=1e-6)


def test_degree_of_zero_counts_as_one():
    """Features 1, 1, -1, -1 uncut: every row sum is 0, D = 1, and D - W = 1 - ff' has 1 - 4 once and 1 three times."""
    features = torch.tensor([[1.0], [1], [-1], [-1]])
    for lapnorm in (True, False):
        values, vectors = spectral_eigenvectors(features, 4, threshold_at_zero=False, lapnorm=lapnorm)
        check(values, [-3, 1, 1, 1])
        torch.testing.assert_close(vectors[0].abs(), torch.full((4,), 0.5))
        assert torch.equal(vectors[0].sign(), vectors[0, 0].sign() * torch.tensor([1.0, 1, -1, -1]))


def test_normalize_takes_the_lengths_away():
    longer = PATH * torch.tensor([[1.0], [5], [0.1], [3]])
    torch.testing.assert_close(spectral_eigenvectors(longer, 4), spectral_eigenvectors(PATH, 4), atol=1e-6, rtol=0)
    # without: divided by its maximum, W does not see a common factor; an affinity does, squared
    raw = spectral_eigenvectors(longer, 4, normalize=False)
    assert (raw[0] - spectral_eigenvectors(PATH, 4)[0]).abs().max() > 0.1
    torch.testing.assert_close(spectral_eigenvectors(7 * longer, 4, normalize=False), raw, atol=1e-5, rtol=0)
    affinity = spectral_eigenvectors(longer, 4, "affinity", normalize=False)[0]
    torch.testing.assert_close(spectral_eigenvectors(7 * longer, 4, "affinity", normalize=False)[0], 49 * affinity)


def test_colour_joins_what_features_do_not():
    """An edge of weight 1/2 * 4 = 2 between the pairs: 1-2=3-4 with W = 1 inside, 2 across; D = (2, 4, 4, 2).

    x = (a, b, b, a): a - b = 2 l a, b - a = 4 l b: l = 0 or (1 - 2l)(1 - 4l) = 1, l = 3/4.
    x = (a, b, -b, -a): a - b = 2 l a, 5 b - a = 4 l b: (1 - 2l)(5 - 4l) = 1, 4 l^2 - 7 l + 2 = 0.
    """
    colour = coo_array(([1.0, 3, 3, 1], ([1, 1, 2, 2], [2, 2, 1, 1])), shape=(4, 4))
    values, _ = spectral_eigenvectors(TWO_PAIRS, 4, colour=colour, colour_lambda=0.5)
    check(values, [0, (7 - math.sqrt(17)) / 8, 0.75, (7 + math.sqrt(17)) / 8])
    check(spectral_eigenvectors(TWO_PAIRS, 4, colour=colour, colour_lambda=0.0)[0], [0, 0, 1, 1])


def test_features_are_normalised_first_and_resized_then():
    features = torch.rand(2 * 3, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7).view(-1, 1)
    unit = features / features.norm(dim=1, keepdim=True)
    resized = resize_features(unit[None], (2, 3), (4, 5))[0]
    expected = spectral_eigenvectors(resized, 4, normalize=False)
    torch.testing.assert_close(spectral_eigenvectors(features, 4, grid=(2, 3), resize_to=(4, 5)), expected)


# --- any features ---


def random_features(kind: str, count: int, dimension: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, dimension, generator=generator)
    if kind == "positive":
        return noise.abs()
    if kind == "clustered":
        return 3 * torch.randn(4, dimension, generator=generator)[torch.arange(count) % 4] + noise
    return noise


def whole_problem(features: torch.Tensor, matrix: str, normalize: bool, threshold: bool, lapnorm: bool):
    """(W or D - W, D, all eigenvalues in the order of the command), in float64 and straight from the definitions."""
    rows = features.double().numpy()
    if normalize:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    affinity = rows @ rows.T
    if matrix == "affinity_svd":
        return affinity, np.ones(len(rows)), np.linalg.svd(rows, compute_uv=False)
    if threshold:
        affinity = np.maximum(affinity, 0)
    if matrix != "laplacian":
        return affinity, np.ones(len(rows)), np.linalg.eigvalsh(affinity)[::-1]
    affinity = affinity / affinity.max()
    degree = affinity.sum(axis=1)
    degree[degree < 1e-12] = 1
    laplacian = np.diag(degree) - affinity
    weights = degree if lapnorm else np.ones(len(rows))
    return laplacian, weights, scipy.linalg.eigh(laplacian, np.diag(weights), eigvals_only=True)


@settings(max_examples=100)
@given(
    st.sampled_from(["positive", "mixed", "clustered"]),
    st.integers(10, 220),
    st.integers(2, 24),
    st.integers(1, 6),
    st.sampled_from(MATRICES),
    *[st.booleans()] * 3,
    st.integers(0, 10_000),
)
def test_agrees_with_lapack(kind, count, dimension, K, matrix, normalize, threshold, lapnorm, seed):
    """Eigenvalues, and eigenvectors by what defines them, on both sides of the size where the iteration begins."""
    K = min(K, dimension) if matrix == "affinity_svd" else K
    features = random_features(kind, count, dimension, seed)
    values, vectors = spectral_eigenvectors(features, K, matrix, normalize, threshold, lapnorm)
    operator, degree, expected = whole_problem(features, matrix, normalize, threshold, lapnorm)
    assert (values.shape, vectors.shape) == ((K,), (K, count))
    assert values.dtype == vectors.dtype == torch.float32
    # float32 leaves 1e-5 of the largest number; a small degree (possible with negative affinities) blows it up
    tolerance = 2e-5 * max(1, np.abs(expected).max()) * max(1, 1 / degree.min() ** 2)
    np.testing.assert_allclose(values.numpy(), expected[:K], atol=tolerance)
    x, values = vectors.double().numpy().T, values.double().numpy()
    np.testing.assert_allclose(x.T @ (degree[:, None] * x), np.eye(K), atol=10 * tolerance)
    if matrix == "affinity_svd":
        values = values**2  # F F' u = s^2 u
    residual = (operator @ x - degree[:, None] * x * values) / np.sqrt(degree)[:, None]
    assert np.linalg.norm(residual, axis=0).max() < 10 * tolerance * max(1, np.abs(values).max())
    share = (vectors > 0).double().mean(dim=1)
    assert not ((share > 0.5) & (share < 1)).any()


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("lapnorm", [True, False])
@pytest.mark.parametrize("count", [40, 130])  # dense at once, and by the iteration
def test_a_batch_gives_what_its_images_give_alone(matrix, lapnorm, count):
    features = torch.stack([random_features(kind, count, 6, 0) for kind in ("positive", "mixed", "clustered")])
    colour = [coo_array(([w, w], ([0, 1], [1, 0])), shape=(count, count)) for w in (0.0, 5.0, 50.0)]
    options = {"lapnorm": lapnorm, "colour_lambda": 2.0 if matrix == "laplacian" else 0.0}
    values, vectors = spectral_eigenvectors(features, 4, matrix, colour=colour, **options)
    assert vectors.shape == (3, 4, count)
    for index in range(3):
        alone, alone_vectors = spectral_eigenvectors(features[index], 4, matrix, colour=colour[index], **options)
        torch.testing.assert_close(values[index], alone, atol=1e-5, rtol=1e-5)
        gaps = alone.diff().abs()
        for k in range(4):
            nearest = min([float(gap) for gap in (gaps[k - 1 : k], gaps[k : k + 1]) if len(gap)])
            if nearest > 1e-2 and k < 3:
                torch.testing.assert_close(vectors[index, k], alone_vectors[k], atol=1e-3, rtol=0)


def test_a_rerun_gives_the_same_bits():
    features = random_features("mixed", 150, 8, 0)
    first, second = (spectral_eigenvectors(features, 5) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


# --- the normalised cut of any affinity ---


def graph(kind: str, count: int, seed: int = 0) -> torch.Tensor:
    """(count, count) float64 affinities: of features; binary and weak, as TokenCut's; of nodes alike to nothing."""
    unit = torch.nn.functional.normalize(random_features("clustered", count, 16, seed).double(), dim=1)
    if kind == "features":
        return (unit @ unit.T).clamp(min=0)
    if kind == "binary":
        return torch.where(unit @ unit.T > 0.2, 1.0, 1e-5).double()
    alone = torch.full((count, count), 1e-5, dtype=torch.float64).fill_diagonal_(1)
    alone[: count // 8, : count // 8] = 1
    return alone


@pytest.mark.filterwarnings("error")  # no falling back to LAPACK
@pytest.mark.parametrize("kind", ["features", "binary", "alone"])
@pytest.mark.parametrize("count", [3, 40, 300])  # dense at once, and by the iteration
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_normalised_cut_solves_the_equation_of_shi_and_malik(kind, count, dtype, tolerance):
    """(D - W) x = l D x with x'Dx = 1, against scipy's generalised LAPACK; each matrix of a batch as it is alone."""
    W = torch.stack([graph(kind, count, seed) for seed in (0, 1)])
    values, x, degrees = normalised_cut(W.to(dtype), 3)
    assert (values.dtype, x.dtype, degrees.dtype) == (dtype,) * 3
    for index in range(2):
        affinity, d, vectors = W[index].numpy(), degrees[index].double().numpy(), x[index].double().numpy()
        np.testing.assert_allclose(d, affinity.sum(axis=1), rtol=1e-6)
        expected = scipy.linalg.eigh(np.diag(d) - affinity, np.diag(d), eigvals_only=True)[:3]
        np.testing.assert_allclose(values[index], expected, atol=tolerance)
        np.testing.assert_allclose(vectors.T @ (d[:, None] * vectors), np.eye(3), atol=tolerance)
        residual = (d[:, None] * vectors - affinity @ vectors) / d[:, None] - vectors * values[index].double().numpy()
        assert np.linalg.norm(np.sqrt(d)[:, None] * residual, axis=0).max() < tolerance
        torch.testing.assert_close(normalised_cut(W[index].to(dtype), 3)[0], values[index], atol=tolerance, rtol=0)


def test_affinity_is_as_exact_at_the_fiftieth_eigenvector_as_at_the_first():
    """Features of photographs are nearly alike: here the largest eigenvalue is 9000 times the fiftieth."""
    spread = random_features("clustered", 600, 128, 0) * 0.98 ** torch.arange(128)
    features = 3 * random_features("mixed", 1, 128, 1) + spread
    values, vectors = spectral_eigenvectors(features, 50, "affinity")
    W, _, expected = whole_problem(features, "affinity", True, True, False)
    assert expected[0] > 9000 * expected[49]
    np.testing.assert_allclose(values.double(), expected[:50], rtol=2e-5)  # 3e-4 if all were float32
    assert (-np.diff(expected[:51]) > 0.01 * expected[:50]).all()
    exact = np.linalg.eigh(W)[1][:, ::-1]
    assert np.abs((vectors.double().numpy() * exact[:, :50].T).sum(axis=1)).min() > 1 - 1e-5


# --- the sign rule ---


@pytest.mark.parametrize(
    ("vector", "fixed"),
    [
        ([1, 1, 1, -5], [-1, -1, -1, 5]),  # more than half positive: negated
        ([-1, -1, -1, 5], [-1, -1, -1, 5]),  # a quarter positive: kept
        ([1, 2, 3, 4], [1, 2, 3, 4]),  # all positive: kept
        ([-1, -2, -3, -4], [1, 2, 3, 4]),  # all negative: the rule is silent, positive is ours
        ([3, 1, -2, -1], [3, 1, -2, -1]),  # half: the rule is silent, the largest entry decides
        ([-3, -1, 2, 1], [3, 1, -2, -1]),
        ([1, 1, 1, 0], [-1, -1, -1, 0]),  # zeros are not positive
        ([-1, -1, -1, 0], [-1, -1, -1, 0]),  # ... so that this is how the rule leaves both
        ([0, 0, 0, -2], [0, 0, 0, 2]),  # neither is more than half positive
        ([0, 0, 0, 2], [0, 0, 0, 2]),
    ],
)
def test_sign_rule(vector, fixed):
    assert torch.equal(fix_signs(torch.tensor([vector], dtype=torch.float32)), torch.tensor([fixed]).float())


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_is_definite_and_follows_the_published_rule(entries):
    vector = torch.tensor([entries], dtype=torch.float32)
    fixed = fix_signs(vector)
    assert torch.equal(fixed, vector) or torch.equal(fixed, -vector)
    assert torch.equal(fix_signs(-vector).abs(), fixed.abs())
    share = (fixed > 0).float().mean()
    assert not 0.5 < share < 1
    assert torch.equal(fix_signs(fixed), fixed)
    assert torch.equal(fix_signs(-vector), fixed)
