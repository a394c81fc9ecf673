"""Eigenvectors of the graph of patches: normalised cuts, Laplacians and affinities, batched over images of one size.

Sources: Shi and Malik, "Normalized Cuts and Image Segmentation", PAMI 2000, for :func:`normalised_cut`, on which
``extract_eigs``, EAGLE's EiCue and TokenCut all rest; Melas-Kyriazi et al., "Deep Spectral Methods", CVPR 2022, section
3.2, for :func:`spectral_eigenvectors`.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import SuperLU, splu
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from spectralseg.errors import InputError, check_choice
from spectralseg.mathematics import solvers
from spectralseg.mathematics.affinity import add_sparse, feature_affinity, local_affinity, resize_features
from spectralseg.mathematics.landmarks import blocked_cut, landmark_cut
from spectralseg.settings import check_range

LAPLACIANS = ("laplacian", "matting_laplacian")
AFFINITIES = ("affinity", "affinity_svd", "affinity_torch")
LOCAL = "local"  # a Laplacian as well, of neighbours alone
MATRICES = (*LAPLACIANS, *AFFINITIES, LOCAL)
WITHOUT_MATRIX = ("blocked", "landmarks")  # solvers that never hold the affinities
SOLVERS = ("auto", "dense", *WITHOUT_MATRIX)

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-10}  # relative residual; rounding in float32 leaves 1e-6 to 3e-6
TOLERANCE_AFFINITY = 5e-7  # relative to an eigenvalue that is thousands of times larger than the K-th
TOLERANCE_LOCAL = 1e-8  # relative to the inverse of its shift; eigenvalues are then exact to 1e-9
TOLERANCE_INVERSE = 1e-12  # the same, of dense matrices
CANCELLED = 1e-3  # a degree against the sum of the absolute affinities: below, float32 is not enough
IMMENSE = 1e25  # no feature, but a damaged file
SHIFT = 1e-4  # of D - W before it is inverted, relative to the mean degree
SHIFT_DEGREES = 1e-3  # the same, relative to each degree: small beside eigenvalues that crowd near 0


def normalised_cut(
    W: Tensor, K: int, features: Tensor | None = None, dense: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """K smallest solutions of (D - W) x = l D x, D the diagonal of the degrees d_i = sum_j W_ij.

    Parameters
    ----------
    W
        (..., T, T) symmetric affinities, float32 or float64. It is multiplied with thin blocks of vectors alone.
    K
        Number of solutions, 1 to T.
    features
        (..., T, d) whose F F' is close to W: the iteration then starts near its end. Without them it starts at random,
        seeded.
    dense
        LAPACK instead of the iteration. Small problems, and those that do not converge, go there by themselves.

    Returns
    -------
    eigenvalues, x, degrees
        (..., K) ascending, (..., T, K) with x'Dx = 1, and the diagonal of D, (..., T), in the type of ``W``. Signs are
        arbitrary. A degree below 1e-12 counts as 1.

    Raises
    ------
    InputError
        W is not square or of another type, K outside 1 to T, features of another length.

    Notes
    -----
    Equations of Shi and Malik (2000), where x is called y:

        (D - W) x = l D x                                    (6)
        D^-1/2 (D - W) D^-1/2 z = l z,  z = D^1/2 x          (7)

    The matrix of (7) is 1 - S with S = D^-1/2 W D^-1/2: its smallest eigenvalues are l = 1 - m for the largest m of
    S z = m z. So D - W, which is singular, need not be factorised: a few products with W do. The solution of l = 0 is
    known: x is constant, and z = D^1/2 1.
    """
    _check_cut(W, K, features)
    D = solvers.positive(W.sum(dim=-1, keepdim=True))  # (..., T, 1): scales the rows of a block
    inverse_root = D.rsqrt()  # D^-1/2
    width = solvers.block_width(K)
    near = solvers.noise_block(W, width) if features is None else solvers.start_block(inverse_root * features, width)
    start = torch.cat([D.sqrt(), near[..., 1:]], dim=-1)
    m, z = solvers.leading_or_dense(
        ScaledMatrix(W, inverse_root),  # S z, without forming S
        start,
        K,
        TOLERANCE[W.dtype],
        lambda: W * inverse_root * inverse_root.mT,
        dense,
        (lambda left: _by_inverse(W[left], D[left], start[left], K)) if W.dtype == torch.float64 else None,
    )
    return 1 - m, inverse_root * z, D.squeeze(-1)


def _by_inverse(W: Tensor, D: Tensor, start: Tensor, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """m (B, K), z (B, T, K) of (7) and which have converged, where many eigenvalues crowd near m = 1.

    A graph in parts that hardly hang together has such a one for each. They are apart among the largest of
    D^1/2 (D - W + shift D)^-1 D^1/2 z = z / (l + shift), by Cholesky factors, which exist where no W_ij is negative.
    """
    factor, failed = torch.linalg.cholesky_ex((1 + SHIFT_DEGREES) * torch.diag_embed(D[..., 0]) - W)
    if failed.any():
        return D[..., :K, 0], start[..., :K], torch.zeros(len(W), dtype=torch.bool)
    inverse, z, converged = solvers.iterate(Inverse(factor, D.sqrt()), start, K, TOLERANCE_INVERSE)
    return 1 + SHIFT_DEGREES - 1 / inverse, z, converged.expand(len(W))


def sparse_normalised_cut(W: csr_array, K: int, dense: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`normalised_cut` of sparse symmetric affinities (T, T) -> (K,) ascending, (T, K) with x'Dx = 1, float64.

    The eigenvalues of a graph of neighbours crowd near 0, where products with W tell them apart slowly: they are the
    largest of D^1/2 (D - W + shift D)^-1 D^1/2 z = z / (l + shift), by a sparse factorisation.
    """
    D = np.asarray(W.sum(axis=1))
    D = np.where(D > solvers.SMALLEST_DEGREE, D, 1.0)
    if not (dense or solvers.is_small(len(D), K)):
        shifted = (diags_array((1 + SHIFT_DEGREES) * D) - W).tocsc()
        factor = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        root = torch.from_numpy(D).sqrt()[:, None]
        near = solvers.noise_block(root.expand(-1, len(D)), solvers.block_width(K) - 1)
        start = torch.cat([root, near], dim=-1)
        solvers.tell_solver(start, K, "sparse factorisation")
        inverse, z, converged = solvers.iterate(SparseInverse(factor, root), start, K, TOLERANCE_LOCAL)
        if converged.all():
            return 1 / inverse - SHIFT_DEGREES, z / root
        solvers.warn_of_lapack()
    values, x, _ = normalised_cut(torch.from_numpy(W.toarray()), K, dense=True)
    return values, x


