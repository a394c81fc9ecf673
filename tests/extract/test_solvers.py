"""The iterations for CPUs and for GPUs against spectra that are known, and against dense LAPACK; all on a CPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralseg.mathematics.chebyshev import filtered_eigenpairs
from spectralseg.mathematics.eigen import ScaledMatrix
from spectralseg.mathematics.solvers import dense_leading_eigenpairs, leading_eigenpairs

TOLERANCE = 1e-10


def krylov(matrix: torch.Tensor, start: torch.Tensor, K: int, tolerance: float) -> tuple:
    return leading_eigenpairs(ScaledMatrix(matrix), start, K, tolerance)


def chebyshev(matrix: torch.Tensor, start: torch.Tensor, K: int, tolerance: float) -> tuple:
    if matrix.ndim == 2:
        return tuple(each[0] for each in filtered_eigenpairs(ScaledMatrix(matrix[None]), start[None], K, tolerance))
    values, vectors, converged = filtered_eigenpairs(ScaledMatrix(matrix), start, K, tolerance)
    return values, vectors, converged.all()


@pytest.fixture(params=[krylov, chebyshev])
def solve(request):
    return request.param


def random_block(rows: int, columns: int, seed: int = 0, batch: tuple[int, ...] = ()) -> torch.Tensor:
    return torch.randn(*batch, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(spectrum: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A dense symmetric matrix with these eigenvalues."""
    vectors = torch.linalg.qr(random_block(len(spectrum), len(spectrum), seed)).Q
    return (vectors * spectrum) @ vectors.mT


def check_pairs(matrix: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor, tolerance: float = 1e-8) -> None:
    """Orthonormal vectors that solve A x = m x."""
    scale = torch.linalg.matrix_norm(matrix, 2).amax().clamp(min=1)
    identity = torch.eye(vectors.shape[-1], dtype=vectors.dtype).expand_as(vectors.mT @ vectors)
    torch.testing.assert_close(vectors.mT @ vectors, identity, atol=tolerance, rtol=0)
    assert (matrix @ vectors - vectors * values[..., None, :]).abs().max() <= tolerance * scale


