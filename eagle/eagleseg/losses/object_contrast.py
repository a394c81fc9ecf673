"""Object-centric contrast: tokens are drawn to the prototype of their segment, in both views.

Source: Kim et al., EAGLE, CVPR 2024, section 3.3.
"""

import torch
from torch import Tensor
from torch.nn import functional

SMOOTHING = 0.1


def token_weights(features: Tensor) -> Tensor:
    """Mean over each row of S, which is F'F with columns of norm 1: (B, C, T) features -> (B * T,) weights."""
    with torch.no_grad():
        return functional.normalize(features.mT @ features, dim=1).mean(dim=2).flatten()


def consecutive(segments: Tensor) -> tuple[Tensor, int]:
    """Labels (N,) renumbered from 0 without gaps, and how many there are."""
    present, labels = segments.unique(return_inverse=True)
    return labels, len(present)


def medoids(tokens: Tensor, labels: Tensor, count: int) -> Tensor:
    """The token of each label with the smallest summed distance to the others: (N, d), labels (N,) -> (count, d).

    The tokens are taken label by label, and those of a label in blocks of rows: the distances that exist at once grow
    with the largest segment, not with its square.
    """
    order, sizes = labels.argsort(stable=True), labels.bincount(minlength=count).tolist()
    with torch.no_grad():
        sorted_tokens = tokens[order].float()
        chosen = [_summed_distances(own).argmin() for own in sorted_tokens.split(sizes)]
    starts = labels.new_tensor([0, *sizes[:-1]]).cumsum(0)
    return tokens[order[starts + torch.stack(chosen)]]


def _summed_distances(points: Tensor, rows: int = 4096) -> Tensor:
    """Summed Euclidean distance of each point (n, d) to all others (n,), ``rows`` of the matrix at a time."""
    return torch.cat([torch.cdist(part, points).sum(dim=1) for part in points.split(rows)])


def means(tokens: Tensor, labels: Tensor, count: int) -> Tensor:
    """Mean token of each label: (N, d), labels (N,) -> (count, d)."""
    sums = tokens.new_zeros(count, tokens.shape[1]).index_add(0, labels, tokens)
    return sums / labels.bincount(minlength=count).clamp_min(1).unsqueeze(1)


def object_contrast(
    own: Tensor,
    other: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    weights: Tensor,
    temperature: float = 0.07,
    global_weight: float = 0.7,
    label_smoothing: bool = False,
) -> Tensor:
    """((1 - g) local + g global) / 2: cross-entropy of tokens against the prototypes of one view, in both views.

    Parameters
    ----------
    own, other
        (N, d) L2-normalised tokens of the view that the prototypes are of, and of the other one.
    labels
        (N,) number of each token's prototype.
    prototypes
        (K, d).
    weights
        (N,) of the tokens, see :func:`token_weights`.
    temperature, global_weight
        Of the logits; g, the share of the other view.
    label_smoothing
        As for Cityscapes: 0.1 spread over the other labels, and the mean over tokens before they are weighted.

    Returns
    -------
    Tensor
        Scalar.
    """

    def cross_entropy(tokens: Tensor) -> Tensor:
        log_probabilities = torch.log_softmax(tokens @ prototypes.T / temperature, dim=1)
        right = log_probabilities.gather(1, labels[:, None]).squeeze(1)
        if not label_smoothing:
            return (-right * weights).mean()
        wrong = log_probabilities.sum(dim=1) - right
        share = SMOOTHING / max(1, log_probabilities.shape[1] - 1)
        return -((1 - SMOOTHING) * right + share * wrong).mean() * weights.mean()

    return ((1 - global_weight) * cross_entropy(own) + global_weight * cross_entropy(other)) / 2
