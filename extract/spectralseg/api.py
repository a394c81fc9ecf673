"""From a picture to eigenvectors, mask, segments and box, without files: for notebooks and other programs.

>>> from PIL import Image
>>> from spectralseg.api import Segmenter
>>> segment = Segmenter("lab_graph")
>>> result = segment(Image.open("data/samples/images/chelsea.jpg"))
>>> result.mask.shape, result.box is not None
((300, 451), True)
"""

import os
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from spectralseg.errors import check_choice
from spectralseg.files.images import as_picture, patch_grid, reduce_to, to_tensor
from spectralseg.files.label_maps import enlarge_mask, stretch_labels, upscale_labels
from spectralseg.mathematics.affinity import COLOR_GRIDS, COLOUR_AFFINITIES, colour_affinity
from spectralseg.mathematics.crf import CrfSettings, dense_crf, sharpen_soft
from spectralseg.mathematics.eigen import spectral_eigenvectors
from spectralseg.mathematics.ranking import FOREGROUNDS, object_map
from spectralseg.mathematics.regions import background_first, bounding_box, kmeans_segments, largest_component
from spectralseg.models.backbones import AUTO, LAB_GRAPH, MAX_SIZE, load_backbone
from spectralseg.models.tokens import TokenExtractor
from spectralseg.running.devices import pick_device
from spectralseg.settings import check_range


@dataclass(frozen=True)
class Preset:
    """What a backbone's features are good for, where nothing else is asked for.

    ``which_matrix``, ``K`` of :func:`~spectralseg.mathematics.eigen.spectral_eigenvectors`; ``num_eigenvectors``: of
    these, how many the segments are made from; ``foreground``: how the object is found; ``max_size``: longer side in
    pixels that ``run`` reduces photographs to; ``crf``: sharpens the object's mask.
    """

    which_matrix: str = "laplacian"
    K: int = 5
    num_eigenvectors: int = 1_000_000
    foreground: str = "eigenvector"
    max_size: int = 640
    crf: CrfSettings = CrfSettings()


SOFT_CRF = CrfSettings(w1=5, alpha=40, beta=13)
PRESETS = {LAB_GRAPH: Preset("local", 20, 4, "robust", MAX_SIZE[LAB_GRAPH], SOFT_CRF)}


def preset_of(model_name: str) -> Preset:
    """The preset of a backbone."""
    return PRESETS.get(model_name, Preset())


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
        Pixels per cell of the grid (with ``lab_graph`` of the image reduced to 400 pixels).
    mask
        (H, W) bool: the main object.
    segments
        (H, W) uint8: segment numbers, 0 the background.
    box
        (xmin, ymin, xmax, ymax) in pixels, maxima exclusive: of the mask's largest component; None if it is empty.
    soft
        (rows, columns) float64 in [0, 1], at the grid: the soft map whose part above 1/2 the mask is; None where the
        mask is an eigenvector's sign.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    step: int
    mask: np.ndarray
    segments: np.ndarray
    box: tuple[int, int, int, int] | None
    soft: np.ndarray | None = None


