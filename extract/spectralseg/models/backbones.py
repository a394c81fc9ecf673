"""Names of backbones -> models with their weights.

Models are timm's. Weights come from a local file, the published address, or timm's hub copy, in this order.
"""

import contextlib
import io
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from spectralseg.errors import InputError, did_you_mean
from spectralseg.files.storage import LAB_GRAPH
from spectralseg.models import weights as checkpoints
from spectralseg.models.lab_graph import LabGraph
from spectralseg.models.lab_hog import LabHog
from spectralseg.progress import detail, phase, say

DINO_ADDRESS = "https://dl.fbaipublicfiles.com/dino/"
Vit: TypeAlias = Any  # a network of timm: to mypy, what lies in a module is a tensor or a module

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANDOM_SEED = 0
RANDOM_ORIGIN = f"random (seed {RANDOM_SEED})"
HEADS = ("head.", "mask_token")  # of a checkpoint: classifier, projection, what pretraining alone needs


class WeightsOutOfReach(InputError):
    """The published weights of a backbone are not here and cannot be downloaded."""


@dataclass(frozen=True)
class Source:
    """Where a named backbone comes from.

    ``timm_name`` builds it; ``published`` is the file below DINO_ADDRESS, if any; ``on_hub``: timm's hub has the same
    weights.
    """

    timm_name: str
    published: str | None = None
    on_hub: bool = True


SOURCES = {
    "dino_vits16": Source("vit_small_patch16_224.dino", "dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"),
    "dino_vits8": Source("vit_small_patch8_224.dino", "dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth"),
    "dino_vits8_300ep": Source(
        "vit_small_patch8_224.dino", "dino_deitsmall8_300ep_pretrain/dino_deitsmall8_300ep_pretrain.pth", on_hub=False
    ),
    "dino_vitb16": Source("vit_base_patch16_224.dino", "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"),
    "dino_vitb8": Source("vit_base_patch8_224.dino", "dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth"),
    **{
        f"dinov2_vit{letter}14{suffix}": Source(f"vit_{size}_patch14{registers}_dinov2.lvd142m")
        for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
        for suffix, registers in (("", ""), ("_reg", "_reg4"))
    },
    **{
        f"dinov3_vit{letter}16": Source(f"vit_{size}_patch16_dinov3.lvd1689m")
        for letter, size in (
            ("s", "small"),
            ("splus", "small_plus"),
            ("b", "base"),
            ("l", "large"),
            ("hplus", "huge_plus"),
        )
    },
}
STATISTICS = {"lab_hog": (LabHog, 16), "lab_hog8": (LabHog, 8), LAB_GRAPH: (LabGraph, 10)}  # of patches, and their side
MAX_SIZE = {LAB_GRAPH: 400}  # longer side that images are reduced to, so that an image has about 40 x 30 cells
AUTO, DEFAULT = "auto", "dino_vits16"


@dataclass(frozen=True)
class Backbone:
    """A frozen model in evaluation mode, and what is needed to feed it.

    Attributes
    ----------
    name
        The name it was asked for by.
    model
        A timm ViT, or one of ``STATISTICS``.
    patch_size
        Side of a patch in pixels.
    mean, std
        RGB normalisation of images in [0, 1].
    weights
        Where the weights came from, in words that are the same on every machine.
    """

    name: str
    model: Vit
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str

    @property
    def is_vit(self) -> bool:
        """False for patch statistics, which have neither blocks nor heads."""
        return not isinstance(self.model, LabHog | LabGraph)


@phase("loading the backbone")
def load_backbone(name: str, weights: str | None = None, device: str | torch.device = "cpu") -> Backbone:
    """Build a backbone and load its weights.

    Parameters
    ----------
    name
        A key of ``SOURCES`` or ``STATISTICS``, or any plain ViT by its timm name; ``auto``: ``dino_vits16``, or
        ``lab_graph`` where its weights cannot be had, as is then said.
    weights
        Path or address (http(s)://, file://) of a checkpoint, or ``random`` (fixed seed); None: the published weights.
    device
        Where the model goes.

    Raises
    ------
    InputError
        Unknown name, no plain ViT, or weights that are absent, unreachable or do not fit.
    """
    if name == AUTO:
        try:
            return load_backbone(DEFAULT, weights, device)
        except WeightsOutOfReach as error:
            say(f"{error}; going on with {LAB_GRAPH}, which needs none")
            return load_backbone(LAB_GRAPH, device=device)
    detail(f"{name} on {device}, {torch.get_num_threads()} threads", once=True)
    if name in STATISTICS:
        if weights is not None:
            raise InputError(f"{name} has no weights; leave them out")
        kind, patch_size = STATISTICS[name]
        return Backbone(name, kind(patch_size).to(device), patch_size, (0, 0, 0), (1, 1, 1), "none")
    source = SOURCES.get(name) or _timm_source(name)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model = _build(source.timm_name)
        origin = RANDOM_ORIGIN
    elif weights is not None:
        model = _build(source.timm_name)
        origin = _load_file(model, checkpoints.local_file(weights))
    else:
        model, origin = _load_published(name, source)
    if name.startswith("dino_"):
        model._pos_embed = types.MethodType(_embed_positions_dino, model)
    patch_height, patch_width = model.patch_embed.patch_size
    if patch_height != patch_width:
        raise InputError(f"{name} has patches of {patch_height}x{patch_width} pixels; only square ones are supported")
    config = model.pretrained_cfg
    mean, std = tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))
    return Backbone(name, model.to(device).eval().requires_grad_(False), patch_height, mean, std, origin)


