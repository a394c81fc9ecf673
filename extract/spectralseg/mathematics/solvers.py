"""Leading eigenpairs of symmetric operators: a restarted block Krylov iteration, and dense LAPACK beside it.

The iteration is a block Davidson method without preconditioner (Crouzeix, Philippe and Sadkane, "The Davidson method",
SIAM J. Sci. Comput. 1994): the basis grows by the residuals of a block of Ritz vectors, and restarts from these. It
needs products with blocks of vectors, which run at the speed of the matrix product, and works on batches of matrices.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from spectralseg.errors import InputError

BASIS_BLOCKS = 6  # restart when the basis has grown to that many blocks
START_NOISE = 1e-2  # random part of the start: a block that spans eigenvectors exactly would never see the others


def leading_eigenpairs(
    apply: Callable[[Tensor], Tensor], start: Tensor, K: int, tolerance: float, max_iterations: int = 200
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
