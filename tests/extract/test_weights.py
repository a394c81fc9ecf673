"""Checkpoints in every layout that is accepted, and in those that are not."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from running import Trap, error_line
from spectralseg.models.backbones import load_backbone
from spectralseg.models.weights import fingerprint, read_checkpoint

MODEL = "test_vit"  # timm's smallest: 6 blocks of width 64


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state dict with the names of DINO's and timm's ViTs, and numbers of its own."""
    state = load_backbone(MODEL, "random").model.state_dict()
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}


def save(content: object, folder: Path, name: str = "weights.pth") -> str:
    path = folder / name
    torch.save(content, path)
    return str(path)


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def other(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value + 1 for name, value in state.items()}


PROJECTION_HEAD = {"head.mlp.0.weight": torch.ones(8, 64), "head.last_layer.weight_g": torch.ones(8, 1)}
OPTIONS = argparse.Namespace(arch="vit_small", patch_size=16, lr=5e-4)
LAYOUTS = {
    "bare": lambda state: state,
    "bare with a classifier": lambda state: state | {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)},
    "several GPUs": lambda state: prefixed("module.", state),
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": prefixed("module.", state)},
    "DINO's teacher and not its student": lambda state: {
        "student": prefixed("module.backbone.", other(state)) | prefixed("module.", PROJECTION_HEAD),
        "teacher": prefixed("backbone.", state) | PROJECTION_HEAD,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": OPTIONS,
        "dino_loss": {"center": torch.zeros(1, 8)},
    },
    "DINO's student where there is no teacher": lambda state: {
        "student": prefixed("module.backbone.", state) | prefixed("module.", PROJECTION_HEAD),
        "args": OPTIONS,
    },
}


def check_loaded(weights: str, expected: dict[str, torch.Tensor], model: str = MODEL) -> None:
    loaded = load_backbone(model, weights)
    state = loaded.model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert loaded.weights == fingerprint(weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_accepted_layouts(layout, published, tmp_path):
    check_loaded(save(LAYOUTS[layout](published), tmp_path), published)


def test_safetensors(published, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(published, path)
    check_loaded(str(path), published)


def test_dinov2_with_registers_as_published(tmp_path):
    """There the registers have another name, and [CLS] has a position embedding of its own, which timm adds to it."""
    state = load_backbone("dinov2_vits14_reg", "random").model.state_dict()
    state = {name: torch.full_like(value, 0.5) for name, value in state.items()}
    published = dict(state)
    published["register_tokens"] = published.pop("reg_token")
    published["mask_token"] = torch.zeros(1, 384)
    published["pos_embed"] = torch.cat([torch.full((1, 1, 384), 2.0), state["pos_embed"]], dim=1)
    expected = state | {"cls_token": torch.full((1, 1, 384), 2.5)}
    check_loaded(save(published, tmp_path), expected, "dinov2_vits14_reg")


def test_dinov3_as_published(tmp_path, capsys):
    """Other names, a bias that is masked to zero, and a table of rotations that timm computes itself."""
    state = load_backbone("dinov3_vits16", "random").model.state_dict()
    renamed = {}
    for name, value in state.items():
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        renamed[name.replace("reg_token", "storage_tokens")] = value
    renamed |= {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for block in range(12):
        renamed[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(3 * 384)
        renamed[f"blocks.{block}.attn.qkv.bias_mask"] = torch.zeros(3 * 384)
    check_loaded(save(renamed, tmp_path), state, "dinov3_vits16")
    assert capsys.readouterr().out == ""  # timm prints a line for each bias


# --- refused ---


def refused(weights: str, model: str = MODEL) -> str:
    message = error_line(load_backbone, model, weights)
    assert weights in message
    return message


def test_missing_tensors_are_named(published, tmp_path):
    kept = {name: value for name, value in published.items() if not name.startswith("blocks.4.")}
    message = refused(save(kept, tmp_path))
    assert "missing blocks.4.norm1.weight, blocks.4.norm1.bias, blocks.4.attn.qkv.weight and 9 more" in message
    assert "unknown" not in message


def test_unknown_tensors_are_named(published, tmp_path):
    more = published | {"blocks.6.norm1.weight": torch.ones(64), "dist_token": torch.ones(1, 1, 64)}
    message = refused(save(more, tmp_path))
    assert message.endswith("does not fit this model: unknown blocks.6.norm1.weight, dist_token")


def test_wrong_shapes_are_named(published, tmp_path):
    wrong = published | {"norm.bias": torch.ones(32), "patch_embed.proj.weight": torch.ones(64, 3, 8, 8)}
    message = refused(save(wrong, tmp_path))
    assert "patch_embed.proj.weight (64, 3, 8, 8) instead of (64, 3, 16, 16)" in message
    assert "norm.bias (32,) instead of (64,)" in message
    assert "missing" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_are_named(published, value, tmp_path):
    broken = {name: tensor.clone() for name, tensor in published.items()}
    broken["blocks.2.mlp.fc1.weight"][3, 4] = value
    assert "holds NaN or infinite values in blocks.2.mlp.fc1.weight" in refused(save(broken, tmp_path))


def test_another_model(published, tmp_path):
    """A whole other backbone: not a traceback, whatever timm's converters make of it."""
    path = save(published, tmp_path)
    for model in ("dino_vits16", "dinov2_vits14_reg", "dinov3_vits16"):
        assert "does not fit this model" in refused(path, model)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.ones(3), "holds a Tensor, not a state dict"),
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds no tensors"),
        ({"epoch": 3, "args": OPTIONS}, "holds no tensors (found: epoch, args)"),
        ({"teacher": {"epoch": 3}}, "holds no tensors (found: epoch)"),
    ],
)
def test_files_without_weights(content, reason, tmp_path):
    assert reason in refused(save(content, tmp_path))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off", b"\x80\x02K\x01.", bytes(100)])
def test_files_that_are_no_checkpoint(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    message = refused(str(tmp_path / name))
    assert "cannot be read" in message or "not a state dict" in message


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_checkpoint(published, share, tmp_path):
    path = Path(save(published, tmp_path))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "cannot be read" in refused(str(path))


def test_absent_files_and_folders(tmp_path):
    assert "no such weights file" in refused(str(tmp_path / "absent.pth"))
    assert "no such weights file" in refused(str(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cannot_execute_anything(published, zipped, tmp_path):
    trap = tmp_path / "executed"
    path = tmp_path / "weights.pth"
    torch.save(published | {"args": Trap(trap)}, path, _use_new_zipfile_serialization=zipped)
    assert "cannot be read (it needs posix.mkdir, which is neither tensor nor plain data)" in refused(str(path))
    assert not trap.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trap.is_dir()


def test_the_namespace_of_dino_does_not_stay_allowed(tmp_path):
    path = save({"teacher": {"norm.bias": torch.ones(1)}, "args": OPTIONS}, tmp_path)
    assert read_checkpoint(path).keys() == {"norm.bias"}
    with pytest.raises(Exception, match="weights_only|Weights only"):
        torch.load(path, weights_only=True)


def test_the_fingerprint_tells_files_apart_and_not_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "w.pth").write_bytes(b"abc")
    (tmp_path / "a" / "w.pth").write_bytes(b"abc")
    # sha256 of "abc", as FIPS 180 prints it
    assert fingerprint(tmp_path / "w.pth") == fingerprint(tmp_path / "a" / "w.pth") == "w.pth sha256:ba7816bf8f01"
    (tmp_path / "w.pth").write_bytes(b"abd")
    assert fingerprint(tmp_path / "w.pth") != "w.pth sha256:ba7816bf8f01"