class Segmenter:
    """A backbone, ready to segment pictures one by one.

    Parameters
    ----------
    model_name, weights, dtype, device
        As of ``extract.py extract_features``; ``auto`` is ``dino_vits16``, or ``lab_graph`` where its weights cannot be
        had, as is then said.

    Raises
    ------
    spectralseg.errors.InputError
        Unknown name, or weights that cannot be had.
    """

    def __init__(
        self,
        model_name: str = AUTO,
        weights: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        self.backbone = load_backbone(model_name, weights, self.device)
        self.preset = preset_of(self.backbone.name)
        self.extractor = TokenExtractor(self.backbone, dtype=dtype)

    def __call__(
        self,
        image: Image.Image | str | os.PathLike[str] | np.ndarray,
        K: int | None = None,
        num_segments: int = 4,
        color_lambda: float = 0.0,
        which_color_matrix: str = "knn",
        crf: bool = False,
        seed: int = 0,
        color_grid: str = "cropped",
        crf_backend: str = "auto",
        foreground: str | None = None,
    ) -> Segmentation:
        """Segment a picture.

        Parameters
        ----------
        image
            Any Pillow image or the path of one; its EXIF orientation is applied. Or an array of uint8, (H, W, 3) RGB or
            (H, W) grey.
        K
            Eigenvectors, the constant one included; at least 2, at most as many as the image has patches. Default: 5,
            with ``lab_graph`` 20.
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
        foreground
            ``eigenvector``: where number 1 is positive; ``ranking`` or ``robust``: by
            :func:`spectralseg.mathematics.ranking.object_map`. Default: ``eigenvector``, with ``lab_graph`` ``robust``.

        Raises
        ------
        spectralseg.errors.InputError
            No picture; an unknown name or a number out of its range; the image is smaller than a patch, or has fewer
            patches than K.
        """
        K = self.preset.K if K is None else K
        foreground = self.preset.foreground if foreground is None else foreground
        check_range("K", K, least=2)  # number 0 is constant
        check_choice("foreground", foreground, FOREGROUNDS)
        check_range("num_segments", num_segments, least=1, most=255)
        check_choice("which_color_matrix", which_color_matrix, COLOUR_AFFINITIES)
        check_choice("color_grid", color_grid, COLOR_GRIDS)
        sharpening = CrfSettings(crf_backend=crf_backend).resolved(self.device) if crf else None
        photograph = as_picture(image)
        image = photograph.copy()
        if self.backbone.name in MAX_SIZE:
            reduce_to(image, MAX_SIZE[self.backbone.name])
        patch = self.backbone.patch_size
        grid = patch_grid(image.height, image.width, patch)
        features = self.extractor(to_tensor(image)[None].to(self.device))["k"][0]
        colour = None
        if color_lambda > 0:
            covered = (grid[0] * patch, grid[1] * patch)
            colour = colour_affinity(image, covered, grid, which_color_matrix, color_grid)
        values, vectors = spectral_eigenvectors(
            features, K, self.preset.which_matrix, colour=colour, colour_lambda=color_lambda, grid=grid
        )
        eigenvalues, eigenvectors = values.cpu().numpy(), vectors.cpu().numpy()
        soft = None
        if foreground == "eigenvector":
            mask = self._at_pixels(image, (eigenvectors[1] > 0).reshape(grid), 2, sharpening)
        else:
            colours = features.cpu().numpy() if self.backbone.name == LAB_GRAPH else None
            soft = object_map(foreground, grid, eigenvalues, eigenvectors, colours)
            full = upscale_labels(soft, image.height, image.width, patch)
            mask = full > 0.5
            if sharpening is not None:
                chosen = replace(self.preset.crf, crf_backend=sharpening.crf_backend)
                mask = sharpen_soft(np.array(image), full, chosen, self.device)
        points = eigenvectors[1 : 1 + self.preset.num_eigenvectors].T
        coarse_segments = background_first(kmeans_segments(points, num_segments, seed).reshape(grid))
        segments = self._at_pixels(image, coarse_segments, num_segments, sharpening)
        if image.size != photograph.size:
            mask = enlarge_mask(mask > 0, photograph.size)
            segments = stretch_labels(segments, photograph.height, photograph.width)
        mask = mask.astype(bool)
        fields = (eigenvalues, eigenvectors.reshape(K, *grid), patch, mask, segments, object_box(mask), soft)
        return Segmentation(*fields)

    def _at_pixels(
        self, image: Image.Image, labels: np.ndarray, num_classes: int, crf: CrfSettings | None
    ) -> np.ndarray:
        full = upscale_labels(labels.astype(np.uint8), image.height, image.width, self.backbone.patch_size)
        return full if crf is None else dense_crf(np.array(image), full, max(2, num_classes), crf, self.device)


def object_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(xmin, ymin, xmax, ymax) of the largest component of a mask (H, W); None if the mask is empty."""
    component = largest_component(mask)
    return bounding_box(component) if component.any() else None
