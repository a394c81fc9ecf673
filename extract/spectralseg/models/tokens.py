"""Keys, queries, values and outputs of a ViT's blocks, [CLS] and its attention, and nothing computed after them."""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectralseg.errors import InputError, check_choice
from spectralseg.files.images import crop_to_patches
from spectralseg.models.backbones import Backbone, Vit

PARTS = ("q", "k", "v", "out", "cls", "attn_cls")
PER_PATCH = ("q", "k", "v", "out")
DEBIAS = ("position",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16`` to the torch type."""
    check_choice("dtype", name, DTYPES)
    return DTYPES[name]


class TokenExtractor:
    """Reads features off a backbone.

    Parameters
    ----------
    backbone
        From :func:`spectralseg.models.backbones.load_backbone`.
    blocks
        Blocks to read, counted from 0 or from the end (-1 is the last). With several, each feature is named after its
        block as well (``k_block_-2``), and the plain name is the deepest one's.
    parts
        Any of ``k``, ``q``, ``v`` (keys, queries, values of each block's patches), ``out`` (each block's output for the
        patches, after the model's final norm), ``cls`` (the model's output for [CLS], after the final norm),
        ``attn_cls`` (attention of [CLS] to the patches in the deepest block).
    dtype
        ``float32``, or ``bfloat16`` / ``float16`` for autocast.
    debias
        ``position``: subtract from the features of each patch what the backbone gives there for an image of its mean
        colour, less the mean of that over the patches. Nothing but the position tells these patches apart.

    Raises
    ------
    InputError
        A block or part that the backbone does not have, or no such ``debias``.
    """

    def __init__(
        self,
        backbone: Backbone,
        blocks: Sequence[int] = (-1,),
        parts: Sequence[str] = ("k",),
        dtype: str = "float32",
        debias: str | None = None,
    ) -> None:
        self.backbone, self.parts, self.debias = backbone, tuple(parts), debias
        if debias is not None:
            check_choice("debias", debias, DEBIAS)
        self._positional = functools.lru_cache(maxsize=8)(self._features_of_position)
        self.dtype = dtype_named(dtype)
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise InputError(f"no feature '{', '.join(unknown)}'; known are {', '.join(PARTS)}")
        if not backbone.is_vit:
            summarises = hasattr(backbone.model, "summary")
            if not set(self.parts) <= {"k", *(["cls"] if summarises else [])} or tuple(blocks) != (-1,):
                has = "'k' and, per image, 'cls'" if summarises else "'k', the colours of cells, alone"
                raise InputError(f"{backbone.name} has no blocks, queries or values: it has {has}")
            if debias:
                raise InputError(f"{backbone.name} knows no position that --debias could remove")
            self.blocks: list[int] = []
            return
        depth = len(backbone.model.blocks)
        outside = [block for block in blocks if not -depth <= block < depth]
        if outside or not blocks:
            raise InputError(f"no block {outside} in {backbone.name}: it has {depth} blocks, -{depth} to {depth - 1}")
        self.blocks = sorted({block if block < 0 else block - depth for block in blocks})
        if self.dtype != torch.float32:
            _attend_in_chunks_on_cpu(backbone.model)
        if "cls" in parts and backbone.model.cls_token is None:
            raise InputError(f"{backbone.name} has no [CLS] token")
        if "attn_cls" in parts:
            _check_plain_attention(backbone)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of a batch of images of one size.

        Parameters
        ----------
        images
            (B, 3, H, W) RGB in [0, 1], float32, on the backbone's device. Cropped at the right and bottom to whole
            patches.

        Returns
        -------
        dict
            Keys, queries, values, outputs (B, T, D), T row-major patches without prefix tokens; ``cls`` (B, D);
            ``attn_cls`` (B, heads, T), each head's attention over all tokens with the prefix tokens' share left out.
        """
        images = crop_to_patches(images, self.backbone.patch_size)
        if not self.backbone.is_vit:
            model = self.backbone.model
            return {part: model(images) if part == "k" else model.summary(images) for part in self.parts}
        mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (self.backbone.mean, self.backbone.std))
        features = self._features((images - mean) / std)
        if self.debias:
            positional = self._positional(images.shape[-2], images.shape[-1], images.device)
            features = {name: values - positional.get(name, 0) for name, values in features.items()}
        return features

    def _features_of_position(self, height: int, width: int, device: torch.device) -> dict[str, Tensor]:
        """Name -> (1, T, D): what the mean colour, 0 after the normalisation, gives at each patch, less its mean."""
        plain = self._features(torch.zeros(1, 3, height, width, device=device))
        named = {name: values for name, values in plain.items() if name.split("_")[0] in PER_PATCH}
        return {name: values - values.mean(dim=1, keepdim=True) for name, values in named.items()}

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalised images."""
        model, prefix = self.backbone.model, self.backbone.model.num_prefix_tokens
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            inputs, outputs, final = self._run(images)
            features: dict[str, Tensor] = {}
            for block in self.blocks:
                attention = model.blocks[block].attn
                for part in (part for part in self.parts if part in PER_PATCH):
                    if part == "out":
                        tokens = model.norm(outputs[block])[:, prefix:]
                    else:
                        tokens = project(attention, inputs[block][:, prefix:], part)
                    if len(self.blocks) > 1:
                        features[f"{part}_block_{block}"] = tokens
                    features[part] = tokens  # the deepest block comes last and keeps the plain name
            if "attn_cls" in self.parts:
                features["attn_cls"] = cls_attention(attention, inputs[self.blocks[-1]])[..., prefix:]
            if final is not None:
                features["cls"] = model.fc_norm(final[:, 0])
        return features

    def _run(self, images: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor | None]:
        """Normalised inputs of the asked blocks' attention and, for ``out``, the blocks' outputs: (B, tokens, D) each.

        And the model's output, if [CLS] is asked for; else the forward pass ends with the deepest of them.
        """
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}
        last = None if "cls" in self.parts else self.blocks[-1]
        with _watch(self.backbone.model, self.blocks, inputs, outputs if "out" in self.parts else None, last):
            return inputs, outputs, self.backbone.model.forward_features(images)
        return inputs, outputs, None  # the watch stopped the forward pass


class _Stop(Exception):
    pass


@contextlib.contextmanager
def _watch(
    model: Vit,
    blocks: Sequence[int],
    inputs: dict[int, Tensor],
    outputs: dict[int, Tensor] | None,
    stop_at: int | None,
) -> Iterator[None]:
    """Note what enters the attention of ``blocks`` in ``inputs``, and what they give in ``outputs`` where there is one.

    The forward pass ends in block ``stop_at``, at what is noted last there. The watch sits before the attention and not
    on its ``qkv`` layer: some models use that layer's weight without calling it (timm's DINOv3 with ``qkvb``).
    """

    def note(seen: dict[int, Tensor], block: int, tokens: Tensor) -> None:
        seen[block] = tokens
        if block == stop_at and (outputs is None or seen is outputs):
            raise _Stop

    hooks = [
        model.blocks[block].attn.register_forward_pre_hook(lambda _, args, block=block: note(inputs, block, args[0]))
        for block in blocks
    ]
    if outputs is not None:
        kept = outputs
        hooks += [
            model.blocks[block].register_forward_hook(lambda _, __, tokens, block=block: note(kept, block, tokens))
            for block in blocks
        ]
    try:
        yield
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def project(attention: Vit, tokens: Tensor, part: str) -> Tensor:
    """Queries, keys or values (``part`` q, k or v) of tokens (..., D), heads joined, by the attention's own weights."""
    separate = getattr(attention, f"{part}_proj", None)
    if separate is not None:
        return separate(tokens)
    index = "qkv".index(part)
    weight = attention.qkv.weight.chunk(3)[index]
    if getattr(attention, "q_bias", None) is not None:  # timm's Eva keeps three biases beside a bias-free qkv
        bias = (attention.q_bias, attention.k_bias, attention.v_bias)[index]
    else:
        bias = None if attention.qkv.bias is None else attention.qkv.bias.chunk(3)[index]
    return functional.linear(tokens, weight, bias)


