"""What detectors read of an image, computed on the spot by a backbone.

Apart from :mod:`objectloc.patch_sources`, because importing timm and torchvision takes longer than finding boxes
in many files.
"""

import functools

from PIL import Image
from torch import Tensor

from objectloc.convnets import Convnet, load_convnet
from objectloc.options import ARCHITECTURES, CONVNETS, DetectorOptions
from objectloc.patch_sources import Patches, require_eigenseg
from spectralseg.errors import InputError
from spectralseg.files.images import patch_grid, reduce_to, to_tensor
from spectralseg.models.backbones import LAB_GRAPH, MAX_SIZE, Backbone, load_backbone
from spectralseg.models.tokens import TokenExtractor
from spectralseg.running.devices import keep_freed_memory, pick_device

VITS = {
    ("vit_small", 16): "dino_vits16",
    ("vit_small", 8): "dino_vits8_300ep",  # not dino_vits8: the published experiments used these weights
    ("vit_base", 16): "dino_vitb16",
    ("vit_base", 8): "dino_vitb8",
    ("vit_tiny", 16): "vit_tiny_patch16_224",
}


class Model:
    """A backbone on its device, and how an image gets into it."""

    backbone: Backbone | Convnet
    extractor: TokenExtractor  # of a Backbone alone

    def __init__(self, options: DetectorOptions) -> None:
        self.device = pick_device(options.device)
        if options.arch in CONVNETS:
            if options.mode != "lost":
                raise InputError(f"--arch {options.arch} is for LOST alone; the other modes need a ViT")
            self.backbone = load_convnet(options.arch, options.weights, options.resnet_dilate, self.device)
            self.patch_size, self.pads, self.part = options.patch_size, True, "k"
            return
        self.backbone = load_backbone(backbone_name(options), options.weights, self.device)
        if self.backbone.name == LAB_GRAPH:
            require_eigenseg(options.mode)
        self.part = "attn_cls" if options.mode == "dinoseg" else options.which_features
        self.extractor = TokenExtractor(self.backbone, parts=(self.part,))
        self.patch_size = self.backbone.patch_size
        # eigenseg sees what extract_features sees: the image cropped to whole patches. So do patch statistics, to which
        # padding would be content.
        self.pads = options.mode != "eigenseg" and self.backbone.is_vit


@functools.lru_cache(maxsize=1)
def load_model(options: DetectorOptions) -> Model:
    """The backbone of these options, loaded once per process."""
    keep_freed_memory()
    return Model(options)


def backbone_name(options: DetectorOptions) -> str:
    """The library's name for ``--arch`` and ``--patch_size``; other names than the published ones mean themselves."""
    arch, patch_size = options.arch, options.patch_size
    if arch not in ARCHITECTURES:
        return arch
    if (arch, patch_size) not in VITS:
        known = [size for name, size in VITS if name == arch]
        raise InputError(f"no {arch} with patches of {patch_size} pixels: --patch_size {' or '.join(map(str, known))}")
    if arch == "vit_tiny" and options.weights is None:
        raise InputError(
            "DINO published no weights of vit_tiny: pass a checkpoint with --weights, or a backbone by its name in "
            "timm (--arch vit_tiny_patch16_224)"
        )
    return VITS[arch, patch_size]


def compute_patches(image: Image.Image, model: Model) -> Patches:
    """Features or attention of an image, padded at the right and bottom to whole patches (for eigenseg: cropped)."""
    are_colours = model.backbone.name == LAB_GRAPH
    if are_colours:
        image = image.copy()
        reduce_to(image, MAX_SIZE[LAB_GRAPH])
    view = (image.height, image.width)
    pixels = to_tensor(image).to(model.device)
    if model.pads:
        pixels = pad_to_patches(pixels, model.patch_size, model.backbone.mean)
    if isinstance(model.backbone, Convnet):
        values, grid = model.backbone(pixels[None])
        return Patches(values, grid, (pixels.shape[1] / grid[0], pixels.shape[2] / grid[1]), view)
    values = model.extractor(pixels[None])[model.part][0]
    grid = patch_grid(pixels.shape[1], pixels.shape[2], model.patch_size)
    return Patches(values, grid, (model.patch_size, model.patch_size), view, are_colours)


def pad_to_patches(pixels: Tensor, patch_size: int, mean: tuple[float, float, float]) -> Tensor:
    """Pad (3, H, W) at the right and bottom to multiples of ``patch_size``, with what normalisation makes zero."""
    _, height, width = pixels.shape
    padded = pixels.new_tensor(mean).view(3, 1, 1).repeat(1, height + -height % patch_size, width + -width % patch_size)
    padded[:, :height, :width] = pixels
    return padded
