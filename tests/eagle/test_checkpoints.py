"""Our checkpoints, and the published ones: read without executing anything, and what differs is named."""

import argparse
import collections
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from eagleseg.checkpoints.files import (
    is_published,
    load_checkpoint,
    published_checkpoint,
    read_any,
    read_published,
    save_checkpoint,
    to_model_names,
)
from eagleseg.commands.convert import main as convert
from eagleseg.model.heads import EagleModel
from running import Trap, error_line, run_command
from shared_data import PROJECT
from spectralseg.errors import InputError
from spectralseg.files.inert import read_inert
from spectralseg.models.weights import load_into

SIZES = {"n_classes": 3, "extra_clusters": 2, "dim": 6, "eigen_cluster": 4, "eigen_cluster_out": 5}
CHANNELS = 9
CONFIG = {
    **{"model_type": "vit_small", "dino_patch_size": 8, "dataset_name": "potsdam", "dim": 70, "dropout": True},
    **{"crop_type": "five", "crop_ratio": 0.5, "res": 224, "nested": {"list": [1, 2.5, None, "x"]}, "same": "${res}"},
}


def published_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Names and shapes of the published files, with a tiny backbone."""
    torch.manual_seed(seed)
    shapes = {
        **{"net.model.cls_token": (1, 1, 3), "net.model.blocks.0.attn.qkv.weight": (9, 3)},
        **{"net.cluster1.0.weight": (6, 9, 1, 1), "net.cluster1.0.bias": (6,)},
        **{"net.cluster2.0.weight": (9, 9, 1, 1), "net.cluster2.0.bias": (9,)},
        **{"net.cluster2.2.weight": (6, 9, 1, 1), "net.cluster2.2.bias": (6,)},
        **{"linear_probe.weight": (3, 6, 1, 1), "linear_probe.bias": (3,), "cluster_probe.clusters": (5, 6)},
        **{"train_cluster_probe_eigen.clusters": (5, 3), "train_cluster_probe_eigen_aug.clusters": (5, 3)},
        **{"project_head.weight": (6, 6), "project_head.bias": (6,), "CELoss.learned_centroids": (7, 6)},
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


class AttributeDict(dict):
    """As Lightning keeps hyper-parameters: a class of its own, which reading must not need."""


def write_published(path: Path, tensors: dict | None = None, **more: object) -> Path:
    hyperparameters = AttributeDict(n_classes=3, cfg=OmegaConf.create(CONFIG))
    content = {
        **{"epoch": 4, "global_step": 700, "pytorch-lightning_version": "1.8.0"},
        "state_dict": collections.OrderedDict(published_tensors() if tensors is None else tensors),
        **{"hyper_parameters": hyperparameters, "callbacks": {Path: {"dirpath": path}}},
        **{"optimizer_states": [{"state": {0: {"step": 3}}}], **more},
    }
    torch.save(content, path)
    return path


@pytest.fixture
def model() -> EagleModel:
    return EagleModel(CHANNELS, **SIZES)


# --- ours ---


def test_what_is_saved_comes_back(tmp_path, model):
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    content = {
        **{"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()},
        **{"step": 3, "names": ["a", "b"], "match": {0: 2}, "none": None, "value": float("nan"), "pair": (1, "x")},
    }
    save_checkpoint(tmp_path / "last.pth", content)
    loaded = load_checkpoint(tmp_path / "last.pth")
    assert [loaded[name] for name in ("step", "names", "match", "none", "pair")] == [
        3,
        ["a", "b"],
        {0: 2},
        None,
        (1, "x"),
    ]
    other = EagleModel(CHANNELS, **SIZES)
    load_into(other, loaded["model"], "last.pth")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    again = torch.optim.Adam(other.parameters())
    again.load_state_dict(loaded["optimizer"])
    assert torch.equal(again.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert torch.equal(loaded["random"], content["random"])
    assert not is_published(loaded)


def test_a_view_is_stored_without_the_rest_of_its_tensor(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"part": torch.zeros(1_000_000)[:2]})
    assert (tmp_path / "a.pth").stat().st_size < 10_000


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    for value in (np.float64(1), Path("x"), {"x": [1, object()]}):
        with pytest.raises(TypeError, match="^checkpoint.value"):
            save_checkpoint(tmp_path / "a.pth", {"value": value})
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(InputError, match="holds a list, not a checkpoint"):
        load_checkpoint(path)
    torch.save({"x": Trap(tmp_path / "harm")}, path)
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path)
    assert not (tmp_path / "harm").exists()
    with pytest.raises(InputError, match=r"convert_checkpoint\.py makes it one of ours"):
        load_checkpoint(write_published(path))


# --- published ---


def test_published_files_are_read(tmp_path):
    path = write_published(tmp_path / "eagle.ckpt")
    content = read_any(path)
    assert is_published(content)
    tensors, hyperparameters = read_published(content, path)
    expected = published_tensors()
    assert list(tensors) == list(expected)
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert hyperparameters == {**CONFIG, "n_classes": 3, "global_step": 700}


def test_the_published_names_are_ours(tmp_path, model):
    tensors, backbone, ignored = to_model_names(published_tensors())
    load_into(model, tensors, "")
    given = published_tensors()
    assert torch.equal(model.head.A.weight, given["net.cluster1.0.weight"])
    assert torch.equal(model.head.B.weight, given["net.cluster2.0.weight"])
    assert torch.equal(model.head.C.bias, given["net.cluster2.2.bias"])
    assert torch.equal(model.eigen_probe.clusters, given["train_cluster_probe_eigen.clusters"])
    assert torch.equal(model.eigen_probe_blur.clusters, given["train_cluster_probe_eigen_aug.clusters"])
    assert list(backbone) == ["cls_token", "blocks.0.attn.qkv.weight"]
    assert ignored == ["CELoss.learned_centroids"]


def test_a_published_file_as_one_of_ours(tmp_path):
    content = published_checkpoint(read_any(write_published(tmp_path / "eagle.ckpt")), "")
    expected = {
        "backbone": "dino_vits8_300ep",
        "patch_size": 8,
        "dataset_name": "potsdam",
        "dim": 6,
        "extra_clusters": 2,
    }
    expected |= {"eigen_cluster": 4, "eigen_cluster_out": 5}  # the sizes of the tensors, not those of the configuration
    assert expected.items() <= content["settings"].items()
    assert content["class_names"][0] == "roads and cars"
    assert content["step"] == 700


def test_nothing_is_executed(tmp_path):
    harm = tmp_path / "harm"
    path = write_published(tmp_path / "eagle.ckpt", module=eval, loop=subprocess.Popen, kind=type(None))
    content = read_any(path)
    assert [content[name] for name in ("module", "loop", "kind")] == [None] * 3
    with pytest.raises(InputError, match="cannot be read"):
        read_any(write_published(path, more=Trap(harm)))
    assert not harm.exists()
    with zipfile.ZipFile(path) as archive:
        assert b"mkdir" in archive.read("eagle/data.pkl")


def test_no_module_is_imported(tmp_path):
    """In a process of its own, which has not imported OmegaConf before."""
    path = write_published(tmp_path / "eagle.ckpt")
    code = (
        "import sys\nfrom eagleseg.checkpoints.files import read_any\n"
        f"print(read_any({str(path)!r})['hyper_parameters']['cfg']['nested'], 'omegaconf' in sys.modules)\n"
    )
    result = run_command([sys.executable, "-c", code], cwd=PROJECT / "eagle")
    assert result.stdout == "{'list': [1, 2.5, None, 'x']} False\n"


def test_plain_values_of_objects(tmp_path):
    class_of_ours = argparse.Namespace(rate=0.1, name="x", _private=3)
    looped = OmegaConf.create({"a": {"b": [1, {"c": "d"}]}})
    content = {"namespace": class_of_ours, "looped": looped, "type": Path, "numbers": {1: (2, 3)}, "set": {4}}
    torch.save(content, tmp_path / "a.ckpt")
    assert read_inert(tmp_path / "a.ckpt", "", None) == {
        **{"namespace": {"rate": 0.1, "name": "x"}, "looped": {"a": {"b": [1, {"c": "d"}]}}, "type": None},
        **{"numbers": {1: (2, 3)}, "set": [4]},
    }


def test_tensors_of_all_kinds(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    content = {
        **{"transposed": base.T, "row": base[1], "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)},
        **{
            "half": base.half(),
            "brain": base.bfloat16(),
            "long": torch.arange(3),
            "truth": torch.tensor([True, False]),
        },
        **{"bytes": torch.arange(3, dtype=torch.uint8), "parameter": nn.Parameter(base), "double": base.double()},
    }
    torch.save(content, tmp_path / "a.ckpt")
    for name, value in read_inert(tmp_path / "a.ckpt", "").items():
        assert value.dtype == content[name].dtype
        assert torch.equal(value, content[name])


@pytest.mark.parametrize("damage", ["cut", "text", "storage", "beyond", "no pickle", "absent"])
def test_damaged_published_files(tmp_path, damage):
    path = write_published(tmp_path / "eagle.ckpt")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("<html>not found</html>")
    elif damage == "absent":
        path.unlink()
    else:
        with zipfile.ZipFile(path) as old:
            entries = {name: old.read(name) for name in old.namelist()}
        storage = next(name for name in entries if "/data/" in name and len(entries[name]) > 100)
        if damage == "storage":
            del entries[storage]
        elif damage == "beyond":
            entries[storage] = entries[storage][:8]
        else:
            del entries["eagle/data.pkl"]
        with zipfile.ZipFile(path, "w") as new:
            for name, data in entries.items():
                new.writestr(name, data)
    assert str(path) in error_line(read_any, path)


def test_published_files_of_something_else(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"hyper_parameters": {}, "state_dict": {}}, path)
    with pytest.raises(InputError, match="holds no tensors under 'state_dict'"):
        read_published(read_any(path), path)
    write_published(path, {"backbone.weight": torch.zeros(2)})
    with pytest.raises(InputError, match=r"is no checkpoint of EAGLE: it holds backbone\.weight"):
        published_checkpoint(read_any(path), path)
    write_published(path, hyper_parameters={"cfg": {"model_type": "resnet50"}})
    with pytest.raises(InputError, match="no backbone is known for model_type=resnet50, dino_patch_size=None"):
        published_checkpoint(read_any(path), path)


# --- convert_checkpoint.py ---


def test_convert(tmp_path, capsys, model):
    source, target = write_published(tmp_path / "eagle.ckpt"), tmp_path / "new" / "eagle.pth"
    convert([str(source), str(target)])
    assert capsys.readouterr().out == (f"{source} -> {target}: 13 tensors of the model, 2 of dino_vits8_300ep\n")
    content = load_checkpoint(target)
    load_into(model, content["model"], target)
    assert content["hyperparameters"]["crop_ratio"] == 0.5
    assert error_line(convert, [str(source), str(target)]) == (
        f"error: {target} exists; choose another file, or --overwrite it"
    )
    convert([str(source), str(target), "--overwrite"])
    with pytest.raises(SystemExit, match="^error: the following arguments are required: OUT$"):
        convert([str(source)])


def test_convert_names_what_differs(tmp_path):
    tensors = published_tensors()
    old = {name: value for name, value in tensors.items() if "eigen" not in name}  # STEGO's layout
    source, target = write_published(tmp_path / "a.ckpt", old), tmp_path / "a.pth"
    for given, expected in (
        (old, "is of another layout: it lacks eigen_probe.clusters"),
        (
            {**tensors, "net.cluster2.0.weight": torch.zeros(4, 9, 1, 1)},
            "does not fit this model: wrong shape head.B.weight (4, 9, 1, 1) instead of (9, 9, 1, 1)",
        ),
    ):
        write_published(source, given)
        assert error_line(convert, [str(source), str(target)]) == f"error: {source} {expected}"
        assert not target.exists()
    source = tmp_path / "none.ckpt"
    assert error_line(convert, [str(source), str(target)]) == f"error: no such checkpoint: {source}"
