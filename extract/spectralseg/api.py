"""From a picture to eigenvectors, mask, segments and box, without files: for notebooks and other programs.

>>> from PIL import Image
>>> from spectralseg.api import Segmenter
>>> segment = Segmenter("lab_graph")
>>> result = segment(Image.open("data/samples/images/chelsea.jpg"))
>>> result.mask.shape, result.box is not None
((300, 451), True)

``result.show()`` opens a picture of it, a notebook draws it by itself, ``result.save("folder")`` writes files; a list
of pictures gives a list of results. ``segment.objects(picture)`` gives several objects, with scores.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from spectralseg.drawing.pictures import as_html, contact_sheet, draw_object, eigenvector_picture
from spectralseg.errors import check_choice
from spectralseg.files.images import as_picture, patch_grid, reduce_to, to_tensor
from spectralseg.files.label_maps import enlarge_mask, label_picture, stretch_labels, upscale_labels
from spectralseg.files.storage import make_folder, save_picture
from spectralseg.mathematics.affinity import COLOR_GRIDS, COLOUR_AFFINITIES, colour_affinity
from spectralseg.mathematics.crf import CrfSettings, dense_crf, sharpen_soft
from spectralseg.mathematics.eigen import spectral_eigenvectors
from spectralseg.mathematics.objects import (
    MASKCUT_CRF,
    MIN_SEPARATION,
    Part,
    colour_features,
    distinct,
    find_parts,
    sharpen_masks,
)
from spectralseg.mathematics.ranking import FOREGROUNDS, object_map
from spectralseg.mathematics.regions import background_first, bounding_box, kmeans_segments, largest_component
from spectralseg.models.backbones import AUTO, LAB_GRAPH, MAX_SIZE, load_backbone
from spectralseg.models.tokens import TokenExtractor
from spectralseg.running.devices import pick_device
from spectralseg.settings import check_range

Picture = Image.Image | str | os.PathLike[str] | np.ndarray
GPU_BATCH, GPU_BATCH_CELLS = 32, 64 * 1024**2  # images, and entries of their matrices, at once on a GPU


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
        Pixels per cell of the grid, those of the reduced image where it was reduced (``max_size``).
    mask
        (H, W) bool: the main object.
    segments
        (H, W) uint8: segment numbers, 0 the background.
    box
        (xmin, ymin, xmax, ymax) in pixels, maxima exclusive: of the mask's largest component; None if it is empty.
    image
        The photograph, RGB and upright.
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
    image: Image.Image
    soft: np.ndarray | None = None

    def cutout(self) -> Image.Image:
        """The object on a transparent background, RGBA of H x W pixels."""
        picture = self.image.copy()
        picture.putalpha(Image.fromarray(self.mask * np.uint8(255)))
        return picture

    def picture(self, num_eigenvectors: int = 3, height: int = 160) -> Image.Image:
        """A sheet: photograph, object, eigenvectors, soft map where there is one, segments, cut-out."""
        return contact_sheet(self.panels(num_eigenvectors, height), height=height)

    def panels(self, num_eigenvectors: int = 3, height: int = 160) -> list[tuple[str, Image.Image]]:
        """The pictures of :meth:`picture` with their captions, for pictures of ``height`` pixels."""
        width = round(self.image.width * height / self.image.height)
        panels = [("image", self.image), ("object", draw_object(self.image, self.mask, self.box))]
        for number, vector in enumerate(self.eigenvectors[1 : 1 + num_eigenvectors], 1):
            panels.append((f"eigenvector {number}", eigenvector_picture(vector, (width, height))))
        if self.soft is not None:
            panels.append(("map of the object", Image.fromarray(np.uint8(255 * self.soft)).resize((width, height), 0)))
        return [*panels, ("segments", label_picture(self.segments)), ("cut-out", self.cutout())]

    def show(self) -> None:
        """Open :meth:`picture` in the system's viewer."""
        self.picture().show()

    def save(self, folder: str | os.PathLike[str], name: str = "photograph") -> None:
        """Write to a folder: ``<name>_mask.png`` (0 and 255), ``_segments.png``, ``_cutout.png``, ``_picture.png``."""
        path = make_folder(Path(folder))
        mask = Image.fromarray(self.mask * np.uint8(255))
        files = {"mask": mask, "segments": label_picture(self.segments), "cutout": self.cutout()}
        for kind, picture in (files | {"picture": self.picture()}).items():
            save_picture(path / f"{name}_{kind}.png", picture)

    def _repr_html_(self) -> str:
        return as_html(self.picture(), "segmentation")


