"""Weights from an address: fetched once, checked, and never kept by halves."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from file_server import NAME, closed_port
from running import error_line, features_flags, refused_here, run_here, write_pictures
from spectralseg.errors import InputError, OutputError
from spectralseg.files import downloads
from spectralseg.files.downloads import fetch
from spectralseg.models import backbones, weights
from spectralseg.models.backbones import Source, load_backbone
from spectralseg.models.weights import download

MODEL = "test_vit"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """torch.hub's folder for weights, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "checkpoint.pth"
    torch.save(load_backbone(MODEL, "random").model.state_dict(), path)
    return path


def files(cache: Path) -> list[str]:
    return sorted(os.listdir(cache)) if cache.exists() else []


@pytest.mark.parametrize("announced", [True, False])  # Content-Length
def test_fetched_once(announced, serve, checkpoint, cache):
    server = serve(checkpoint.read_bytes(), length=-1 if announced else None)
    path = download(server.address)
    assert path.parent == cache
    assert path.read_bytes() == checkpoint.read_bytes()
    assert download(server.address) == path
    assert server.asked == [(f"/{NAME}", None)]
    assert files(cache) == [path.name, f"{path.name}.sha256"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="is not as it was downloaded .* delete it and start again"):
        download(server.address)


def test_weights_from_an_address_are_those_of_the_file(serve, checkpoint):
    server = serve(checkpoint.read_bytes())
    loaded = [load_backbone(MODEL, source) for source in (server.address, f"file://{checkpoint}", str(checkpoint))]
    for backbone in loaded:
        for name, value in torch.load(checkpoint, weights_only=True).items():
            assert torch.equal(backbone.model.state_dict()[name], value)
    assert len(server.asked) == 1
    assert len({backbone.weights.partition(" ")[2] for backbone in loaded}) == 1  # the checksum


def test_file_addresses_are_fetched_once_too(checkpoint, cache):
    path = download(f"file://{checkpoint}")
    checkpoint.unlink()
    assert download(f"file://{checkpoint}") == path
    assert files(cache) == [path.name, f"{path.name}.sha256"]


def test_files_of_one_name_from_two_addresses_are_two_files(serve, checkpoint, cache):
    other = checkpoint.with_name("other.pth")
    torch.save({"norm.bias": torch.zeros(3)}, other)
    first, second = serve(checkpoint.read_bytes()), serve(other.read_bytes())
    paths = [download(server.address) for server in (first, second)]
    assert [path.read_bytes() for path in paths] == [checkpoint.read_bytes(), other.read_bytes()]
    assert len(files(cache)) == 4


def test_published_weights_are_kept_where_torch_hub_keeps_them(checkpoint, cache, monkeypatch):
    """Under the published name: whoever has them already from torch.hub does not fetch them again."""
    cache.mkdir(parents=True)
    shutil.copy(checkpoint, cache / "checkpoint.pth")
    monkeypatch.setattr(downloads.urllib.request, "urlopen", None)
    assert download("https://dl.fbaipublicfiles.com/dino/folder/checkpoint.pth") == cache / "checkpoint.pth"


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (b"", {"status": 404}, "Not Found"),
        (b"", {"status": 500}, "Internal Server Error"),
        (b"<html>please log in</html>", {}, "what came is no checkpoint"),
        (b"", {}, "what came is no checkpoint"),
        (b"PK half", {"length": 1000}, "the connection broke off after 7 of 1000 bytes"),
        (b"PK half", {"length": None}, "what came is no checkpoint"),
        (b"PK half", {"length": "many"}, "invalid literal"),
    ],
    ids=["404", "500", "html", "empty", "truncated", "truncated, no length", "foolish length"],
)
def test_what_does_not_arrive_is_not_kept(data, options, reason, serve, cache):
    server = serve(data, **options)
    for attempt in (1, 2):  # and so is tried again
        with pytest.raises(InputError, match=reason) as error:
            download(server.address)
        assert server.address in str(error.value)
        assert files(cache) == []
        assert len(server.asked) == attempt
    with pytest.raises(InputError, match="cannot download http://127.0.0.1.*give its path as the weights"):
        load_backbone(MODEL, server.address)


def test_a_server_that_falls_silent(serve, cache, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.3)
    server = serve(b"PK half", length=1000, stall=True)
    with pytest.raises(InputError, match="timed out"):  # and not "broke off", as when the server closes
        download(server.address)
    assert files(cache) == []


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{port}/x.pth", "file:///absent/x.pth", "s3://bucket/x.pth", "://x", "http://[x.pth"]
)
def test_addresses_that_lead_nowhere(address, cache):
    address = address.format(port=closed_port())
    assert f"cannot download {address}: " in error_line(load_backbone, MODEL, address)
    assert files(cache) == []


