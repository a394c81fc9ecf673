"""Features of the frozen backbone: keys of its last three blocks, joined over channels.

Source: Kim et al., EAGLE, CVPR 2024, section 3.1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eagleseg.data.records import BLOCKS, names
from spectralseg.files.images import patch_grid
from spectralseg.models.backbones import Backbone
from spectralseg.models.tokens import TokenExtractor


class Featurizer:
    """(B, 3, H, W) images -> (B, C, h, w) float32, C = 3 D: keys of the blocks -3, -2, -1, heads joined.

    A backbone without blocks (``lab_hog``) gives its features alone, C = D.

    Parameters
    ----------
    backbone
        From :func:`spectralseg.models.backbones.load_backbone`.
    dtype
        ``float32``, or ``bfloat16`` / ``float16`` for autocast in the backbone.
    """

    def __init__(self, backbone: Backbone, dtype: str = "float32") -> None:
        self.backbone = backbone
        self.blocks = BLOCKS if backbone.is_vit else (-1,)
        self._tokens = TokenExtractor(backbone, self.blocks, ("k",), dtype)
        size = backbone.patch_size
        device = next(backbone.model.parameters(), torch.empty(0)).device
        self.dim = self(torch.zeros(1, 3, size, size, device=device)).shape[1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of RGB images in [0, 1], on the backbone's device."""
        rows, columns = patch_grid(images.shape[-2], images.shape[-1], self.backbone.patch_size)
        features = self._tokens(images)
        keys = torch.cat([features[name] for name in names(self.blocks)], dim=-1).float()
        return keys.mT.unflatten(-1, (rows, columns))


def features_of_views(features_of: Callable[[Tensor], Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features of the clean and of the blurred view.

    The published step runs the backbone three times on each image (the image, itself again as the positive, and its
    blurred view). The first two are the same, and the blur is drawn with probability 1/2: where it was not drawn, the
    third is the same as well.

    Parameters
    ----------
    features_of
        (N, 3, H, W) images -> (N, C, h, w).
    batch
        ``img`` and ``img_blur`` (B, 3, H, W); with ``features`` (B, C, h, w), those of the clean view, read from files,
        only blurred images pass through the backbone.

    Returns
    -------
    clean, blurred
        (B, C, h, w) each.
    """
    images, blurred_images = batch["img"], batch["img_blur"]
    changed = (images != blurred_images).flatten(1).any(dim=1)
    blurred_images = blurred_images[changed]
    if "features" in batch:
        clean = batch["features"]
        new = features_of(blurred_images) if len(blurred_images) else clean[:0]
    else:
        clean, new = features_of(torch.cat([images, blurred_images])).split([len(images), len(blurred_images)])
    blurred = clean.clone()
    blurred[changed] = new.to(clean.dtype)
    return clean, blurred
