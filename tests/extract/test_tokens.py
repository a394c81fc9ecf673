"""Reading features off a backbone: which blocks, which parts, in which precision, and nothing computed after them."""

import copy
import inspect

import pytest
import torch
from timm.layers import Attention
from torch.nn import functional

from spectralseg.errors import InputError
from spectralseg.models.backbones import Backbone, load_backbone
from spectralseg.models.tokens import TokenExtractor, _ChunkedAttention, cls_attention, dtype_named

DEPTH = 12


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("vit_tiny_patch16_224", "random")


@pytest.fixture
def backbone(tiny) -> Backbone:
    """One of the test's own, which may change it."""
    return copy.deepcopy(tiny)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 55, 70, generator=torch.Generator().manual_seed(0))  # 3 x 4 whole patches


def count_calls(backbone: Backbone) -> dict[str, int]:
    """Calls of each module by name, counted from now on."""
    calls: dict[str, int] = {}
    for name, module in backbone.model.named_modules():
        calls[name] = 0
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    return calls


# --- which block ---


@pytest.mark.parametrize("block", [-1, -3, 0, 5])
def test_nothing_is_computed_after_the_asked_block(block, backbone, images):
    calls = count_calls(backbone)
    TokenExtractor(backbone, (block,), ("q", "k", "v", "attn_cls"))(images)
    last = block % DEPTH
    for index in range(DEPTH):
        assert calls[f"blocks.{index}"] == (index < last)
        assert calls[f"blocks.{index}.attn"] == calls[f"blocks.{index}.mlp"] == (index < last)
        assert calls[f"blocks.{index}.norm1"] == (index <= last)  # what enters the asked attention
    assert calls["norm"] == calls["fc_norm"] == 0


def test_the_model_runs_to_its_end_for_cls(backbone, images):
    calls = count_calls(backbone)
    TokenExtractor(backbone, (-12, -2), ("k", "cls"))(images)
    assert all(calls[f"blocks.{index}.mlp"] == 1 for index in range(DEPTH))
    assert calls["norm"] == 1


def test_blocks_count_from_either_end(backbone, images):
    for block in (0, 4, 11):
        first, second = (TokenExtractor(backbone, (number,))(images)["k"] for number in (block, block - DEPTH))
        assert torch.equal(first, second)
    assert TokenExtractor(backbone, (11, 0, -1, 2)).blocks == [-12, -10, -1]


def test_several_blocks_are_named_and_the_deepest_keeps_the_plain_name(backbone, images):
    parts = ("k", "v", "attn_cls")
    together = TokenExtractor(backbone, (-1, -3, 9), parts)(images)
    assert together.keys() == {*parts, *(f"{part}_block_{block}" for part in "kv" for block in (-1, -3))}
    for block in (-1, -3):
        alone = TokenExtractor(backbone, (block,), parts)(images)
        assert alone.keys() == {*parts}
        for part in "kv":
            torch.testing.assert_close(together[f"{part}_block_{block}"], alone[part])
    assert torch.equal(together["k"], together["k_block_-1"])
    torch.testing.assert_close(together["attn_cls"], TokenExtractor(backbone, (-1,), parts)(images)["attn_cls"])
    assert not torch.allclose(together["k_block_-1"], together["k_block_-3"], atol=1e-2)


@pytest.mark.parametrize("blocks", [(12,), (-13,), (-1, 12), ()])
def test_blocks_that_are_not_there(blocks, backbone):
    with pytest.raises(InputError, match="in vit_tiny_patch16_224: it has 12 blocks, -12 to 11"):
        TokenExtractor(backbone, blocks)


@pytest.mark.parametrize("parts", [("keys",), ("k", "x"), ()])
def test_parts_that_are_not_there(parts, backbone):
    with pytest.raises(InputError, match="no feature '.*'; known are q, k, v, out, cls, attn_cls"):
        TokenExtractor(backbone, parts=parts)


def test_lab_hog_has_statistics_alone(images):
    backbone = load_backbone("lab_hog")
    assert TokenExtractor(backbone)(images)["k"].shape == (2, 12, 14)
    for options in ({"parts": ("q",)}, {"blocks": (-2,)}, {"parts": ("k", "attn_cls")}):
        with pytest.raises(InputError, match="lab_hog has no blocks, queries or values"):
            TokenExtractor(backbone, **options)


