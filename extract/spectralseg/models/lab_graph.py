"""``lab_graph``: colours of cells, whose graph of neighbours finds objects without any learned weights.

Made for ``extract_eigs --which_matrix local`` and ``--foreground``: see :mod:`spectralseg.mathematics.ranking`.
"""

from torch import Tensor, nn
from torch.nn import functional

from spectralseg.models.lab_hog import rgb_to_lab


class LabGraph(nn.Module):
    """Mean CIELAB of each cell, divided by 100: distances of 0.1 are plain to see, 0.02 hardly.

    Parameters
    ----------
    patch_size
        Side of a cell in pixels.
    """

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of the cells' side -> (B, T, 3), row-major cells."""
        return functional.avg_pool2d(rgb_to_lab(images) / 100, self.patch_size).flatten(2).mT
