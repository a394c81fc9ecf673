"""Archives and checkpoints from an address: resumed, checked, unpacked whole or not at all."""

import functools
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eagleseg.commands import download_datasets, download_models
from eagleseg.data.archives import unpack
from running import error_line
from spectralseg.errors import InputError, OutputError
from spectralseg.models import backbones, weights
from spectralseg.models.backbones import Source

FILES = {"images/train2017/1.jpg": b"jpeg", "annotations/train2017/1.png": b"png", "curated/train2017/list.txt": b"1\n"}


def zipped(files: dict[str, bytes], below: str = "cocostuff/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(below + name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], *links: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for link in links:
            archive.addfile(link)
    return buffer.getvalue()


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(0).bytes(count)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- unpacking ---


@pytest.mark.parametrize("make", [zipped, functools.partial(zipped, below=""), tarred], ids=["zip", "bare zip", "tar"])
def test_unpacked(make, tmp_path):
    (tmp_path / "a").write_bytes(make(FILES))
    unpack(tmp_path / "a", tmp_path / "cocostuff", ("images", "annotations", "curated"))
    assert tree(tmp_path / "cocostuff") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "cocostuff"]


def link(kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("images/link")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


def zip_with_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("images/link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def damaged() -> bytes:
    data = bytearray(zipped({**FILES, "images/large": random_bytes(10_000)}))
    data[data.index(b"images/large") + 5_000] ^= 255
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (zipped({"../../evil": b"x"}), "holds the name cocostuff/../../evil, which leads outside"),
        (zipped({"/evil": b"x"}, ""), "holds the name /evil, which leads outside"),
        (zipped({"..\\..\\evil": b"x"}, ""), "which leads outside"),
        (tarred({"../evil": b"x"}), "holds the name ../evil, which leads outside"),
        (tarred(FILES, link()), "holds the link or device images/link"),
        (tarred(FILES, link(tarfile.LNKTYPE)), "holds the link or device images/link"),
        (tarred(FILES, link(tarfile.FIFOTYPE)), "holds the link or device images/link"),
        (zip_with_link(), "holds the link images/link"),
        (damaged(), "is damaged (Bad CRC-32 for file"),
        (tarred(FILES)[:-60], "is damaged ("),
        (zipped(FILES)[:-60], "is no zip or tar archive"),
        (b"<html>", "is no zip or tar archive (a web page instead of the file?); delete it"),
        (zipped({"images/x": b"", "other/y": b""}), "it lacks annotations, curated (it holds images, other)"),
        (zipped({}), "is no cocostuff: it lacks images, annotations, curated (it holds nothing)"),
    ],
    # Archives hold times: their bytes in a name would differ between the processes of a test run.
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_archives_that_are_not_unpacked(data, expected, tmp_path):
    root = tmp_path / "deep" / "er"
    root.mkdir(parents=True)
    (root / "a").write_bytes(data)
    assert expected in error_line(unpack, root / "a", root / "cocostuff", ("images", "annotations", "curated"))
    assert tree(tmp_path) == {"deep/er/a": data}
    assert [path.name for path in root.iterdir()] == ["a"]
    assert not Path("/evil").exists()


def test_a_folder_that_is_there_stays(tmp_path):
    (tmp_path / "cocostuff").mkdir()
    (tmp_path / "a").write_bytes(zipped(FILES))
    with pytest.raises(OutputError, match="exists already"):
        unpack(tmp_path / "a", tmp_path / "cocostuff", ())
    (tmp_path / "b").mkdir()
    (tmp_path / ".b.incoming").mkdir()
    (tmp_path / ".b.incoming" / "old").touch()  # of a run that was killed
    (tmp_path / "b").rmdir()
    unpack(tmp_path / "a", tmp_path / "b", ())
    assert tree(tmp_path / "b") == {f"cocostuff/{name}": data for name, data in FILES.items()}


# --- the scripts ---


def stopped(main: Callable, *arguments: object) -> str:
    """The line that a script ends with."""
    return error_line(main, list(map(str, arguments))).removeprefix("error: ")


def test_data_sets(serve, tmp_path, monkeypatch, capsys):
    server = serve(zipped(FILES))
    monkeypatch.setattr(download_datasets, "ADDRESS", server.root)
    for _ in range(2):
        download_datasets.main(["--dataset", "cocostuff", "--data_root", str(tmp_path)])
    assert tree(tmp_path) == {f"cocostuff/{name}": data for name, data in FILES.items()}
    assert len(server.asked) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"cocostuff -> {tmp_path}/cocostuff\n")
    assert f"cocostuff: {tmp_path}/cocostuff is there already" in printed.err
    source = tmp_path / "mirror.tar.gz"
    source.write_bytes(tarred({"potsdam/imgs/1.mat": b"", "potsdam/gt/1.mat": b""}))
    flags = ["--dataset", "potsdam", "--data_root", str(tmp_path), "--keep_archive"]
    download_datasets.main([*flags, "--url", f"file://{source}"])
    assert (tmp_path / "potsdam" / "gt" / "1.mat").is_file()
    assert (tmp_path / "potsdam.archive").is_file()


