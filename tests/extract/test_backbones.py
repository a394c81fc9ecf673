"""Backbones by name: what is built, its position embeddings, and which tokens are read off it."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch.nn import functional

from spectralseg.errors import InputError
from spectralseg.models.backbones import SOURCES, STATISTICS, Backbone, load_backbone, resize_dino_positions
from spectralseg.models.tokens import TokenExtractor

BUILT = {  # name: patch size, width, blocks, prefix tokens
    "dino_vits16": (16, 384, 12, 1),
    "dino_vits8": (8, 384, 12, 1),
    "dino_vits8_300ep": (8, 384, 12, 1),
    "dino_vitb16": (16, 768, 12, 1),
    "dino_vitb8": (8, 768, 12, 1),
    "dinov2_vits14": (14, 384, 12, 1),
    "dinov2_vits14_reg": (14, 384, 12, 5),
    "dinov2_vitb14": (14, 768, 12, 1),
    "dinov2_vitb14_reg": (14, 768, 12, 5),
    "dinov2_vitl14": (14, 1024, 24, 1),
    "dinov2_vitl14_reg": (14, 1024, 24, 5),
    "dinov2_vitg14": (14, 1536, 40, 1),
    "dinov2_vitg14_reg": (14, 1536, 40, 5),
    "dinov3_vits16": (16, 384, 12, 5),
    "dinov3_vitsplus16": (16, 384, 12, 5),
    "dinov3_vitb16": (16, 768, 12, 5),
    "dinov3_vitl16": (16, 1024, 24, 5),
    "dinov3_vithplus16": (16, 1280, 32, 5),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def photo(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def with_noisy_weights(name: str) -> Backbone:
    """Random weights with no zero among them: timm starts biases at zero, which would hide that one is left out."""
    backbone = load_backbone(name, "random")
    for index, parameter in enumerate(backbone.model.parameters()):
        parameter.add_(0.02 * noise(*parameter.shape, seed=index))
    return backbone


# --- names ---


def test_every_name_is_tested():
    assert BUILT.keys() == SOURCES.keys()


@pytest.mark.parametrize("name", BUILT)
def test_every_name_builds(name):
    with torch.device("meta"):  # without numbers, so that the largest is built in no time
        backbone = load_backbone(name, "random", device="meta")
    model = backbone.model
    assert (backbone.patch_size, model.embed_dim, len(model.blocks), model.num_prefix_tokens) == BUILT[name]
    assert (backbone.mean, backbone.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert backbone.is_vit


def test_weights_on_timms_hub_are_those_of_the_name():
    """The name has a pretrained variant in timm, unless there is none on the hub."""
    for name, source in SOURCES.items():
        assert timm.models.is_model_pretrained(source.timm_name), name
        assert source.on_hub == (name != "dino_vits8_300ep")  # other weights than dino_vits8, and never uploaded
        assert (source.published is not None) == name.startswith("dino_")


def test_any_plain_vit_by_its_timm_name():
    backbone = load_backbone("vit_tiny_patch16_224", "random")
    assert (backbone.name, backbone.patch_size) == ("vit_tiny_patch16_224", 16)
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # its own, not ImageNet's
    assert TokenExtractor(backbone)(photo(40, 64))["k"].shape == (1, 2 * 4, 192)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "mixer_s32_224",
        "vit_small_r26_s32_224",  # a CNN before the blocks: its "patches" are not those of the image
        "vitamin_small_224",
    ],
)
def test_other_models_are_refused(name):
    with pytest.raises(InputError, match=f"timm's '{name}' is not a plain ViT"):
        load_backbone(name, "random")


def test_unknown_names_come_with_the_known_ones():
    with pytest.raises(
        InputError, match=r"'dino_vits17' \(did you mean dino_vits16\?\); known are dino_vits16, "
    ) as error:
        load_backbone("dino_vits17", "random")
    assert all(name in str(error.value) for name in (*SOURCES, *STATISTICS, "of timm"))


def test_random_weights_are_the_same_everywhere_and_leave_the_generator_alone():
    torch.manual_seed(17)
    before = torch.random.get_rng_state()
    first = load_backbone("test_vit", "random")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    second = load_backbone("test_vit", "random")
    assert first.weights == second.weights == "random (seed 0)"
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    assert first.model.state_dict()["blocks.0.attn.qkv.weight"].std() > 1e-3


# --- DINO v1's position embeddings ---


@pytest.mark.parametrize("side", [14, 28])
def test_positions_at_the_pretraining_size_are_left_alone(side):
    positions = noise(1, 1 + side**2, 8)
    assert torch.equal(resize_dino_positions(positions, side, side), positions)
    assert resize_dino_positions(positions, side // 2, 2 * side).shape == positions.shape  # as many, but not those
    assert not torch.allclose(resize_dino_positions(positions, side // 2, 2 * side), positions)


@pytest.mark.parametrize(("rows", "columns"), [(15, 20), (3, 4), (14, 15), (7, 28), (45, 60)])
def test_positions_of_other_sizes(rows, columns):
    positions = noise(1, 1 + 14**2, 8)
    resized = resize_dino_positions(positions, rows, columns)
    grid = positions[:, 1:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    factor = ((rows + 0.1) / 14, (columns + 0.1) / 14)
    expected = functional.interpolate(grid, scale_factor=factor, mode="bicubic")
    assert expected.shape == (1, 8, rows, columns)
    for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0), (rows // 2, columns // 3)):  # row-major
        torch.testing.assert_close(resized[0, 1 + row * columns + column], expected[0, :, row, column])
    assert torch.equal(resized[:, 0], positions[:, 0])
    # the factor is not the ratio of the sizes, and timm's resampling is another again
    by_size = functional.interpolate(grid, size=(rows, columns), mode="bicubic").flatten(2).mT
    by_timm = resample_abs_pos_embed(positions, [rows, columns])[:, 1:]
    for other in (by_size, by_timm):
        assert (resized[:, 1:] - other).norm() > 0.01 * other.norm()


def test_one_position_by_hand():
    """The 14 x 14 grid to one patch: the factor is 1.1 / 14, so that it is sampled at (0 + 1/2) * 14 / 1.1 - 1/2.

    That is 0.8636 beyond column 5. The cubic weights (Keys 1981, a = -3/4) of columns 4 to 7 follow from the distances.
    """
    x = 7 / 1.1 - 0.5 - 5
    near = [1.25 * d**3 - 2.25 * d**2 + 1 for d in (x, 1 - x)]
    far = [-0.75 * (d**3 - 5 * d**2 + 8 * d - 4) for d in (1 + x, 2 - x)]
    column = 4 * far[0] + 5 * near[0] + 6 * near[1] + 7 * far[1]
    ramp = torch.arange(14.0).repeat(14, 1).reshape(1, 196, 1)  # each position's embedding is its column
    resized = resize_dino_positions(torch.cat([torch.zeros(1, 1, 1), ramp], dim=1), 1, 1)
    assert resized[0, 1, 0] == pytest.approx(column, abs=1e-5)


def test_dino_models_use_their_own_positions_and_others_timms():
    dino, plain = load_backbone("dino_vits16", "random"), load_backbone("vit_small_patch16_224.dino", "random")
    for name, value in plain.model.state_dict().items():
        assert torch.equal(dino.model.state_dict()[name], value)
    square, wide = photo(224, 224), photo(96, 160)
    keys = {b: [TokenExtractor(b, (0,))(images)["k"] for images in (square, wide)] for b in (dino, plain)}
    torch.testing.assert_close(keys[dino][0], keys[plain][0])
    assert (keys[dino][1] - keys[plain][1]).norm() > 0.01 * keys[plain][1].norm()
    # what enters the first block: patch embeddings plus the resized positions, [CLS] first
    entered = []
    handle = dino.model.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    TokenExtractor(dino, (0,))(wide)
    handle.remove()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (dino.mean, dino.std))
    patches = functional.conv2d((wide - mean) / std, *dino.model.patch_embed.proj.parameters(), stride=16)
    tokens = torch.cat([dino.model.cls_token, patches.flatten(2).mT], dim=1)
    torch.testing.assert_close(entered[0], tokens + resize_dino_positions(dino.model.pos_embed, 6, 10))


# --- tokens are those that attention works with ---


def seen_by_attention(backbone: Backbone, images: torch.Tensor, block: int, monkeypatch) -> dict[str, torch.Tensor]:
    """Queries, keys and values of a block as its attention uses them (before rotary embedding), all tokens."""
    attention = backbone.model.blocks[block].attn
    seen, values = {}, []
    fused = functional.scaled_dot_product_attention
    hooks = [
        getattr(attention, f"{part}_norm").register_forward_pre_hook(
            lambda _, args, part=part: seen.update({part: args[0]})
        )
        for part in "qk"
    ]
    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", lambda *a, **k: values.append(a[2]) or fused(*a, **k))
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (backbone.mean, backbone.std))
        backbone.model.forward_features((images - mean) / std)
    for hook in hooks:
        hook.remove()
    assert len(values) == len(backbone.model.blocks)
    seen["v"] = values[block]
    return {part: value.transpose(1, 2).flatten(2) for part, value in seen.items()}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("dino_vits16", 1),
        ("dinov2_vits14", 1),
        ("dinov2_vits14_reg", 5),
        ("dinov3_vits16", 5),
        ("vit_small_patch16_dinov3_qkvb", 5),  # uses the weight of its qkv layer without calling it
        ("deit_tiny_distilled_patch16_224", 2),
        ("eva02_tiny_patch14_224", 1),  # queries, keys and values from three layers
        ("test_vit", 1),
    ],
)
def test_features_are_what_attention_sees(name, prefix, monkeypatch):
    backbone = with_noisy_weights(name)
    size, depth = backbone.patch_size, len(backbone.model.blocks)
    images = photo(3 * size + 5, 4 * size + 2, count=2)
    for block in (-1, 0, depth // 2):
        with torch.no_grad():
            seen = seen_by_attention(backbone, images[..., : 3 * size, : 4 * size], block, monkeypatch)
        features = TokenExtractor(backbone, (block,), ("q", "k", "v"))(images)
        for part in "qkv":
            assert seen[part].shape[1] == prefix + 12
            torch.testing.assert_close(features[part], seen[part][:, prefix:], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(features["q"], features["k"], atol=1e-2)
        assert not torch.allclose(features["v"], features["k"], atol=1e-2)


def test_patches_of_14_pixels():
    backbone = load_backbone("dinov2_vits14", "random")
    assert TokenExtractor(backbone)(photo(30, 45))["k"].shape == (1, 2 * 3, 384)
    assert TokenExtractor(backbone)(photo(14, 27))["k"].shape == (1, 1, 384)
    with pytest.raises(InputError, match="an image of 60x13 pixels is smaller than one patch of 14 pixels"):
        TokenExtractor(backbone)(photo(13, 60))
