"""Leading eigenpairs of symmetric operators: a restarted block Krylov iteration on CPUs, and dense LAPACK beside it.

The iteration is a block Davidson method without preconditioner (Crouzeix, Philippe and Sadkane, "The Davidson method",
SIAM J. Sci. Comput. 1994): the basis grows by the residuals of a block of Ritz vectors, and restarts from these. It
needs products with blocks of vectors, which run at the speed of the matrix product, and works on batches of matrices.
GPUs have :mod:`spectralseg.mathematics.chebyshev`.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from spectralseg.errors import InputError
from spectralseg.mathematics.chebyshev import Operator, filtered_eigenpairs
from spectralseg.progress import detail

BASIS_BLOCKS = 6  # restart when the basis has grown to that many blocks
EXTRA_COLUMNS = 8  # the block is that much wider than K: faster convergence, and room for multiple eigenvalues
DENSE_BELOW = 8  # a problem of fewer than that many blocks goes to LAPACK at once
MOST_PRODUCTS = 200  # with the operator
NODES_PER_PRODUCT = 64  # a factorisation of T nodes takes the time of about T / 64 products
SMALLEST_DEGREE = 1e-12
START_NOISE = 1e-2  # random part of the start: a block that spans eigenvectors exactly would never see the others


def leading_eigenpairs(
    apply: Callable[[Tensor], Tensor], start: Tensor, K: int, tolerance: float, max_iterations: int = MOST_PRODUCTS
) -> tuple[Tensor, Tensor, bool]:
    """Algebraically largest eigenpairs of a symmetric operator.

    Parameters
    ----------
    apply
        (..., T, b) -> (..., T, b), the operator on a block of vectors.
    start
        (..., T, b) block to start from; the more columns, the fewer products. Eigenvalues of multiplicity up to b are
        found in full.
    K
        Number of eigenpairs, 1 to b.
    tolerance
        Of the residuals ||A x - m x||, relative to the largest |m|.
    max_iterations
        Products with the operator, at most.

    Returns
    -------
    eigenvalues, eigenvectors, converged
        (..., K) descending; (..., T, K) orthonormal; whether the tolerance was reached.

    Raises
    ------
    InputError
        K outside 1 to b, or b above T.
    """
    width = start.shape[-1]
    if not 1 <= K <= width <= start.shape[-2]:
        raise InputError(f"{K} eigenpairs from a block of shape {tuple(start.shape)}: needs K <= columns <= rows")
    noise = torch.randn(start.shape[-2:], generator=torch.Generator().manual_seed(0)).to(start) / start.shape[-2] ** 0.5
    basis = _orthonormal(functional.normalize(start, dim=-2) + START_NOISE * noise)
    image = apply(basis)
    for iteration in range(1, max_iterations + 1):
        small = basis.mT @ image
        values, rotation = torch.linalg.eigh((small + small.mT) / 2)
        values, rotation = values.flip(-1)[..., :width], rotation.flip(-1)[..., :width]
        ritz, ritz_image = basis @ rotation, image @ rotation
        residual = ritz_image - ritz * values.unsqueeze(-2)
        largest = values.abs().amax(dim=-1, keepdim=True)
        if (residual[..., :K].norm(dim=-2) <= tolerance * largest).all():
            return values[..., :K], ritz[..., :K], True
        if iteration == max_iterations:
            break
        if basis.shape[-1] >= BASIS_BLOCKS * width or basis.shape[-1] + width > basis.shape[-2]:
            basis, image = ritz, ritz_image
        new = _orthonormal(residual, against=basis)
        basis, image = torch.cat([basis, new], dim=-1), torch.cat([image, apply(new)], dim=-1)
    return values[..., :K], ritz[..., :K], False


def _orthonormal(block: Tensor, against: Tensor | None = None) -> Tensor:
    """Orthonormal basis of a block's columns, orthogonal to ``against``; twice, because once is not enough in float32.

    Columns of converged residuals are noise, and QR makes of them directions as good as random ones.
    """
    for _ in range(2):
        if against is not None:
            block = block - against @ (against.mT @ block)
        block = torch.linalg.qr(block).Q
    return block


def dense_leading_eigenpairs(matrix: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """K largest eigenpairs of symmetric (..., T, T) by dense LAPACK in float64: the reference, and the fallback.

    Returns (..., K) descending and (..., T, K), in the type of ``matrix``.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.flip(-1)[..., :K].to(matrix.dtype), vectors.flip(-1)[..., :K].to(matrix.dtype)


