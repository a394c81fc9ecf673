"""Normalised cuts of graphs whose affinities do not fit into memory: by blocks of rows, or by landmarks.

Source of :func:`landmark_cut`: Fowlkes, Belongie, Chung and Malik, "Spectral grouping using the Nystroem method", PAMI
2004, with the orthogonal solution from one factor of the approximated affinities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralseg.errors import InputError
from spectralseg.mathematics import solvers

ROWS = 512  # of the affinities at a time: 100 MB at 50,000 patches
LANDMARKS = 1000
# Of the landmarks' affinities: eigenvalues below the first share of the largest are left out, for they would enlarge
# what the landmarks do not tell of the others, if 4 K remain; below the second there is rounding alone.
NEGLIGIBLE, ROUNDING, SPARE = 1e-2, 1e-5, 4


@dataclass(frozen=True)
class BlockedAffinity:
    """x -> s W s x for W = F F', negative entries 0 with ``threshold``, of which no more than 512 rows are ever held.

    ``features`` (T, d), ``scale`` (T, 1). Without a threshold F (F' x) needs none of W.
    """

    features: Tensor
    threshold: bool
    scale: Tensor | None = None

    def __call__(self, block: Tensor) -> Tensor:
        """(..., T, b) -> (..., T, b)."""
        given = block if self.scale is None else self.scale * block
        if not self.threshold:
            product = self.features @ (self.features.mT @ given)
        else:
            panels = [(rows @ self.features.mT).clamp_(min=0) @ given for rows in self.features.split(ROWS)]
            product = torch.cat(panels, dim=-2)
        return product if self.scale is None else self.scale * product

    def __getitem__(self, rows: Tensor) -> "BlockedAffinity":
        return self  # one graph: whoever selects of a batch of one selects it


def blocked_cut(features: Tensor, K: int, threshold: bool, tolerance: float) -> tuple[Tensor, Tensor]:
    """K smallest solutions of (D - W) x = l D x with W = F F' in blocks of rows: exact, in memory of T * 512 numbers.

    Parameters
    ----------
    features
        (T, d) float32.
    K
        Number of solutions, 1 to T.
    threshold
        Whether negative affinities become 0.
    tolerance
        Of the residuals, as :func:`~spectralseg.mathematics.solvers.leading_eigenpairs` has it.

    Returns
    -------
    eigenvalues, x
        (K,) ascending and (T, K) with x'Dx = 1.

    Raises
    ------
    InputError
        The iteration does not converge. There is no matrix to give to LAPACK.
    """
    _check(features, K)
    W = BlockedAffinity(features, threshold)
    D = solvers.positive(W(torch.ones_like(features[:, :1])))
    root = D.rsqrt()
    width = min(solvers.block_width(K), len(features))
    near = solvers.start_block(root * features, width) if len(features) > width else solvers.noise_block(D.mT, width)
    start = torch.cat([D.sqrt(), near[:, 1:]], dim=-1)
    values, z, converged = solvers.iterate(BlockedAffinity(features, threshold, root), start, K, tolerance)
    if not converged.all():
        raise InputError("the eigenvectors did not converge; --solver landmarks gives approximate ones")
    return 1 - values, root * z


def landmark_cut(features: Tensor, K: int, threshold: bool, landmarks: int = LANDMARKS) -> tuple[Tensor, Tensor]:
    """Approximate solutions of (D - W) x = l D x, from the affinities of all patches to some of them.

    Parameters
    ----------
    features, K, threshold
        As of :func:`blocked_cut`; K at most the rank that the landmarks' affinities have.
    landmarks
        How many patches, evenly spaced in their order, all are compared with; all of them give the exact solutions.

    Returns
    -------
    eigenvalues, x
        As of :func:`blocked_cut`, of the approximated W.

    Raises
    ------
    InputError
        K beyond that rank.

    Notes
    -----
    With C = W[:, L] and A = W[L, L] = U a U', restricted to its larger eigenvalues, W is about C A^-1 C' = G G' for
    G = C U a^-1/2; D = G (G' 1), and the left singular vectors s of D^-1/2 G give l = 1 - sigma^2 and x = D^-1/2 s.
    """
    _check(features, K)
    count = min(landmarks, len(features))
    chosen = torch.linspace(0, len(features) - 1, count, device=features.device).round().long()
    C = features @ features[chosen].mT
    if threshold:
        C.clamp_(min=0)
    a, U = torch.linalg.eigh(C[chosen].double())
    spare = a >= a[-min(SPARE * K, count)]
    kept = (a > NEGLIGIBLE * a[-1]) | (spare & (a > ROUNDING * a[-1]))
    if int(kept.sum()) < K:
        raise InputError(f"{K} eigenvectors of landmarks whose affinities have rank {int(kept.sum())}: lower --K")
    G = C.double() @ (U[:, kept] * a[kept].rsqrt())
    D = solvers.positive(G @ G.sum(dim=0)[:, None])
    G = D.rsqrt() * G
    squares, V = torch.linalg.eigh(G.mT @ G)
    squares, V = squares.flip(-1)[:K], V.flip(-1)[:, :K]
    x = D.rsqrt() * (G @ (V * squares.clamp_min(solvers.SMALLEST_DEGREE).rsqrt()))
    return (1 - squares).to(features.dtype), x.to(features.dtype)


def _check(features: Tensor, K: int) -> None:
    if features.ndim != 2:
        raise InputError(f"features are (T, d), not of shape {tuple(features.shape)}")
    if not 1 <= K <= len(features):
        raise InputError(f"K={K} eigenvectors of {len(features)} nodes: ask for 1 to {len(features)}")
