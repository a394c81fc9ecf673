"""Features of the frozen backbone: keys of its last three blocks, joined over channels.

Source: Kim et al., EAGLE, CVPR 2024, section 3.1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eagleseg.data.views import to_rgb
from spectralseg.errors import InputError
from spectralseg.files.images import patch_grid
from spectralseg.models.backbones import LAB_HOG, Backbone
from spectralseg.models.tokens import TokenExtractor

BLOCKS = (-3, -2, -1)


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
        """Features of ImageNet-normalised images, on the backbone's device."""
        rows, columns = patch_grid(*images.shape[-2:], self.backbone.patch_size)
        features = self._tokens(to_rgb(images))
        keys = torch.cat([features[name] for name in names(self.blocks)], dim=-1).float()
        return keys.mT.unflatten(-1, (rows, columns))


def names(blocks: Sequence[int]) -> list[str]:
    """Names of the keys of several blocks in what the extract stage computes and stores."""
    return [f"k_block_{block}" for block in blocks] if len(blocks) > 1 else ["k"]


def features_from_record(record: dict[str, Any]) -> Tensor:
    """What the featurizer gives for an image, from a record of ``extract_features`` for the blocks -3, -2, -1.

    Returns
    -------
    Tensor
        (C, h, w) float32.

    Raises
    ------
    InputError
        The record holds the keys of other blocks.
    """
    wanted = ["k"] if record.get("model_name") in LAB_HOG else names(BLOCKS)
    missing = [name for name in wanted if name not in record]
    if missing:
        raise InputError(
            f"the features of '{record.get('id')}' lack {', '.join(missing)}: extract_features --which_block=-3,-2,-1"
        )
    rows, columns = patch_grid(*record["shape"][-2:], record["patch_size"])
    return torch.cat([record[name][0] for name in wanted], dim=-1).float().mT.unflatten(-1, (rows, columns))