def leading_or_dense(
    operator: Operator,
    start: Tensor,
    K: int,
    tolerance: float,
    matrix: Callable[[], Tensor],
    dense: bool,
    otherwise: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """K largest eigenpairs, descending: by :func:`iterate`, or by LAPACK, which alone needs the matrix.

    LAPACK is used where ``dense`` asks for it, for small problems, and, with a warning, where the iteration does not
    converge (on a GPU for those of a batch that do not). ``otherwise`` comes before: given which did not converge
    in the time of a factorisation, it returns what :func:`iterate` does.
    """
    if dense or is_small(start.shape[-2], K):
        tell_solver(start, K, "LAPACK" if dense else "LAPACK, as they are few")
        return dense_leading_eigenpairs(matrix(), K)
    tell_solver(start, K, "iteration")
    products = MOST_PRODUCTS if otherwise is None else min(MOST_PRODUCTS, start.shape[-2] // NODES_PER_PRODUCT)
    values, vectors, converged = iterate(operator, start, K, tolerance, products)
    converged = converged.expand(values.shape[:-1]).to(values.device)
    if not converged.all() and otherwise is not None:
        left = ~converged
        tell_solver(start, K, f"Cholesky factors, as the iteration left {int(left.sum())}")
        values[left], vectors[left], also = otherwise(left)
        converged = converged.masked_scatter(left, also.to(left.device))
    if not converged.all():
        warn_of_lapack()
        left = ~converged
        exact = dense_leading_eigenpairs(matrix()[left], K)
        values[left], vectors[left] = exact[0].to(values), exact[1].to(vectors)
    return values, vectors


def iterate(
    operator: Operator, start: Tensor, K: int, tolerance: float, products: int = MOST_PRODUCTS
) -> tuple[Tensor, Tensor, Tensor]:
    """The iteration that suits the device of ``start``, (T, b) or (B, T, b); returns also which have converged.

    ``products`` with the operator at most, on a CPU; a GPU has its own limit.
    """
    if start.device.type == "cpu":
        values, vectors, all_converged = leading_eigenpairs(operator, start, K, tolerance, products)
        return values, vectors, torch.tensor(all_converged)
    results = filtered_eigenpairs(operator, start if start.ndim == 3 else start[None], K, tolerance)
    values, vectors, converged = results if start.ndim == 3 else (each[0] for each in results)
    return values, vectors, converged


def tell_solver(start: Tensor, K: int, name: str) -> None:
    """Of a verbose command: what finds K eigenvectors from a start of (..., T, b)."""
    detail(f"{K} eigenvectors of graphs of {start.shape[-2]} nodes: {name}", once=True)


def warn_of_lapack() -> None:
    """Warn that the iteration did not converge."""
    warnings.warn("the eigenvectors of an image did not converge; computed by dense LAPACK instead", stacklevel=5)


def positive(values: Tensor, smallest: float = SMALLEST_DEGREE) -> Tensor:
    """``values``, by default degrees, with those not above ``smallest`` set to 1."""
    return torch.where(values > smallest, values, 1.0)


def block_width(K: int) -> int:
    """Columns of the block for K eigenpairs: matrix products are fastest with a multiple of 16."""
    return -(-(K + EXTRA_COLUMNS) // 16) * 16


def is_small(count: int, K: int) -> bool:
    """Whether LAPACK finds K eigenpairs of ``count`` nodes sooner than the iteration."""
    return count < DENSE_BELOW * block_width(K)


def noise_block(W: Tensor, width: int) -> Tensor:
    """(..., T, width) to start from, the same for all matrices of a batch. Seeded: a rerun gives the same result."""
    noise = torch.randn(W.shape[-1], width, generator=torch.Generator().manual_seed(0)).to(W)
    return noise.expand(*W.shape[:-1], width)


def start_block(features: Tensor, width: int) -> Tensor:
    """(..., T, width): a few steps towards the leading eigenvectors of F F' without threshold, at next to no cost.

    F F' x is two thin products. Negative entries of F F' are few and small, so that its leading eigenvectors are a
    good start for those of the thresholded affinity. Seeded: a rerun gives the same result. On a GPU, where these steps
    would cost more than they save, it is the features, mixed.
    """
    width = min(width, features.shape[-2])  # problems that small go to LAPACK and need no start
    mixing = torch.randn(features.shape[-1], width, generator=torch.Generator().manual_seed(0)).to(features)
    block = features @ mixing
    if features.device.type != "cpu":
        return block
    return leading_eigenpairs(lambda x: features @ (features.mT @ x), block, width, tolerance=0.0, max_iterations=3)[1]