def test_one_data_set_that_cannot_be_had_does_not_stop_the_others(serve, tmp_path, monkeypatch):
    server = serve(zipped({"potsdamraw/processed/1.mat": b""}, ""))
    monkeypatch.setattr(download_datasets, "ADDRESS", server.root)
    line = stopped(download_datasets.main, "--dataset", "cityscapes", "potsdamraw", "--data_root", tmp_path)
    assert line == (
        f"{tmp_path}/cityscapes.archive is no cityscapes: it lacks leftImg8bit, gtFine (it holds potsdamraw)"
    )
    assert (tmp_path / "potsdamraw" / "processed" / "1.mat").is_file()
    assert stopped(download_datasets.main, "--url", "http://x") == (
        "--url is the address of one archive: name its data set with --dataset"
    )
    assert "invalid choice: 'voc'" in stopped(download_datasets.main, "--dataset", "voc")


def test_models(tmp_path, monkeypatch, capsys):
    def absent(url: str) -> Path:
        raise InputError(f"cannot download {url}: no network")

    monkeypatch.setattr(weights, "download", absent)
    monkeypatch.setattr(download_models, "MODELS", ("tiny",))
    monkeypatch.setitem(backbones.SOURCES, "tiny", Source("test_vit", "folder/tiny.pth", on_hub=False))
    line = stopped(download_models.main)
    assert line.startswith(
        f"the weights of tiny cannot be had (cannot download {backbones.DINO_ADDRESS}folder/tiny.pth: "
    )
    path = tmp_path / "vit.pth"
    torch.save(backbones.load_backbone("test_vit", "random").model.state_dict(), path)
    monkeypatch.setattr(weights, "download", lambda url: path)
    download_models.main(["--model", "tiny"])
    assert capsys.readouterr().out.startswith("tiny: vit.pth sha256:")
    assert "invalid choice: 'vgg'" in stopped(download_models.main, "--model", "vgg")


def test_a_checkpoint(serve, tmp_path, capsys):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"x": torch.zeros(2)}, "pytorch-lightning_version": "1"}, buffer)
    server = serve(buffer.getvalue())
    flags = ["--model", "--output_dir", str(tmp_path / "new"), "--checkpoint_url"]
    for _ in range(2):
        download_models.main([*flags, server.root + "EAGLE%20COCO.ckpt?download=1"])
    assert (tmp_path / "new" / "EAGLE COCO.ckpt").read_bytes() == buffer.getvalue()
    assert len(server.asked) == 1
    page = serve(b"<html>Virus scan warning</html>")
    line = stopped(download_models.main, *flags, page.address)
    assert line == (
        f"{page.address}: what came is no checkpoint of PyTorch Lightning (a page that asks for confirmation?); save"
        " the file with a browser"
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["EAGLE COCO.ckpt"]


def test_help_says_what_is_fetched(capsys):
    for script, expected in ((download_datasets, "20 GB"), (download_models, "343 MB")):
        with pytest.raises(SystemExit) as stop:
            script.main(["--help"])
        assert not stop.value.code
        assert expected in capsys.readouterr().out