@dataclass(frozen=True)
class SparseInverse:
    """x -> D^1/2 A^-1 D^1/2 x, for a sparse factorisation of A (T, T) and the root of D (T, 1)."""

    factor: SuperLU
    root: Tensor

    def __call__(self, block: Tensor) -> Tensor:
        """(T, b) float64 -> (T, b)."""
        columns = np.asfortranarray((self.root * block).numpy())  # of rows SuperLU would copy each solution's entries
        return self.root * torch.from_numpy(self.factor.solve(columns))

    def __getitem__(self, rows: Tensor) -> "SparseInverse":
        raise IndexError("a sparse factorisation is of one matrix alone")


@dataclass(frozen=True)
class ScaledMatrix:
    """x -> s W s x, for symmetric W (..., T, T) and the diagonal s (..., T, 1), where there is one."""

    W: Tensor
    scale: Tensor | None = None

    def __call__(self, block: Tensor) -> Tensor:
        """(..., T, b) -> (..., T, b), in its type; the product has that of W."""
        if self.scale is None:
            return (self.W @ block.to(self.W.dtype)).to(block.dtype)
        return self.scale * (self.W @ (self.scale * block))

    def __getitem__(self, rows: Tensor) -> "ScaledMatrix":
        return ScaledMatrix(self.W[rows], None if self.scale is None else self.scale[rows])


