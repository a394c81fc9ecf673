"""Leading eigenpairs of many symmetric operators at once, on a GPU: Chebyshev-filtered subspace iteration.

Source: Zhou, Saad, Tiago and Chelikowsky, "Self-consistent-field calculations using Chebyshev-filtered subspace
iteration", Journal of Computational Physics 2006; the bound of the spectrum by Zhou and Li, 2011.

On a GPU torch takes the matrices of a batch one by one in QR, and in eigh from 33 columns on: 6 and 50 ms for 64 small
ones, where the product with all 64 affinities of 713 patches takes 0.08 ms (H200). Here bases are made orthonormal by
Cholesky, and the block, whose Ritz values are computed, never grows. The price is more products, which are cheap there.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

DEGREE = 3  # products between two looks at the residuals, at first
PATIENCE = 4  # filters of that degree; a spectrum without gaps wants higher ones, which grow by one product each
MAX_FILTERS = 40
# A filter enlarges the first eigenvector most, in every column that holds a trace of it. The Gram matrix of the columns
# has a Cholesky factor in float64 as long as that part is not this much larger than the rest.
LARGEST_PART = 1e4
GROWTH = (1e3, 1e10)  # of the first eigenvector in a filter: at least, and with a trace as small as rounding leaves
MARGIN = 0.02  # of the damped interval, between it and the first: also where all Ritz values are copies of one
LANCZOS_STEPS = 8
SHIFT = 1e-14  # of a Gram matrix of unit columns: nearly dependent ones have a Cholesky factor too
TINY = torch.finfo(torch.float64).tiny


class Operator(Protocol):
    """A batch of symmetric matrices that can be multiplied and selected from."""

    def __call__(self, block: Tensor) -> Tensor:
        """(B, T, b) -> (B, T, b)."""

    def __getitem__(self, rows: Tensor) -> "Operator":
        """Some of the batch, by their numbers."""


def filtered_eigenpairs(
    operator: Operator, start: Tensor, K: int, tolerance: float, max_filters: int = MAX_FILTERS
) -> tuple[Tensor, Tensor, Tensor]:
    """Algebraically largest eigenpairs of a batch of symmetric operators.

    Parameters
    ----------
    operator
        Is given blocks in the type of ``start``.
    start
        (B, T, b) block to start from, b at most 32 for speed and some columns above ``K``. What is thin is computed in
        float64.
    K
        Number of eigenpairs, 1 to b.
    tolerance
        Of the residuals ||A x - m x||, relative to the largest |m|.
    max_filters
        Looks at the residuals, at most; by default 958 products.

    Returns
    -------
    eigenvalues, eigenvectors, converged
        (B, K) descending and (B, T, K) orthonormal in the type of ``start``; (B,) which of them reached the tolerance.

    Notes
    -----
    The host waits for the device once a filter, not once a product. Images that have converged are set aside when they
    are half of those left, and cost nothing more; until then they go on, and only get better.
    """
    results = start.new_empty(len(start), K), start.new_empty(*start.shape[:2], K)
    converged = torch.zeros(len(start), dtype=torch.bool)
    active = torch.arange(len(start), device=start.device)
    noise = torch.randn(start.shape[1:], generator=torch.Generator().manual_seed(0)).to(start.device).double()
    block = _orthonormal(functional.normalize(start.double(), dim=-2) + 1e-2 * functional.normalize(noise, dim=-2))

    def product(block: Tensor) -> Tensor:
        return operator(block.to(start.dtype)).double()

    lowest = _lower_bound(product, block[..., -1:])
    for number in range(max_filters + 1):
        image = product(block)
        small = block.mT @ image
        # eigh refuses NaN for the whole batch: an image whose basis broke down does not converge, and no other is lost
        values, rotation = torch.linalg.eigh(((small + small.mT) / 2).nan_to_num())
        values, rotation = values.flip(-1)[:, None], rotation.flip(-1)
        block, image = block @ rotation, image @ rotation
        residuals = (image - block * values).norm(dim=-2, keepdim=True)
        locked = (residuals <= tolerance * values.abs().amax(dim=-1, keepdim=True)).cumprod(dim=-1)  # leading ones
        done = locked[:, 0, K - 1] == 1
        flags = done.cpu()
        at_end = number == max_filters or bool(flags.all())
        if at_end or 2 * int(flags.sum()) >= len(flags):
            leaving = torch.ones_like(done) if at_end else done
            rows = active[leaving]
            results[0][rows] = values[leaving, 0, :K].to(start.dtype)
            results[1][rows] = block[leaving][..., :K].to(start.dtype)
            converged[rows.cpu()] = flags[leaving.cpu()]
            if at_end:
                break
            stay = (~done).nonzero()[:, 0]
            active, operator = active[stay], operator[stay]
            block, image, values, lowest = block[stay], image[stay], values[stay], lowest[stay]
            residuals, locked = residuals[stay], locked[stay]
        lowest = torch.minimum(lowest, values[..., -1:])
        first = locked.sum(dim=-1, keepdim=True).clamp(max=values.shape[-1] - 1)
        top, trace = values.gather(-1, first), residuals.gather(-1, first)
        known = block * locked

        def rest(block: Tensor, known: Tensor = known) -> Tensor:
            """The operator where it acts on nothing that is known."""
            image = product(block)
            return image - known @ (known.mT @ image)

        filtered = _filter(
            rest, block, image, (lowest, values[..., -1:], top), trace, DEGREE + max(0, number - PATIENCE)
        )
        block = _orthonormal(torch.where(locked == 1, block, filtered))
    return *results, converged


def _filter(
    product: Callable[[Tensor], Tensor],
    block: Tensor,
    image: Tensor,
    bounds: tuple[Tensor, Tensor, Tensor],
    residual: Tensor,
    degree: int,
) -> Tensor:
    """The block times a Chebyshev polynomial of the operator: small from ``lowest`` to ``last``, 1 at ``top``.

    The recurrence is that of Zhou et al. (algorithm 4.1). ``image`` is the operator times the block, ``bounds`` are the
    three, (B, 1, 1) each, and ``residual`` is that of the vector of ``top``.
    """
    lowest, last, top = bounds
    trace = residual / (top - last).clamp_min(TINY)
    growth = (LARGEST_PART / trace.clamp_min(TINY)).clamp(*GROWTH)
    reach = torch.cosh(torch.acosh(growth) / degree)  # where the polynomial of the interval [-1, 1] has grown so far
    last = torch.minimum(last, top - MARGIN * (last - lowest))
    half = torch.maximum((last - lowest) / 2, (top - last) / (reach - 1)).clamp_min(TINY)
    centre = last - half
    sigma = half / (top - centre)
    tau = 2 / sigma
    previous, current = block, (image - centre * block) * (sigma / half)
    for _ in range(degree - 1):
        new = 1 / (tau - sigma)
        following = (product(current) - centre * current) * (2 * new / half) - sigma * new * previous
        previous, current, sigma = current, following, new
    return current


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal basis of a block's columns, float64: Cholesky-QR, twice."""
    shift = SHIFT * torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
    for _ in range(2):
        block = functional.normalize(block, dim=-2, eps=TINY)
        factor = torch.linalg.cholesky_ex(block.mT @ block + shift).L
        block = torch.linalg.solve_triangular(factor.mT, block, upper=True, left=False)
    return block


def _lower_bound(product: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """(B, 1, 1): about the smallest eigenvalue: the Ritz value of a few steps of Lanczos less its residual."""
    steps = min(LANCZOS_STEPS, vector.shape[-2] - 1)
    diagonal, beside = [], []
    previous, beta = torch.zeros_like(vector), torch.zeros_like(vector[:, :1])
    for _ in range(steps):
        following = product(vector) - beta * previous
        alpha = (vector * following).sum(dim=-2, keepdim=True)
        following = following - alpha * vector
        beta = following.norm(dim=-2, keepdim=True)
        previous, vector = vector, following / beta.clamp_min(TINY)
        diagonal.append(alpha)
        beside.append(beta)
    small = torch.diag_embed(torch.cat(diagonal, dim=-1)[:, 0])
    if steps > 1:
        off = torch.diag_embed(torch.cat(beside[:-1], dim=-1)[:, 0], offset=1)
        small = small + off + off.mT
    values, vectors = torch.linalg.eigh(small.nan_to_num())
    return values[:, :1, None] - beta * vectors[:, -1:, :1].abs()