def _timm_source(name: str) -> Source:
    import timm  # here, because it takes seconds, which lab_graph and lab_hog do without

    if not timm.is_model(name):
        known = [*SOURCES, *STATISTICS]
        raise InputError(
            f"no backbone '{name}'{did_you_mean(name, known)}; known are {', '.join(known)}, and every plain ViT of "
            "timm by its timm name"
        )
    return Source(name)


def _build(timm_name: str, pretrained: bool = False) -> Vit:
    import timm
    from timm.layers import PatchEmbed

    try:
        model = timm.create_model(timm_name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    except TypeError:  # dynamic_img_size is what every plain ViT of timm understands
        model = None
    patches = isinstance(getattr(model, "patch_embed", None), PatchEmbed)  # hybrids have a CNN in its place
    blocks = getattr(model, "blocks", None) or ()
    if not patches or not blocks or not all(hasattr(getattr(block, "attn", None), "num_heads") for block in blocks):
        raise InputError(f"timm's '{timm_name}' is not a plain ViT: patches, then blocks of queries, keys and values")
    return model


def _load_file(model: Vit, path: Path) -> str:
    tensors = checkpoints.read_checkpoint(path)
    expected = model.state_dict()
    if not expected.keys() <= tensors.keys():  # another layout of the same model: timm knows those of its families
        with _naming(path):
            tensors = _timm_layout(model, tensors)
    checkpoints.load_into(model, tensors, path, leave_out=HEADS)
    return checkpoints.fingerprint(path)


def _timm_layout(model: Vit, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from timm.models import eva, vision_transformer

    family = eva if isinstance(model, eva.Eva) else vision_transformer
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each bias that DINOv3 has masked
        return family.checkpoint_filter_fn(tensors, model)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever timm's converters raise on a foreign checkpoint into one line that names the file."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{path} does not fit this model ({type(error).__name__}: {error})") from error


def _load_published(name: str, source: Source) -> tuple[Vit, str]:
    reasons = []
    if source.published is not None:
        address = DINO_ADDRESS + source.published
        try:
            path = checkpoints.download(address)
        except InputError as error:
            reasons.append(str(error))
        else:
            model = _build(source.timm_name)
            return model, _load_file(model, path)
    if source.on_hub:
        try:
            with checkpoints.hub_without_retries():
                return _build(source.timm_name, pretrained=True), f"timm hub {source.timm_name}"
        except InputError:
            raise
        except Exception as error:  # huggingface_hub's and httpx's many types: no network, gated, not found
            reasons.append(f"timm hub {source.timm_name}: {type(error).__name__}")
    raise WeightsOutOfReach(
        f"the weights of {name} cannot be had ({'; '.join(reasons)}); download them elsewhere and put the file into "
        f"{checkpoints.downloads_folder()}, or give its path as the weights"
    )


def _embed_positions_dino(model: Vit, patches: Tensor) -> Tensor:
    """Stand-in for timm's ``_pos_embed``: [CLS] and position embeddings as DINO v1 adds them.

    ``patches`` (B, rows, columns, D) -> tokens (B, 1 + rows * columns, D).
    """
    batch, rows, columns, _ = patches.shape
    positions = resize_dino_positions(model.pos_embed, rows, columns)
    tokens = torch.cat([model.cls_token.expand(batch, -1, -1), patches.flatten(1, 2)], dim=1)
    return tokens + positions


def resize_dino_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Resize DINO v1's position embeddings to a grid of patches.

    (1, 1 + G * G, D) -> (1, 1 + rows * columns, D). As in the published code: bicubic without antialiasing, and
    sampled by the factor (rows + 0.1) / G itself rather than by the ratio of sizes. (timm resizes to the size with
    antialiasing, which moves features by several percent.) A grid of G x G patches is left alone.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if rows == columns == side:
        return positions
    on_grid = positions[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    factor = ((rows + 0.1) / side, (columns + 0.1) / side)
    resized = functional.interpolate(on_grid, scale_factor=factor, mode="bicubic")
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
