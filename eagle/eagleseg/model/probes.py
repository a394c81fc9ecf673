"""The cluster probe: cosine clustering by gradient descent.

Source: Hamilton et al., STEGO, ICLR 2022, section 3.2 (mini-batch cosine K-means); used three times by EAGLE (Kim et
al., CVPR 2024): for the evaluated clusters, and for the segments of EiCue in both views.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ClusterProbe(nn.Module):
    """Centroids on the unit sphere.

    Parameters
    ----------
    n_clusters, dim
        Their number, and the channels of the features.
    """

    def __init__(self, n_clusters: int, dim: int) -> None:
        super().__init__()
        self.clusters = nn.Parameter(torch.randn(n_clusters, dim))

    def cosines(self, features: Tensor) -> Tensor:
        """Cosine of each feature with each centroid: (B, dim, h, w) -> (B, n_clusters, h, w)."""
        features = functional.normalize(features, dim=1)
        return torch.einsum("bdhw,nd->bnhw", features, functional.normalize(self.clusters, dim=1))

    def forward(self, features: Tensor, alpha: float | None = None) -> tuple[Tensor, Tensor]:
        """Loss -mean(sum(p * cosine)), and the probabilities p (B, n_clusters, h, w).

        p is softmax(alpha * cosine) over the clusters, or one-hot of the largest cosine without ``alpha``.
        """
        cosines = self.cosines(features)
        if alpha is None:
            probabilities = functional.one_hot(cosines.argmax(dim=1), len(self.clusters)).movedim(-1, 1).to(cosines)
        else:
            probabilities = torch.softmax(alpha * cosines, dim=1)
        return -(probabilities * cosines).sum(dim=1).mean(), probabilities

    def log_probabilities(self, features: Tensor, alpha: float) -> Tensor:
        """log softmax(alpha * cosine): (B, dim, h, w) -> (B, n_clusters, h, w)."""
        return torch.log_softmax(alpha * self.cosines(features), dim=1)
