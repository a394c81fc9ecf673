"""Features of a training batch's two views, with as few passes of the frozen backbone as there are distinct images."""

from collections.abc import Callable

import torch
from torch import Tensor


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