@dataclass(frozen=True)
class FoundObject:
    """One of several objects of an image: mask (H, W) bool, its box as of :class:`Segmentation`, score in [0, 1]."""

    mask: np.ndarray
    box: tuple[int, int, int, int]
    score: float


class Segmenter:
    """A backbone, ready to segment pictures.

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

    @overload
    def __call__(self, image: Picture, *arguments: Any, **options: Any) -> Segmentation: ...

    @overload
    def __call__(
        self, image: list[Picture] | tuple[Picture, ...], *arguments: Any, **options: Any
    ) -> list[Segmentation]: ...

    def __call__(
        self,
        image: Picture | list[Picture] | tuple[Picture, ...],
        K: int | None = None,
        num_segments: int = 4,
        color_lambda: float = 0.0,
        which_color_matrix: str = "knn",
        crf: bool = False,
        seed: int = 0,
        color_grid: str = "cropped",
        crf_backend: str = "auto",
        foreground: str | None = None,
        max_size: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment a picture, or several.

        Parameters
        ----------
        image
            Any Pillow image or the path of one; its EXIF orientation is applied. Or an array of uint8, (H, W, 3) RGB or
            (H, W) grey. Or a list or tuple of such pictures: on a GPU those of one size go through it together.
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
        max_size
            Longer side in pixels to which larger pictures are reduced (Lanczos filter); mask and segments have their
            own size all the same. ``run`` takes 640; with more, time and memory grow with the square of the patches.
            Default: as they are, with ``lab_graph`` 400.

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
        check_range("max_size", max_size, least=1)
        max_size = MAX_SIZE.get(self.backbone.name) if max_size is None else max_size
        check_range("num_segments", num_segments, least=1, most=255)
        check_choice("which_color_matrix", which_color_matrix, COLOUR_AFFINITIES)
        check_choice("color_grid", color_grid, COLOR_GRIDS)
        sharpening = CrfSettings(crf_backend=crf_backend).resolved(self.device) if crf else None
        pictures = image if isinstance(image, list | tuple) else [image]
        photographs = [as_picture(picture) for picture in pictures]
        images = [_reduced(photograph, max_size) for photograph in photographs]
        results: dict[int, Segmentation] = {}
        for numbers in self._batches(images):
            together = [images[number] for number in numbers]
            solved = self._eigenvectors(together, K, color_lambda, which_color_matrix, color_grid)
            for number, features, eigenvalues, eigenvectors in zip(numbers, *solved, strict=True):
                grid = eigenvectors.shape[1:]
                small, soft = images[number], None
                if foreground == "eigenvector":
                    mask = self._at_pixels(small, eigenvectors[1] > 0, 2, sharpening)
                else:
                    colours = features if self.backbone.name == LAB_GRAPH else None
                    soft = object_map(foreground, grid, eigenvalues, eigenvectors.reshape(K, -1), colours)
                    mask = self._sharp_map(small, soft, sharpening)
                points = eigenvectors[1 : 1 + self.preset.num_eigenvectors].reshape(-1, grid[0] * grid[1]).T
                coarse = background_first(kmeans_segments(points, num_segments, seed).reshape(grid))
                segments = self._at_pixels(small, coarse, num_segments, sharpening)
                photograph = photographs[number]
                if small.size != photograph.size:
                    mask = enlarge_mask(mask > 0, photograph.size)
                    segments = stretch_labels(segments, photograph.height, photograph.width)
                mask = mask.astype(bool)
                fields = (self.backbone.patch_size, mask, segments, object_box(mask), photograph, soft)
                results[number] = Segmentation(eigenvalues, eigenvectors, *fields)
        ordered = [results[number] for number in range(len(photographs))]
        return ordered if pictures is image else ordered[0]

    def objects(
        self,
        image: Picture,
        method: str = "maskcut",
        max_objects: int = 3,
        tau: float = 0.15,
        min_separation: float = MIN_SEPARATION,
        crf: bool = True,
        crf_backend: str = "auto",
        max_size: int | None = None,
    ) -> list[FoundObject]:
        """Several objects of a picture, best score first; none where nothing stands out.

        ``method`` to ``crf_backend`` as of ``extract.py extract_objects``, ``image`` and ``max_size`` as of a call.

        Raises
        ------
        spectralseg.errors.InputError
            No picture; an unknown name or a number out of its range; the image is smaller than a patch.
        """
        check_range("max_size", max_size, least=1)
        settings = replace(MASKCUT_CRF, crf_backend=crf_backend).resolved(self.device) if crf else None
        photograph = as_picture(image)
        small = _reduced(photograph, MAX_SIZE.get(self.backbone.name) if max_size is None else max_size)
        step = self.backbone.patch_size
        features = self.extractor(to_tensor(small)[None].to(self.device))["k"].float()
        if self.backbone.name == LAB_GRAPH:
            features = colour_features(features)
        (parts,) = find_parts(features, patch_grid(small.height, small.width, step), method, max_objects, tau)
        parts = [part for part in parts if part.separation >= min_separation]
        found = objects_at_pixels(parts, small, photograph.size, step, settings, self.device)
        return sorted(found, key=lambda each: -each.score)

    def _batches(self, images: list[Image.Image]) -> Iterator[list[int]]:
        """Numbers of images that go together: on a GPU those of one size, else one by one."""
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            by_size[image.size].append(number)
        for size, numbers in by_size.items():
            patches = max(1, size[0] * size[1] // self.backbone.patch_size**2)
            at_once = 1 if self.device.type == "cpu" else max(1, min(GPU_BATCH, GPU_BATCH_CELLS // patches**2))
            yield from (numbers[start : start + at_once] for start in range(0, len(numbers), at_once))

    def _eigenvectors(
        self, images: list[Image.Image], K: int, color_lambda: float, which_color_matrix: str, color_grid: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (B, T, D), eigenvalues (B, K), eigenvectors (B, K, rows, columns) of images of one size."""
        patch = self.backbone.patch_size
        grid = patch_grid(images[0].height, images[0].width, patch)
        features = self.extractor(torch.stack([to_tensor(image) for image in images]).to(self.device))["k"]
        colour = None
        if color_lambda > 0:
            covered = (grid[0] * patch, grid[1] * patch)
            colour = [colour_affinity(image, covered, grid, which_color_matrix, color_grid) for image in images]
        values, vectors = spectral_eigenvectors(
            features, K, self.preset.which_matrix, colour=colour, colour_lambda=color_lambda, grid=grid
        )
        return features.cpu().numpy(), values.cpu().numpy(), vectors.cpu().numpy().reshape(len(images), K, *grid)

    def _sharp_map(self, image: Image.Image, soft: np.ndarray, sharpening: CrfSettings | None) -> np.ndarray:
        full = upscale_labels(soft, image.height, image.width, self.backbone.patch_size)
        if sharpening is None:
            return full > 0.5
        chosen = replace(self.preset.crf, crf_backend=sharpening.crf_backend)
        return sharpen_soft(np.array(image), full, chosen, self.device)

    def _at_pixels(
        self, image: Image.Image, labels: np.ndarray, num_classes: int, crf: CrfSettings | None
    ) -> np.ndarray:
        full = upscale_labels(labels.astype(np.uint8), image.height, image.width, self.backbone.patch_size)
        return full if crf is None else dense_crf(np.array(image), full, max(2, num_classes), crf, self.device)


def _reduced(photograph: Image.Image, max_size: int | None) -> Image.Image:
    image = photograph.copy()
    if max_size is not None:
        reduce_to(image, max_size)
    return image


def object_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(xmin, ymin, xmax, ymax) of the largest component of a mask (H, W); None if the mask is empty."""
    component = largest_component(mask)
    return bounding_box(component) if component.any() else None


def objects_at_pixels(
    parts: Sequence[Part],
    picture: Image.Image,
    size: tuple[int, int],
    step: int,
    crf: CrfSettings | None,
    device: torch.device,
) -> list[FoundObject]:
    """Parts of the grid of patches of ``picture`` as objects at ``size`` (width, height), those MaskCut's rules keep.

    ``step``: pixels of the picture per patch.
    """
    masks = [upscale_labels(part.mask, picture.height, picture.width, step) for part in parts]
    sharp = masks if crf is None else sharpen_masks(np.array(picture), masks, crf, device)
    found = []
    for number in distinct(masks, sharp):
        mask = enlarge_mask(sharp[number], size)
        found.append(FoundObject(mask, bounding_box(mask), parts[number].score))
    return found