# --- outputs of blocks, position ---


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "dino_vits16", "dinov2_vits14_reg", "dinov3_vits16", "beit3_base_patch16_224"]
)
def test_out_is_what_the_model_gives_for_its_patches(name, images):
    backbone = load_backbone(name, "random")
    model, patch = backbone.model, backbone.patch_size
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (backbone.mean, backbone.std))
    cropped = images[..., : 55 // patch * patch, : 70 // patch * patch]
    found = TokenExtractor(backbone, (-2, -1), ("out", "k"))(images)
    with torch.no_grad():
        expected = model.forward_features((cropped - mean) / std)[:, model.num_prefix_tokens :]
        torch.testing.assert_close(found["out"], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(found["out"], found["out_block_-1"])
        model.blocks[-1] = torch.nn.Identity() if "dinov3" not in name else _NoBlock()
        expected = model.forward_features((cropped - mean) / std)[:, model.num_prefix_tokens :]
    torch.testing.assert_close(found["out_block_-2"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["k"], TokenExtractor(load_backbone(name, "random"))(images)["k"])


class _NoBlock(torch.nn.Module):
    def forward(self, tokens, **_):
        return tokens


def test_nothing_is_computed_after_the_output_of_the_asked_block(backbone, images):
    calls = count_calls(backbone)
    TokenExtractor(backbone, (-3,), ("out", "k"))(images)
    assert [calls[f"blocks.{index}.mlp"] for index in range(DEPTH)] == [1] * 10 + [0] * 2
    assert calls["norm"] == 1


def test_position_is_removed(backbone, images):
    """A plain image keeps nothing but its mean; what stays of another one is its features less those of position."""
    parts = ("k", "out", "cls")
    plain = torch.tensor(backbone.mean).view(1, 3, 1, 1).expand(1, 3, 55, 70).contiguous()
    extractor = TokenExtractor(backbone, parts=parts, debias="position")
    kept, given, moved = extractor(plain), TokenExtractor(backbone, parts=parts)(images), extractor(images)
    for part in ("k", "out"):
        torch.testing.assert_close(kept[part], kept[part].mean(dim=1, keepdim=True).expand_as(kept[part]))
        torch.testing.assert_close((given[part] - moved[part]).mean(dim=1), torch.zeros(2, 192), atol=1e-5, rtol=0)
        torch.testing.assert_close(*(given[part] - moved[part]))  # the same for both images
        assert not torch.allclose(given[part], moved[part], atol=1e-3)
    assert torch.equal(given["cls"], moved["cls"])
    with pytest.raises(InputError, match="no debias 'colour'"):
        TokenExtractor(backbone, debias="colour")
    with pytest.raises(InputError, match="knows no position"):
        TokenExtractor(load_backbone("lab_hog"), debias="position")


# --- [CLS] ---


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "dinov3_vits16", "dinov2_vits14_reg", "beit3_base_patch16_224"]
)
def test_cls_is_the_first_token_after_the_final_norm(name, images):
    """Also where timm's own output is the mean of the patches (DINOv3), or normalises after pooling (BEiT-3)."""
    backbone = load_backbone(name, "random")
    model, last = backbone.model, []
    for norm in (model.norm, model.fc_norm):
        if not isinstance(norm, torch.nn.Identity):
            norm.weight += 0.1 * torch.arange(len(norm.weight)) / len(norm.weight)
    handle = model.blocks[-1].register_forward_hook(lambda _, __, output: last.append(output))
    cls = TokenExtractor(backbone, parts=("cls",))(images)["cls"]
    handle.remove()
    assert cls.shape == (2, model.embed_dim)
    final = model.fc_norm if isinstance(model.norm, torch.nn.Identity) else model.norm
    torch.testing.assert_close(
        cls, functional.layer_norm(last[0][:, 0], (model.embed_dim,), final.weight, final.bias, final.eps)
    )


def test_models_without_cls_say_so():
    backbone = load_backbone("test_vit2", "random")
    assert backbone.model.cls_token is None
    with pytest.raises(InputError, match="test_vit2 has no \\[CLS\\] token"):
        TokenExtractor(backbone, parts=("cls",))
    with pytest.raises(InputError, match="attn_cls is defined for ViTs with \\[CLS\\] and plain attention"):
        TokenExtractor(backbone, parts=("attn_cls",))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "dinov2_vits14_reg"])
