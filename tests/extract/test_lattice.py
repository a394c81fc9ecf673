"""The permutohedral lattice: cases worked out by hand, sums of Gaussians, every kind of points."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralseg.errors import InputError
from spectralseg.mathematics import lattice
from spectralseg.mathematics.lattice import GaussianFilter, VertexKeys, barycentric, enclosing_simplex, neighbours


def random_points(seed: int, dimensions: int, count: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dimensions, count, generator=generator) * spread


@pytest.mark.parametrize("dimensions", [2, 5])
def test_equal_points_get_the_mean_and_distant_ones_keep_their_values(dimensions: int):
    values = torch.tensor([[1.0, -2], [4, 0], [1, 5]])
    same = torch.full((dimensions, 3), 0.3)
    torch.testing.assert_close(GaussianFilter(same)(values), values.mean(0).expand(3, 2))
    apart = torch.zeros(dimensions, 3)
    apart[0], apart[1] = torch.tensor([0, 50, 0]), torch.tensor([0, 0, -40])
    torch.testing.assert_close(GaussianFilter(apart)(values), values)


@pytest.mark.parametrize(("dimensions", "spread"), [(2, 1), (2, 3), (5, 0.5)])
def test_near_the_sum_of_gaussians(dimensions: int, spread: float):
    points = random_points(0, dimensions, 500, spread)
    kernel = torch.exp(-torch.cdist(points.T, points.T).square() / 2)
    root = kernel.sum(1).rsqrt()
    exact = root[:, None] * kernel * root
    approximate = GaussianFilter(points)(torch.eye(500))
    assert torch.linalg.norm(approximate - exact) <= 0.15 * torch.linalg.norm(exact)
    values = torch.stack([points[0], torch.sin(3 * points[1])]).T
    correlation = torch.corrcoef(torch.stack([(exact @ values).ravel(), (approximate @ values).ravel()]))[0, 1]
    assert correlation >= 0.99


@given(st.integers(0, 1000), st.sampled_from([2, 5]), st.sampled_from([0.01, 1, 30, 300]))
@settings(max_examples=30, deadline=None)
def test_properties_of_every_filter(seed: int, dimensions: int, spread: float):
    points = random_points(seed, dimensions, 60, spread)
    matrix = GaussianFilter(points)(torch.eye(60))
    assert (matrix >= -1e-6).all()
    assert torch.linalg.eigvals(matrix).real.max() <= 1 + 1e-4  # D^1/2 is the leading eigenvector, of value 1
    torch.testing.assert_close(GaussianFilter(points.flip(1))(torch.eye(60)).flip(0, 1), matrix, rtol=1e-3, atol=1e-4)


@given(st.integers(0, 1000), st.sampled_from([2, 5]), st.sampled_from([0.01, 1, 300]))
@settings(max_examples=30, deadline=None)
def test_points_lie_inside_their_simplices(seed: int, dimensions: int, spread: float):
    points = random_points(seed, dimensions, 60, spread)
    origin, rank, offsets = enclosing_simplex(points)
    size = dimensions + 1
    assert (origin.sum(0) == 0).all()
    assert (rank.sort(0).values == torch.arange(size)[:, None]).all()
    weights = barycentric(rank, offsets)
    assert (weights >= -1e-4).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(60), rtol=1e-4, atol=1e-4)
    # The vertex of remainder k is k along the axes of the first ranks, and k - (d + 1) along the others.
    remainders = torch.arange(size)[:, None, None]
    vertices = size * origin + torch.where(rank <= dimensions - remainders, remainders, remainders - size)
    elevated = lattice.elevation(dimensions) @ points
    torch.testing.assert_close((weights[:, None] * vertices).sum(0), elevated, rtol=1e-3, atol=1e-3)
    # Keys are different where vertices are, and lead to the neighbours along the axes.
    packed = VertexKeys(points)
    keys = packed(origin, rank)
    flat = vertices.movedim(1, -1).reshape(-1, size).long()
    assert len(keys.unique()) == len(flat.unique(dim=0))
    step = size * torch.eye(size, dtype=torch.int64) - 1  # of the neighbour along each axis
    known = {tuple(vertex): key for vertex, key in zip(flat.tolist(), keys.reshape(-1).tolist(), strict=True)}
    for vertex, key in known.items():
        for axis in range(size):
            beside = tuple((torch.tensor(vertex) + step[axis]).tolist())
            assert known.get(beside, key + int(packed.steps[axis])) == key + int(packed.steps[axis])


def test_neighbours_by_hand():
    table, far = neighbours(torch.tensor([0, 1, 3]), torch.tensor([1, -3]))
    assert table.tolist() == [[0, 3, 1], [1, 0, 3], [2, 3, 3], [3, 3, 3]]
    assert far.tolist() == [[0, 2, 3], [1, 3, 3], [2, 3, 0], [3, 3, 3]]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    points, values = random_points(0, 5, 100, 1), random_points(1, 100, 3, 1)
    whole = GaussianFilter(points)(values)
    monkeypatch.setattr(lattice, "CHUNK", 7)
    torch.testing.assert_close(GaussianFilter(points)(values), whole)


def test_too_many_standard_deviations():
    assert VertexKeys(random_points(0, 5, 10, 3)).steps.dtype == torch.int32
    assert VertexKeys(random_points(0, 5, 10, 300)).steps.dtype == torch.int64
    for spread in (1e6, float("inf")):
        with pytest.raises(InputError, match="deviations .* are too small"):
            GaussianFilter(random_points(0, 5, 10, spread))