def _check_plain_attention(backbone: Backbone) -> None:
    attention = backbone.model.blocks[-1].attn
    plain = all(isinstance(getattr(attention, name, None), nn.Identity) for name in ("q_norm", "k_norm"))
    if not plain or getattr(backbone.model, "rope", None) is not None or backbone.model.cls_token is None:
        raise InputError(f"attn_cls is defined for ViTs with [CLS] and plain attention, which {backbone.name} has not")


def cls_attention(attention: Vit, tokens: Tensor) -> Tensor:
    """Attention of the first token to all: (B, tokens, D) -> (B, heads, tokens), rows sum to 1."""
    heads = attention.num_heads
    query = project(attention, tokens[:, :1], "q").unflatten(-1, (heads, -1)).transpose(1, 2)
    keys = project(attention, tokens, "k").unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = (query.float() * attention.scale) @ keys.float().mT
    return scores.softmax(dim=-1).squeeze(2)


class _ChunkedAttention(nn.Module):
    """Attention in reduced precision on a CPU, 512 queries at a time.

    There torch's fused attention gains nothing from bfloat16 (it computes in float32), while its matrix product does:
    with chunks that stay in the cache this is 1.5 times faster at 2853 tokens.
    """

    CHUNK = 512

    def __init__(self, attention: Vit) -> None:
        super().__init__()
        self.fused, self.qkv, self.proj = attention, attention.qkv, attention.proj
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm

    def forward(self, tokens: Tensor, *args: object, **kwargs: object) -> Tensor:
        """(B, tokens, D) -> (B, tokens, D)."""
        if tokens.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self.fused(tokens, *args, **kwargs)
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.flatten(1, 2).unbind(0)
        queries, keys = (queries * self.scale).contiguous(), keys.contiguous().mT
        output = torch.empty_like(queries)
        for head in range(batch * self.num_heads):
            for start in range(0, count, self.CHUNK):
                rows = slice(start, start + self.CHUNK)
                weights = (queries[head, rows] @ keys[head]).softmax(dim=-1)
                output[head, rows] = weights @ values[head]
        return self.proj(output.view(batch, self.num_heads, count, -1).transpose(1, 2).reshape(batch, count, width))


def _attend_in_chunks_on_cpu(model: Vit) -> None:
    from timm.layers import Attention

    for block in model.blocks:
        attention = block.attn
        plain = type(attention) is Attention and isinstance(attention.q_norm, nn.Identity)
        if plain and isinstance(attention.norm, nn.Identity) and getattr(attention, "gate", None) is None:
            block.attn = _ChunkedAttention(attention)
