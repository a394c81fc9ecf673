"""Eigenvectors of the graph of patches: Laplacians and affinities, batched over images of one size.

Source: Melas-Kyriazi et al., "Deep Spectral Methods", CVPR 2022, section 3.2. For the normalised Laplacian
(D - W) x = l D x the singular D - W need not be factorised: with S = D^-1/2 W D^-1/2 and S y = m y, the solutions are
x = D^-1/2 y and l = 1 - m, so its smallest eigenvalues are the largest of S, which a few products with W find.
"""

import math
import warnings
from collections.abc import Sequence

import torch
from scipy.sparse import coo_array
from torch import Tensor
from torch.nn import functional

from spectralseg.errors import InputError
from spectralseg.mathematics.affinity import add_sparse, feature_affinity, resize_features
from spectralseg.mathematics.solvers import dense_leading_eigenpairs, leading_eigenpairs

LAPLACIANS = ("laplacian", "matting_laplacian")
AFFINITIES = ("affinity", "affinity_svd", "affinity_torch")
SOLVERS = ("auto", "dense")

SMALLEST_DEGREE = 1e-12
EXTRA_COLUMNS = 8  # the block is that much wider than K: faster convergence, and room for multiple eigenvalues
TOLERANCE = 5e-6  # relative residual; rounding in float32 leaves 1e-6 to 3e-6
TOLERANCE_FLOAT64 = 1e-10
DENSE_BELOW = 8  # a problem of fewer than that many blocks goes to LAPACK at once
SHIFT = 1e-4  # of D - W before it is inverted, relative to the mean degree