def test_attention_of_cls_by_its_definition(name, images):
    """softmax(q k' / sqrt(d)) of the first token over all tokens; the share of the prefix tokens is left out."""
    backbone = load_backbone(name, "random")
    prefix, heads = backbone.model.num_prefix_tokens, backbone.model.blocks[-1].attn.num_heads
    entered = []
    handle = backbone.model.blocks[-1].attn.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    attention = TokenExtractor(backbone, parts=("attn_cls",))(images)["attn_cls"]
    handle.remove()
    qkv = backbone.model.blocks[-1].attn.qkv(entered[0])
    dimension = backbone.model.embed_dim
    for image in range(2):
        for head in range(heads):
            columns = slice(head * dimension // heads, (head + 1) * dimension // heads)
            query = qkv[image, 0, :dimension][columns]
            keys = qkv[image, :, dimension : 2 * dimension][:, columns]
            scores = keys @ query / (dimension / heads) ** 0.5
            weights = scores.exp() / scores.exp().sum()
            torch.testing.assert_close(attention[image, head], weights[prefix:], atol=1e-6, rtol=1e-4)
    patches = (55 // backbone.patch_size) * (70 // backbone.patch_size)
    assert attention.shape == (2, heads, patches)
    assert (attention.sum(dim=-1) < 1).all()
    whole = cls_attention(backbone.model.blocks[-1].attn, entered[0])
    torch.testing.assert_close(whole.sum(dim=-1), torch.ones(2, heads))


def test_attention_of_cls_is_not_defined_with_rotary_embeddings():
    with pytest.raises(InputError, match="plain attention, which dinov3_vits16 has not"):
        TokenExtractor(load_backbone("dinov3_vits16", "random"), parts=("attn_cls",))


# --- what it leaves behind, and what batches do ---


def test_it_leaves_no_hooks_and_no_gradients(backbone, images):
    backbone.model.requires_grad_(True)
    for parts in (("k",), ("k", "cls", "attn_cls")):
        features = TokenExtractor(backbone, (-2, -1), parts)(images)
        assert not any(value.requires_grad for value in features.values())
    with pytest.raises(InputError):
        TokenExtractor(backbone)(images[..., :10])
    backbone.model.blocks[3].mlp.fc1 = torch.nn.Linear(3, 3)  # a forward pass that fails
    with pytest.raises(RuntimeError):
        TokenExtractor(backbone)(images)
    for module in backbone.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images_of_a_batch_do_not_see_each_other(dtype, backbone, images):
    parts = ("q", "k", "v", "cls", "attn_cls")
    together = TokenExtractor(backbone, parts=parts, dtype=dtype)(images)
    for index in range(2):
        alone = TokenExtractor(backbone, parts=parts, dtype=dtype)(images[index : index + 1])
        for part in parts:
            error = (together[part][index] - alone[part][0]).float().norm() / alone[part].float().norm()
            assert error < (1e-5 if dtype == "float32" else 1e-2)


def test_pixels_beyond_the_whole_patches_do_not_matter(backbone, images):
    changed = images.clone()
    changed[..., 48:, :], changed[..., :, 64:] = 0, 1
    assert torch.equal(TokenExtractor(backbone)(changed)["k"], TokenExtractor(backbone)(images)["k"])


# --- reduced precision ---


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("test_vit", "bfloat16"), ("test_vit", "float16"), ("dinov3_vits16", "bfloat16")],
)
def test_reduced_precision_is_close(name, dtype, images):
    backbone = load_backbone(name, "random")
    parts = ("k", "cls") if name == "dinov3_vits16" else ("k", "cls", "attn_cls")
    exact = TokenExtractor(backbone, parts=parts)(images)
    reduced = TokenExtractor(backbone, parts=parts, dtype=dtype)(images)
    assert reduced["k"].dtype == dtype_named(dtype)
    for part in parts:
        error = float((reduced[part].float() - exact[part]).norm() / exact[part].norm())
        assert 0 < error < 2e-2
    again = TokenExtractor(backbone, parts=parts)(images)  # the same backbone still computes in float32
    assert all(torch.equal(again[part], exact[part]) for part in parts)


@pytest.mark.parametrize("count", [13, 512, 700])  # less than a chunk, one, and two
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_in_chunks_is_the_fused_one(count, batch):
    torch.manual_seed(0)
    attention = Attention(48, num_heads=3, qkv_bias=True).eval()
    with torch.no_grad():
        attention.qkv.weight *= 3  # so that the softmax is far from uniform
        tokens = torch.randn(batch, count, 48)
        exact = attention(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            chunked, fused = _ChunkedAttention(attention)(tokens), attention(tokens)
        # outside of autocast it is the fused attention itself
        assert torch.equal(_ChunkedAttention(attention)(tokens), exact)
    assert chunked.dtype == fused.dtype == torch.bfloat16
    errors = [float((value.float() - exact).norm() / exact.norm()) for value in (chunked, fused)]
    assert errors[0] < 2e-2
    assert errors[0] < 2 * errors[1]


@pytest.mark.parametrize("extra", ["qk_norm", "scale_norm", "gated"])
def test_attention_with_more_to_it_is_not_replaced(extra, backbone, images):
    """Chunks would leave out the norm of queries and keys, that of the output, and its gate."""
    if extra not in inspect.signature(Attention).parameters:
        pytest.skip(f"this timm has no attention with {extra}")
    torch.manual_seed(0)
    for block in backbone.model.blocks:
        options = {extra: True, "norm_layer": None if extra == "gated" else torch.nn.LayerNorm}
        block.attn = Attention(192, num_heads=3, qkv_bias=True, **options).eval()
    backbone.model.requires_grad_(False)
    exact = TokenExtractor(backbone)(images)["k"]
    reduced = TokenExtractor(backbone, dtype="bfloat16")(images)["k"].float()
    assert (reduced - exact).norm() < 2e-2 * exact.norm()


def test_unknown_dtypes(backbone):
    with pytest.raises(InputError, match="no dtype 'float8'; known are float32, bfloat16, float16"):
        TokenExtractor(backbone, dtype="float8")
