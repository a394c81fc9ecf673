"""What EAGLE trains: the segmentation head on frozen features, the projection head, and the probes.

Source: Kim et al., EAGLE, CVPR 2024, section 3; the head is that of STEGO (Hamilton et al., ICLR 2022).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from eagleseg.model.probes import ClusterProbe

DROPOUT = 0.1


class SegmentationHead(nn.Module):
    """Code z = A(drop(F)) + C(relu(B(drop(F)))), by 1x1 convolutions; each ``drop`` is a draw of its own.

    Parameters
    ----------
    in_channels
        Channels of F.
    dim
        Channels of the code.
    dropout
        Whether F itself is returned with dropped channels too; those that enter the code always drop, in training.
    """

    def __init__(self, in_channels: int, dim: int = 512, dropout: bool = True) -> None:
        super().__init__()
        self.in_channels, self.dropout = in_channels, dropout
        self.A = nn.Conv2d(in_channels, dim, 1)
        self.B = nn.Conv2d(in_channels, in_channels, 1)
        self.C = nn.Conv2d(in_channels, dim, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in_channels, h, w) -> features, with dropout in training, and code (B, dim, h, w)."""
        code = _on_cells(self.A, self._drop(features))
        code = code + _on_cells(self.C, functional.relu(_on_cells(self.B, self._drop(features))))
        return self._drop(features) if self.dropout else features, code

    def _drop(self, features: Tensor) -> Tensor:
        return functional.dropout2d(features, DROPOUT, self.training)


def _on_cells(convolution: nn.Conv2d, maps: Tensor) -> Tensor:
    """A 1x1 convolution of (B, C, h, w) as a product over cells: on a CPU a fifth faster than the convolution."""
    return functional.linear(maps.movedim(1, -1), convolution.weight.flatten(1), convolution.bias).movedim(-1, 1)


class EagleModel(nn.Module):
    """Head and probes; the frozen backbone is not part of it.

    Parameters
    ----------
    feature_dim
        Channels of the features, those of three blocks joined.
    n_classes
        Classes of the linear probe.
    extra_clusters
        Of the cluster probe, beyond ``n_classes``.
    dim
        Channels of the code.
    eigen_cluster
        Eigenvectors of EiCue; the first of them, which is constant, is left out.
    eigen_cluster_out
        Segments of EiCue over the data set, for each of the two views.
    dropout
        Of the features, see :class:`SegmentationHead`.
    learned_prototypes
        Whether the prototypes of the contrast are parameters, one per segment of EiCue.
    """

    def __init__(
        self,
        feature_dim: int,
        n_classes: int,
        extra_clusters: int = 0,
        dim: int = 512,
        eigen_cluster: int = 4,
        eigen_cluster_out: int = 32,
        dropout: bool = True,
        learned_prototypes: bool = False,
    ) -> None:
        super().__init__()
        self.head = SegmentationHead(feature_dim, dim, dropout)
        self.project_head = nn.Linear(dim, dim)
        self.linear_probe = nn.Conv2d(dim, n_classes, 1)
        self.cluster_probe = ClusterProbe(n_classes + extra_clusters, dim)
        self.eigen_probe = ClusterProbe(eigen_cluster_out, eigen_cluster - 1)
        self.eigen_probe_blur = ClusterProbe(eigen_cluster_out, eigen_cluster - 1)
        self.prototypes = nn.Parameter(torch.randn(eigen_cluster_out, dim)) if learned_prototypes else None

    def tokens_for_contrast(self, code: Tensor) -> Tensor:
        """Projected, L2-normalised tokens: (B, dim, h, w) -> (B * h * w, dim)."""
        return functional.normalize(self.project_head(code.flatten(2).mT.flatten(0, 1)), dim=-1)