def spectral_eigenvectors(
    features: Tensor,
    K: int = 20,
    which_matrix: str = "laplacian",
    normalize: bool = True,
    threshold_at_zero: bool = True,
    lapnorm: bool = True,
    colour: coo_array | Sequence[coo_array] | None = None,
    colour_lambda: float = 0.0,
    grid: tuple[int, int] | None = None,
    resize_to: tuple[int, int] | None = None,
    solver: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the graph of patches.

    Parameters
    ----------
    features
        (T, D), or (B, T, D) for a batch of images of one size.
    K
        Number of eigenvectors, at most T (or T').
    which_matrix
        ``laplacian`` (or its synonym ``matting_laplacian``): W = F F' / max(F F') + colour_lambda * colour, D its row
        sums (those below 1e-12 become 1); the K smallest solutions of (D - W) x = l D x, or of (D - W) x = l x without
        ``lapnorm``. ``affinity``: the K largest eigenpairs of W = F F'. ``affinity_torch``: the same by dense LAPACK.
        ``affinity_svd``: the K leading left singular vectors of F and the singular values.
    normalize
        L2-normalise the rows of F.
    threshold_at_zero
        Negative entries of F F' become 0.
    colour, colour_lambda
        Sparse (T, T) colour affinity (one per image of a batch) and its weight; Laplacians only.
    grid, resize_to
        (rows, columns) of the patches, and of the grid to resize the (normalised) features to; T' = its cells.
    solver
        ``auto``: our iteration, and dense LAPACK for small problems and where the iteration does not converge;
        ``dense``: LAPACK always (the reference).

    Returns
    -------
    eigenvalues, eigenvectors
        ([B,] K) and ([B,] K, T) float32, ascending for Laplacians and descending for affinities. x'Dx = 1 with
        ``lapnorm``, else x'x = 1. Signs by :func:`fix_signs`.

    Raises
    ------
    InputError
        K above T (after resizing), NaN or infinite features, an unknown name.
    """
    if features.ndim == 2:
        values, vectors = spectral_eigenvectors(
            features[None],
            K,
            which_matrix,
            normalize,
            threshold_at_zero,
            lapnorm,
            None if colour is None else [colour],
            colour_lambda,
            grid,
            resize_to,
            solver,
        )
        return values[0], vectors[0]
    count = features.shape[-2] if resize_to is None else math.prod(resize_to)
    _check(features, count, K, which_matrix, solver)
    features = features.float()
    if normalize:
        features = functional.normalize(features, dim=-1)
    if resize_to is not None:
        features = resize_features(features, grid, resize_to)
    dense = solver == "dense" or which_matrix == "affinity_torch" or count < DENSE_BELOW * _width(K)
    if which_matrix == "affinity_svd":
        vectors, values, _ = torch.linalg.svd(features, full_matrices=False)
        values, vectors = values[..., :K], vectors[..., :K]
    elif which_matrix in AFFINITIES:
        affinity = feature_affinity(features, threshold_at_zero)
        values, vectors = _leading(affinity, K, dense, _mix(features, _width(K)))
    else:
        # The largest entry of F F' is the largest squared norm of a row, by Cauchy and Schwarz: dividing the thin F by
        # that norm saves two passes over all entries of W.
        norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True).amax(dim=-2, keepdim=True)
        features = features / _positive(norm, smallest=0)
        affinity = feature_affinity(features, threshold_at_zero)
        if colour is not None and colour_lambda > 0:
            for matrix, image_colour in zip(affinity, colour, strict=True):
                add_sparse(matrix, image_colour, colour_lambda)
        laplacian = _normalised_laplacian if lapnorm else _plain_laplacian
        values, vectors = laplacian(affinity, K, dense, features)
    return values, fix_signs(vectors.mT)


def _check(features: Tensor, count: int, K: int, which_matrix: str, solver: str) -> None:
    if which_matrix not in LAPLACIANS + AFFINITIES:
        raise InputError(f"no which_matrix '{which_matrix}'; known are {', '.join(LAPLACIANS + AFFINITIES)}")
    if solver not in SOLVERS:
        raise InputError(f"no solver '{solver}'; known are {', '.join(SOLVERS)}")
    dimension = features.shape[-1]
    most = min(count, dimension) if which_matrix == "affinity_svd" else count
    if not 1 <= K <= most:
        raise InputError(f"K={K} eigenvectors of {count} patches with {dimension} features: ask for 1 to {most}")
    if not torch.isfinite(features.float().square().sum(dim=-1)).all():
        raise InputError("the features hold NaN, infinite or immense values; extract them again")


def _width(K: int) -> int:
    """Columns of the block: matrix products are fastest with a multiple of 16."""
    return -(-(K + EXTRA_COLUMNS) // 16) * 16


def _positive(values: Tensor, smallest: float) -> Tensor:
    """``values`` with those not above ``smallest`` set to 1."""
    return torch.where(values > smallest, values, 1.0)


def _normalised_laplacian(affinity: Tensor, K: int, dense: bool, features: Tensor) -> tuple[Tensor, Tensor]:
    """K smallest solutions of (D - W) x = l D x -> values (B, K) ascending, vectors (B, T, K) with x'Dx = 1."""
    degree = _positive(affinity.sum(dim=-1, keepdim=True), SMALLEST_DEGREE)
    root = degree.rsqrt()
    # sqrt(degree) is the eigenvector of eigenvalue 1; the scaled features nearly span the next ones.
    start = torch.cat([degree.sqrt(), _mix(features * root, _width(K))[..., 1:]], dim=-1)
    values, vectors = _leading(affinity, K, dense, start, root)
    return 1 - values, vectors * root


def _plain_laplacian(affinity: Tensor, K: int, dense: bool, features: Tensor) -> tuple[Tensor, Tensor]:
    """K smallest solutions of (D - W) x = l x -> values (B, K) ascending, vectors (B, T, K) with x'x = 1.

    They are the largest of (D - W + shift)^-1, which exists as a Cholesky factor: D - W has no negative eigenvalue
    where W has no negative entry. In float64, because its smallest eigenvalues are small against its largest.
    """
    affinity = affinity.double()
    degree = _positive(affinity.sum(dim=-1), SMALLEST_DEGREE)
    laplacian = torch.diag_embed(degree) - affinity
    if not dense:
        shift = SHIFT * degree.mean(dim=-1)
        factor, failed = torch.linalg.cholesky_ex(laplacian + torch.diag_embed(shift[:, None].expand_as(degree)))
        if not failed.any():
            start = torch.cat([torch.ones_like(degree)[..., None], _mix(features.double(), _width(K) - 1)], dim=-1)
            inverse, vectors, converged = leading_eigenpairs(
                lambda block: torch.cholesky_solve(block, factor), start, K, TOLERANCE_FLOAT64
            )
            if converged:
                return (1 / inverse - shift[:, None]).float(), vectors.float()
            _warn()
    values, vectors = dense_leading_eigenpairs(-laplacian, K)
    return (-values).float(), vectors.float()


def _leading(matrix: Tensor, K: int, dense: bool, start: Tensor, root: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """K largest eigenpairs of root * matrix (B, T, T) * root' -> values (B, K) descending, vectors (B, T, K).

    ``root`` (B, T, 1) scales the thin blocks and not the matrix: that would be a pass over all of its entries.
    """
    if not dense:
        values, vectors, converged = leading_eigenpairs(
            lambda block: root * (matrix @ (root * block)), start, K, TOLERANCE
        )
        if converged:
            return values, vectors
        _warn()
    if isinstance(root, Tensor):
        matrix = matrix * root * root.mT
    return dense_leading_eigenpairs(matrix, K)


def _warn() -> None:
    warnings.warn("the eigenvectors of an image did not converge; computed by dense LAPACK instead", stacklevel=4)


def _mix(features: Tensor, width: int) -> Tensor:
    """(B, T, width): a few steps towards the leading eigenvectors of F F' without threshold, at next to no cost.

    F F' x is two thin products. Negative entries of F F' are few and small, so that its leading eigenvectors are a
    good start for those of the thresholded affinity. Seeded: a rerun gives the same result.
    """
    width = min(width, features.shape[-2])  # problems that small go to LAPACK and need no start
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features.shape[-1], width, generator=generator).to(features)
    block = features @ mixing
    return leading_eigenpairs(lambda x: features @ (features.mT @ x), block, width, tolerance=0.0, max_iterations=3)[1]


def fix_signs(vectors: Tensor) -> Tensor:
    """Sign of each eigenvector (..., K, T): negated if more than half, but not all, of its entries are positive.

    This is the published rule (the smaller side counts as foreground). Where it leaves both x and -x alone, the sign is
    still made definite: the largest entry by absolute value (the first of them) is positive.
    """
    extreme = vectors.gather(-1, vectors.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
    negate = _mostly_positive(vectors) | (~_mostly_positive(-vectors) & (extreme < 0))
    return torch.where(negate[..., None], -vectors, vectors)


def _mostly_positive(vectors: Tensor) -> Tensor:
    share = (vectors > 0).float().mean(dim=-1)
    return (share > 0.5) & (share < 1)
