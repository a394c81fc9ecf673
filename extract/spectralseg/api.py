"""From a picture to eigenvectors, mask, segments and box, without files: for notebooks and other programs.

>>> from PIL import Image
>>> from spectralseg.api import Segmenter
>>> segment = Segmenter("lab_hog")
>>> result = segment(Image.open("data/samples/images/chelsea.jpg"))
>>> result.mask.shape, result.box is not None
((300, 451), True)
"""

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from spectralseg.errors import check_choice
from spectralseg.files.images import as_picture, patch_grid, to_tensor
from spectralseg.files.label_maps import upscale_labels
from spectralseg.mathematics.affinity import COLOR_GRIDS, COLOUR_AFFINITIES, colour_affinity
from spectralseg.mathematics.crf import CrfSettings, dense_crf
from spectralseg.mathematics.eigen import spectral_eigenvectors
from spectralseg.mathematics.regions import background_first, bounding_box, kmeans_segments, largest_component
from spectralseg.models.backbones import load_backbone
from spectralseg.models.tokens import TokenExtractor
from spectralseg.running.devices import pick_device
from spectralseg.settings import check_range


@dataclass(frozen=True)
class Segmentation:
    """What the eigenvectors say of an image of H x W pixels.

    Attributes
    ----------
    eigenvalues
        (K,) float32, ascending.
    eigenvectors
        (K, rows, columns) float32, at the grid; number 0 is constant.
    step
        Pixels per cell of the grid.
    mask
        (H, W) bool: the main object.
    segments
        (H, W) uint8: segment numbers, 0 the background.
    box
        (xmin, ymin, xmax, ymax) in pixels, maxima exclusive: of the mask's largest component; None if it is empty.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    step: int
    mask: np.ndarray
    segments: np.ndarray
    box: tuple[int, int, int, int] | None


class Segmenter:
    """A backbone, ready to segment pictures one by one.

    Parameters
    ----------
    model_name, weights, dtype, device
        As of ``extract.py extract_features``.

    Raises
    ------
    spectralseg.errors.InputError
        Unknown name, or weights that cannot be had.
    """

    def __init__(
        self,
        model_name: str = "dino_vits16",
        weights: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        self.backbone = load_backbone(model_name, weights, self.device)
        self.extractor = TokenExtractor(self.backbone, dtype=dtype)

    def __call__(
        self,
        image: Image.Image | str | os.PathLike[str] | np.ndarray,
        K: int = 5,
        num_segments: int = 4,
        color_lambda: float = 0.0,
        which_color_matrix: str = "knn",
        crf: bool = False,
        seed: int = 0,
        color_grid: str = "cropped",
        crf_backend: str = "auto",
    ) -> Segmentation:
        """Segment a picture.

        Parameters
        ----------
        image
            Any Pillow image or the path of one; its EXIF orientation is applied. Or an array of uint8, (H, W, 3) RGB or
            (H, W) grey.
        K
            Eigenvectors, the constant one included; at least 2, at most as many as the image has patches.
        num_segments
            Regions of the segment map, 1 to 255.
        color_lambda, which_color_matrix
            Weight and kind (``knn``, ``rw``) of the colour affinity.
        crf
            Sharpen mask and segments to the edges of the image.
        seed
            Of K-means.
        color_grid
            ``cropped`` or ``released``: which part of the image the colour affinity sees, as of ``extract.py
            extract_eigs``.
        crf_backend
            As of ``extract.py extract_crf_segmentations``.

        Raises
        ------
        spectralseg.errors.InputError
            No picture; an unknown name or a number out of its range; the image is smaller than a patch, or has fewer
            patches than K.
        """
        check_range("K", K, least=2)  # number 0 is constant
        check_range("num_segments", num_segments, least=1, most=255)
        check_choice("which_color_matrix", which_color_matrix, COLOUR_AFFINITIES)
        check_choice("color_grid", color_grid, COLOR_GRIDS)
        sharpening = CrfSettings(crf_backend=crf_backend).resolved(self.device) if crf else None
        image = as_picture(image)
        patch = self.backbone.patch_size
        grid = patch_grid(image.height, image.width, patch)
        features = self.extractor(to_tensor(image)[None].to(self.device))["k"][0]
        colour = None
        if color_lambda > 0:
            covered = (grid[0] * patch, grid[1] * patch)
            colour = colour_affinity(image, covered, grid, which_color_matrix, color_grid)
        values, vectors = spectral_eigenvectors(features, K, colour=colour, colour_lambda=color_lambda)
        eigenvalues, eigenvectors = values.cpu().numpy(), vectors.cpu().numpy()
        coarse_mask = (eigenvectors[1] > 0).reshape(grid)
        coarse_segments = background_first(kmeans_segments(eigenvectors[1:].T, num_segments, seed).reshape(grid))
        mask = self._at_pixels(image, coarse_mask, 2, sharpening).astype(bool)
        segments = self._at_pixels(image, coarse_segments, num_segments, sharpening)
        return Segmentation(eigenvalues, eigenvectors.reshape(K, *grid), patch, mask, segments, object_box(mask))

    def _at_pixels(
        self, image: Image.Image, labels: np.ndarray, num_classes: int, crf: CrfSettings | None
    ) -> np.ndarray:
        full = upscale_labels(labels.astype(np.uint8), image.height, image.width, self.backbone.patch_size)
        return full if crf is None else dense_crf(np.array(image), full, max(2, num_classes), crf, self.device)


def object_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(xmin, ymin, xmax, ymax) of the largest component of a mask (H, W); None if the mask is empty."""
    component = largest_component(mask)
    return bounding_box(component) if component.any() else None