@dataclass(frozen=True)
class Inverse:
    """x -> s (L L')^-1 s x, for Cholesky factors L (..., T, T) and the diagonal s (..., T, 1), where there is one."""

    factor: Tensor
    scale: Tensor | None = None

    def __call__(self, block: Tensor) -> Tensor:
        """(..., T, b) -> (..., T, b)."""
        if self.scale is None:
            return torch.cholesky_solve(block, self.factor)
        return self.scale * torch.cholesky_solve(self.scale * block, self.factor)

    def __getitem__(self, rows: Tensor) -> "Inverse":
        return Inverse(self.factor[rows], None if self.scale is None else self.scale[rows])


def _check_cut(W: Tensor, K: int, features: Tensor | None) -> None:
    if W.dtype not in TOLERANCE or W.ndim < 2 or W.shape[-1] != W.shape[-2]:
        kind = f"{tuple(W.shape)} in {str(W.dtype).removeprefix('torch.')}"
        raise InputError(f"affinities are (..., T, T) in float32 or float64, not {kind}")
    if not 1 <= K <= W.shape[-1]:
        raise InputError(f"K={K} eigenvectors of {W.shape[-1]} nodes: ask for 1 to {W.shape[-1]}")
    if features is not None and features.shape[:-1] != W.shape[:-1]:
        raise InputError(f"features of shape {tuple(features.shape)} do not fit affinities of {tuple(W.shape)}")


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
    local_radius: int = 2,
    local_scale: float = 0.1,
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
        ``affinity_svd``: the K leading left singular vectors of F and the singular values. ``local``: W is
        :func:`~spectralseg.mathematics.affinity.local_affinity` of the features as they are, of neighbours on ``grid``,
        on the CPU; the K smallest solutions of (D - W) x = l D x.
    normalize
        L2-normalise the rows of F.
    threshold_at_zero
        Negative entries of F F' become 0.
    lapnorm
        Whether D stands on the right-hand side.
    colour, colour_lambda
        Sparse (T, T) colour affinity (one per image of a batch) and its weight; Laplacians only.
    grid, resize_to
        (rows, columns) of the patches, and of the grid to resize the (normalised) features to; T' = its cells.
    solver
        ``auto``: our iteration, and dense LAPACK for small problems and where the iteration does not converge;
        ``dense``: LAPACK always (the reference). ``blocked``: the iteration with 512 rows of W at a time, for graphs
        that do not fit into memory; ``landmarks``: approximate, from the affinities to 1000 patches
        (:mod:`spectralseg.mathematics.landmarks`). Both are for Laplacians with ``lapnorm`` and without colour.
    local_radius, local_scale
        Of ``local``: rows and columns between neighbours at most, and the distance of features at which W is 1/e.

    Returns
    -------
    eigenvalues, eigenvectors
        ([B,] K) and ([B,] K, T) float32, ascending for Laplacians and descending for affinities. x'Dx = 1 with
        ``lapnorm``, else x'x = 1. Signs by :func:`fix_signs`.

    Raises
    ------
    InputError
        K above T (after resizing), NaN or infinite features, an unknown name, ``resize_to`` or ``local`` without the
        ``grid`` of the patches, a ``colour_lambda`` that is negative, without ``colour``, or for another matrix,
        colours of another number or size.
    """
    if features.ndim not in (2, 3):
        raise InputError(f"features are (T, D) or (B, T, D), not of shape {tuple(features.shape)}")
    is_single = features.ndim == 2
    if is_single:
        features = features[None]
    colours = None if colour is None else [colour] if isinstance(colour, coo_array) else colour
    count = features.shape[-2] if resize_to is None else math.prod(resize_to)
    _check(features, count, K, which_matrix, solver)
    _check_colour(len(features), which_matrix, colours, colour_lambda)
    features = features.float()
    if which_matrix == LOCAL:
        if grid is None or resize_to is not None:
            raise InputError("which_matrix=local needs the grid of the patches, and no other")
        arrays = features.cpu().numpy()
        with threadpool_limits(limits=1):  # small matrices: threads would wait for each other
            cuts = [
                sparse_normalised_cut(local_affinity(each, grid, local_radius, local_scale), K, solver == "dense")
                for each in arrays
            ]
        values, vectors = (torch.stack(parts).float().to(features.device) for parts in zip(*cuts, strict=True))
        vectors = fix_signs(vectors.mT)
        return (values[0], vectors[0]) if is_single else (values, vectors)
    given = features
    features, exponent = _prepared(given, normalize, grid, resize_to)
    dense = solver == "dense" or which_matrix == "affinity_torch"
    if solver in WITHOUT_MATRIX:
        if which_matrix not in LAPLACIANS or not lapnorm or colour_lambda > 0:
            raise InputError(f"solver={solver} is for laplacian with lapnorm and without colour")
        solvers.tell_solver(features, K, solver)
        cut = (
            functools.partial(blocked_cut, tolerance=TOLERANCE[torch.float32]) if solver == "blocked" else landmark_cut
        )
        values, vectors = (
            torch.stack(parts) for parts in zip(*[cut(one, K, threshold_at_zero) for one in features], strict=True)
        )
    elif which_matrix == "affinity_svd":
        # On a GPU the library's iteration in float32 stops too early.
        exact = features if features.device.type == "cpu" else features.double()
        vectors, values, _ = torch.linalg.svd(exact, full_matrices=False)
        values, vectors = torch.ldexp(values[..., :K].float(), exponent), vectors[..., :K].float()
    elif which_matrix in AFFINITIES:
        values, vectors = _leading_affinity(feature_affinity(features, threshold_at_zero), K, features, dense)
        values = torch.ldexp(torch.ldexp(values, exponent), exponent)
    else:
        weights = colours if colour_lambda > 0 else None
        W, features = _weights(features, threshold_at_zero, weights, colour_lambda)
        if not threshold_at_zero and (W.sum(dim=-1).abs() < CANCELLED * W.abs().sum(dim=-1)).any():
            # Rounding to float32 would decide whether such a degree is zero, and so counts as 1.
            features, _ = _prepared(given.double(), normalize, grid, resize_to)
            W, features = _weights(features, threshold_at_zero, weights, colour_lambda)
        if lapnorm:
            values, vectors, _ = normalised_cut(W, K, features, dense)
            values, vectors = values.float(), vectors.float()
        else:
            values, vectors = _plain_laplacian(W, K, features, dense)
    if not torch.isfinite(values).all():
        raise InputError("the eigenvalues are too large for float32; normalize the features")
    vectors = fix_signs(vectors.mT)
    return (values[0], vectors[0]) if is_single else (values, vectors)


def _prepared(
    features: Tensor, normalize: bool, grid: tuple[int, int] | None, resize_to: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """Features (B, T, D) as they are multiplied -> (B, T', D) and the exponents (B, 1) of what they were divided by.

    First the largest entry, of each row that is normalised or else of each image, is brought into [1/2, 1) by a power
    of two, which is exact: squares neither vanish nor overflow.
    """
    largest = features.abs().amax(dim=-1 if normalize else (-2, -1), keepdim=True)
    exponent = torch.frexp(largest).exponent.clamp(-126, 126)
    features = torch.ldexp(features, -exponent)
    if normalize:
        features, exponent = functional.normalize(features, dim=-1), torch.zeros_like(exponent)
    if resize_to is not None:
        if grid is None:
            raise InputError(f"resize_to={resize_to} needs the grid of the patches")
        features = resize_features(features, grid, resize_to)
    return features, exponent[:, 0]


def _weights(
    features: Tensor, threshold_at_zero: bool, colours: Sequence[coo_array] | None, colour_lambda: float
) -> tuple[Tensor, Tensor]:
    """W = F F' / max(F F') + colour_lambda * colour (B, T, T), and the F (B, T, D) that were multiplied."""
    # The largest entry of F F' is the largest squared norm of a row, by Cauchy and Schwarz: dividing the thin F by
    # that norm saves two passes over all entries of W.
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True).amax(dim=-2, keepdim=True)
    features = features / solvers.positive(norm, smallest=0)
    W = feature_affinity(features, threshold_at_zero)
    for image_W, image_colour in zip(W, colours or (), strict=colours is not None):
        add_sparse(image_W, image_colour, colour_lambda)
    return W, features


def _check(features: Tensor, count: int, K: int, which_matrix: str, solver: str) -> None:
    check_choice("which_matrix", which_matrix, MATRICES)
    check_choice("solver", solver, SOLVERS)
    dimension = features.shape[-1]
    most = min(count, dimension) if which_matrix == "affinity_svd" else count
    if not 1 <= K <= most:
        raise InputError(f"K={K} eigenvectors of {count} patches with {dimension} features: ask for 1 to {most}")
    if not (features.abs() < IMMENSE).all():
        raise InputError("the features hold NaN, infinite or immense values; extract them again")


def _check_colour(batch: int, which_matrix: str, colour: Sequence[coo_array] | None, colour_lambda: float) -> None:
    check_range("colour_lambda", colour_lambda, least=0)
    if colour_lambda > 0 and colour is None:
        raise InputError(f"colour_lambda={colour_lambda} weighs a colour affinity, and none is given")
    if colour_lambda > 0 and which_matrix not in LAPLACIANS:
        raise InputError("colour is for Laplacians, not for which_matrix=" + which_matrix)
    if colour is not None and len(colour) != batch:
        raise InputError(f"{len(colour)} colour affinities for {batch} images: give one for each")


def _plain_laplacian(W: Tensor, K: int, features: Tensor, dense: bool) -> tuple[Tensor, Tensor]:
    """K smallest solutions of (D - W) x = l x -> l (B, K) ascending, x (B, T, K) with x'x = 1.

    They are the largest of (D - W + shift)^-1, which exists as a Cholesky factor: D - W has no negative eigenvalue
    where W has no negative entry. In float64, because its smallest eigenvalues are small against its largest.
    """
    W = W.double()
    D = solvers.positive(W.sum(dim=-1))
    laplacian = torch.diag_embed(D) - W
    if not (dense or solvers.is_small(D.shape[-1], K)):
        shift = SHIFT * D.mean(dim=-1, keepdim=True)
        factor, failed = torch.linalg.cholesky_ex(laplacian + torch.diag_embed(shift.expand_as(D)))
        if not failed.any():
            near = solvers.start_block(features.double(), solvers.block_width(K) - 1)
            inverse, x, converged = solvers.iterate(
                Inverse(factor),
                torch.cat([torch.ones_like(D)[..., None], near], dim=-1),
                K,
                TOLERANCE[torch.float64],
            )
            if converged.all():
                return (1 / inverse - shift).float(), x.float()
            solvers.warn_of_lapack()
    negative, x = solvers.dense_leading_eigenpairs(-laplacian, K)
    return (-negative).float(), x.float()


def _leading_affinity(W: Tensor, K: int, features: Tensor, dense: bool) -> tuple[Tensor, Tensor]:
    """K largest solutions of W x = l x -> l (B, K) descending, x (B, T, K) with x'x = 1.

    The largest eigenvalue is near T and the 50th near 1, so that rounding relative to the largest would drown the
    others: the thin blocks are float64, where they stay orthogonal to the first eigenvector. W may stay float32.
    """
    values, x = solvers.leading_or_dense(
        ScaledMatrix(W),
        solvers.start_block(features, solvers.block_width(K)).double(),
        K,
        TOLERANCE_AFFINITY,
        lambda: W,
        dense,
    )
    return values.float(), x.float()


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