def test_largest_by_value_and_not_by_size(solve):
    diagonal = torch.cat([torch.tensor([-100.0, 3, 2, 1]), torch.zeros(196)]).double()
    values, vectors, converged = solve(torch.diag(diagonal), random_block(200, 11), 3, TOLERANCE)
    assert converged
    torch.testing.assert_close(values, torch.tensor([3.0, 2, 1], dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(vectors[1:4].abs(), torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("solve", [krylov, chebyshev])
@settings(max_examples=30)
@given(count=st.integers(60, 150), K=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_agrees_with_lapack(solve, count, K, seed):
    matrix = random_block(count, count, seed)
    matrix = matrix + matrix.mT
    values, vectors, converged = solve(matrix, random_block(count, K + 8, seed + 1), K, TOLERANCE)
    assert converged
    expected = np.linalg.eigvalsh(matrix.numpy())[::-1][:K]
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-6)
    check_pairs(matrix, values, vectors)


@pytest.mark.parametrize("K", [2, 5, 6, 8, 12])
def test_multiple_eigenvalue_is_found_in_full(solve, K):
    """Eigenvalue 5 six times, then 4, 3, 2 and a tail below 1: K on both sides of the multiplicity."""
    spectrum = torch.cat([torch.full((6,), 5.0), torch.tensor([4.0, 3, 2]), torch.linspace(0, 1, 191)]).double()
    matrix = with_spectrum(spectrum)
    values, vectors, converged = solve(matrix, random_block(200, K + 8), K, TOLERANCE)
    assert converged
    torch.testing.assert_close(values, spectrum.sort(descending=True).values[:K], atol=1e-8, rtol=0)
    check_pairs(matrix, values, vectors)


def test_multiplicity_beyond_the_block(solve):
    spectrum = torch.cat([torch.ones(50), torch.linspace(0, 0.5, 150)]).double()
    matrix = with_spectrum(spectrum)
    values, vectors, converged = solve(matrix, random_block(200, 12), 4, TOLERANCE)
    assert converged
    torch.testing.assert_close(values, torch.ones(4, dtype=torch.float64), atol=1e-8, rtol=0)
    check_pairs(matrix, values, vectors)


@pytest.mark.parametrize(
    "start",
    [
        torch.zeros(200, 12, dtype=torch.float64),
        torch.ones(200, 12, dtype=torch.float64),
        torch.eye(200, 12, dtype=torch.float64),
    ],
    ids=["zeros", "equal columns", "unit vectors"],
)
def test_a_poor_start_costs_steps_but_no_eigenvectors(solve, start):
    matrix = with_spectrum(torch.cat([torch.tensor([9.0, 8, 7, 7]), torch.linspace(-6, 6, 196)]).double())
    values, vectors, converged = solve(matrix, start, 4, TOLERANCE)
    assert converged
    torch.testing.assert_close(values, torch.tensor([9.0, 8, 7, 7], dtype=torch.float64), atol=1e-8, rtol=0)
    check_pairs(matrix, values, vectors)


@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5])
def test_multiples_of_the_identity(solve, factor):
    values, vectors, converged = solve(
        factor * torch.eye(100, dtype=torch.float64), random_block(100, 10), 3, TOLERANCE
    )
    assert converged
    torch.testing.assert_close(values, torch.full((3,), factor, dtype=torch.float64), atol=1e-12, rtol=0)
    check_pairs(factor * torch.eye(100, dtype=torch.float64), values, vectors)


def test_a_batch_is_solved_like_its_members(solve):
    """Members that need different numbers of steps: one with clear gaps, one with hardly any, one that is zero."""
    spectra = [torch.arange(120.0), torch.linspace(0, 1, 120), torch.zeros(120)]
    matrices = torch.stack([with_spectrum(spectrum.double(), seed) for seed, spectrum in enumerate(spectra)])
    start = random_block(120, 12, batch=(3,))
    values, vectors, converged = solve(matrices, start, 4, TOLERANCE)
    assert converged
    check_pairs(matrices, values, vectors)
    for index, spectrum in enumerate(spectra):
        expected = spectrum.double().sort(descending=True).values[:4]
        torch.testing.assert_close(values[index], expected, atol=1e-7, rtol=0)


def test_gives_up_after_max_iterations_and_says_so():
    matrix = with_spectrum(torch.linspace(0, 1, 300).double())
    products = []

    def apply(block: torch.Tensor) -> torch.Tensor:
        products.append(block.shape)
        return matrix @ block

    values, vectors, converged = leading_eigenpairs(apply, random_block(300, 10), 2, TOLERANCE, max_iterations=3)
    assert not converged
    assert products == [(300, 10)] * 3
    assert (values.shape, vectors.shape) == ((2,), (300, 2))
    check = vectors.mT @ vectors
    torch.testing.assert_close(check, torch.eye(2, dtype=torch.float64), atol=1e-10, rtol=0)
    assert (values <= 1 + 1e-12).all()  # Ritz values lie inside the spectrum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_that_is_solved_does_not_hide_the_rest(solve, dtype):
    """The start spans twelve eigenvectors exactly, so that nothing is left over; but two larger ones are elsewhere."""
    spectrum = torch.cat([torch.tensor([3.0, 2.0]), torch.linspace(0.5, 0.4, 12), torch.zeros(86)]).to(dtype)
    start = torch.eye(100, dtype=dtype)[:, 2:14]
    tolerance = 5e-6 if dtype == torch.float32 else TOLERANCE
    values, vectors, converged = solve(torch.diag(spectrum), start, 4, tolerance)
    assert converged
    torch.testing.assert_close(values, spectrum[:4], atol=1e-5, rtol=0)
    check_pairs(torch.diag(spectrum), values, vectors, tolerance=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_low_rank_in_float32(solve, rank):
    """After two steps nothing but rounding is left of the residuals; new directions must still be new."""
    groups = torch.eye(rank)[torch.arange(300) % rank]
    matrix = groups @ torch.diag(torch.arange(1.0, rank + 1)) @ groups.T
    values, vectors, converged = solve(matrix, random_block(300, 12).float(), 6, 5e-6)
    assert converged
    expected = sorted([300 / rank * (k + 1) for k in range(rank)], reverse=True) + [0.0] * (6 - rank)
    torch.testing.assert_close(values, torch.tensor(expected), atol=1e-3, rtol=1e-5)
    check_pairs(matrix, values, vectors, tolerance=1e-4)


def test_members_of_a_batch_that_never_converge_leave_the_others_alone():
    """One of three is damaged; those that have converged are set aside, and the fourth product is of the others."""
    matrices = torch.stack([with_spectrum(torch.linspace(0, 1, 120).double() ** power) for power in (9, 9, 9)])
    matrices[1, 0, 0] = torch.nan
    values, _, converged = filtered_eigenpairs(ScaledMatrix(matrices), random_block(120, 12, batch=(3,)), 4, TOLERANCE)
    assert converged.tolist() == [True, False, True]
    expected = (torch.linspace(0, 1, 120).double() ** 9).flip(0)[:4]
    torch.testing.assert_close(values[::2], expected.expand(2, 4), atol=1e-8, rtol=0)


def test_dense_keeps_the_type_and_computes_in_float64():
    matrix = torch.diag(torch.tensor([1.0, 5.0, -7.0, 3.0]))
    values, vectors = dense_leading_eigenpairs(torch.stack([matrix, 2 * matrix]), 2)
    assert values.dtype == vectors.dtype == torch.float32
    assert torch.equal(values, torch.tensor([[5.0, 3.0], [10.0, 6.0]]))
    assert vectors.shape == (2, 4, 2)
    assert torch.equal(vectors[0].abs(), torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, 1]]))
    noisy = random_block(60, 60).float()
    noisy = noisy + noisy.mT
    values, vectors = dense_leading_eigenpairs(noisy, 60)
    residual = noisy.double() @ vectors.double() - vectors.double() * values.double()
    assert residual.abs().max() < 1.5e-6  # float32 LAPACK leaves 6e-6 here, rounding of the result 4e-7