def test_a_cache_that_cannot_be_written(serve, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot create the folder .*file"):
        download(serve(checkpoint.read_bytes()).address)


# --- files of any kind, which are gone on with ---


def test_what_broke_off_goes_on(serve, tmp_path):
    data = np.random.default_rng(0).bytes(3_000_000)
    server = serve(data, cut=1_200_000)
    assert error_line(fetch, server.address, tmp_path / "a.zip") == (
        f"cannot download {server.address}: the connection broke off after 1200000 of 3000000 bytes; 1.2 MB are kept,"
        " the same command goes on there"
    )
    assert not (tmp_path / "a.zip").exists()
    assert fetch(server.address, tmp_path / "a.zip").read_bytes() == data
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1200000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("change", ["other file", "no validator", "no ranges", "other address", "shorter file"])
def test_a_part_of_something_else_is_not_gone_on_with(serve, tmp_path, change):
    server = serve(b"a" * 2_000_000, cut=1_500_000, etag=None if change == "no validator" else '"v1"')
    with pytest.raises(InputError):
        fetch(server.address, tmp_path / "a.zip")
    server.data = np.random.default_rng(0).bytes(1_000_000 if change == "shorter file" else 2_000_000)
    if change == "other file":
        server.etag = '"v2"'
    server.ranges = change != "no ranges"
    address = server.address + ("?2" if change == "other address" else "")
    assert fetch(address, tmp_path / "a.zip").read_bytes() == server.data


def test_no_room(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(OutputError, match="has 1.0 kB of free space, 5.0 kB are needed"):
        fetch(serve(b"x" * 5000).address, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


class Usage:
    free = 1000


# --- published weights ---


def test_published_weights(serve, checkpoint, cache, monkeypatch):
    """The published address first, and timm's hub not at all."""
    server = serve(checkpoint.read_bytes())
    monkeypatch.setattr(backbones, "DINO_ADDRESS", server.root)
    monkeypatch.setitem(backbones.SOURCES, "tiny", Source("test_vit", "folder/tiny.pth"))
    monkeypatch.setattr(weights, "hub_without_retries", None)
    for _ in range(2):
        backbone = load_backbone("tiny")
        assert torch.equal(
            backbone.model.state_dict()["norm.bias"], torch.load(checkpoint, weights_only=True)["norm.bias"]
        )
    assert server.asked == [("/folder/tiny.pth", None)]


@pytest.mark.parametrize("on_hub", [True, False])
@pytest.mark.parametrize("data", [b"", b"<html>a captive portal</html>"])
def test_no_published_weights_and_no_hub(data, on_hub, serve, cache, monkeypatch, tmp_path):
    server = serve(data, status=200 if data else 404)
    monkeypatch.setattr(backbones, "DINO_ADDRESS", server.root)
    monkeypatch.setitem(backbones.SOURCES, "tiny", Source("test_vit.r160_in1k", "folder/tiny.pth", on_hub=on_hub))
    monkeypatch.setattr(weights.hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    message = error_line(load_backbone, "tiny")
    assert message.startswith(
        f"the weights of tiny cannot be had (cannot download {backbones.DINO_ADDRESS}folder/tiny.pth: "
    )
    assert message.endswith("or give its path as the weights")
    assert ("timm hub test_vit.r160_in1k" in message) == on_hub
    assert files(cache) == []


def test_without_a_network_the_command_line_says_what_to_do(tmp_path, monkeypatch, capsys, cache):
    images = write_pictures(tmp_path / "images", 1)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(weights.hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    flags = features_flags(images, tmp_path / "out")
    message = refused_here(capsys, *flags, "--model_name=dinov2_vits14")
    assert message.startswith(
        "error: the weights of dinov2_vits14 cannot be had (timm hub vit_small_patch14_dinov2.lvd"
    )
    assert message.endswith("or give its path as the weights")
    assert not (tmp_path / "out").exists()
    run_here("run", "--nocrf", "--images", images, "--output", tmp_path / "run", "--num_segments", 2)
    assert re.search(r"^the weights of dino_vits16 .*; going on with lab_graph", capsys.readouterr().err, re.M)
    made = json.loads((tmp_path / "run" / "features" / "stage.json").read_text())["arguments"]
    assert (made["model_name"], made["max_size"]) == ("lab_graph", 400)
    assert {path.name for path in (tmp_path / "run" / "maps").iterdir()} == {"image0.png"}
