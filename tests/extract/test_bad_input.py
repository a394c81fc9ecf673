"""One bad image or file among good ones: it is reported and counted, the others are done, and the status is 1."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from running import eigs_flags, features_flags, picture, refused_here, reported, run_here, write_pictures
from spectralseg.models.lab_hog import LabHog


@pytest.fixture
def mixed(tmp_path):
    """Good images of every kind, and bad ones of every kind."""
    folder = tmp_path / "images"
    folder.mkdir()
    image = picture(1, 80, 48)
    exif = Image.Exif()
    exif[0x0112] = 6
    good = {"rgb.png", "grey.png", "rgba.png", "palette.png", "deep.png", "cmyk.jpg", "turned.jpg", "one-patch.png"}
    image.save(folder / "rgb.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "rgba.png")
    image.quantize(8).save(folder / "palette.png")
    Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.save(folder / "turned.jpg", exif=exif)
    image.crop((0, 0, 16, 16)).save(folder / "one-patch.png")
    assert {path.name for path in folder.iterdir()} == good

    broken = {
        "empty.jpg": b"",
        "text.jpg": b"\xef\xbb\xbfnot an image\r\n",
        "cut-png.png": (folder / "rgb.png").read_bytes()[:-500],
        "cut-jpg.jpg": (folder / "turned.jpg").read_bytes()[:-500],
        "header.jpg": (folder / "turned.jpg").read_bytes()[:20],
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",  # Pillow knows it
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    image.crop((0, 0, 1, 1)).save(folder / "pixel.png")
    image.crop((0, 0, 80, 15)).save(folder / "flat.png")
    Image.new("1", (20000, 10000)).save(folder / "bomb.png")  # 27 kB that would become 600 MB of pixels
    reasons = dict.fromkeys(broken, "cannot be read as an image")
    reasons["bomb.png"] = "it has more than 64000000 pixels; make it smaller, or set SPECTRALSEG_MAX_PIXELS"
    reasons["pixel.png"] = "an image of 1x1 pixels is smaller than one patch of 16 pixels"
    reasons["flat.png"] = "an image of 80x15 pixels is smaller than one patch of 16 pixels"
    return folder, good, reasons


@pytest.mark.parametrize("options", [[], ["--num_workers=2"], ["--batch_size=4"]], ids=lambda options: str(*options))
def test_bad_images_among_good_ones(mixed, options, tmp_path, capsys):
    folder, good, reasons = mixed
    output = tmp_path / "features"
    flags = [*features_flags(folder, output), *options]
    said = refused_here(capsys, *flags)
    *_, summary, message = said.splitlines()
    images = len(good) + len(reasons)
    assert message == f"error: {len(reasons)} of {images} images failed in extract_features: see the lines above"
    found = reported(said, "extract_features")
    assert found.keys() == {name.partition(".")[0] for name in reasons}
    for name, reason in reasons.items():
        assert reason in found[name.partition(".")[0]]
    assert summary.startswith(f"extract_features: {len(good)} written, 0 already there, {len(reasons)} failed, in ")
    assert json.loads((output / "stage.json").read_text())["counts"] == {"files": len(good), "failed": len(reasons)}

    expected = {name.partition(".")[0] + ".pth" for name in good}
    assert {path.name for path in output.iterdir()} == expected | {"stage.json"}
    records = {path.stem: torch.load(path) for path in output.glob("*.pth")}
    places = {record["indices"]: (image_id, record["id"], record["file"]) for image_id, record in records.items()}
    listed = enumerate(sorted(good | reasons.keys()))
    assert places == {place: (name[:-4], name[:-4], name) for place, name in listed if name in good}
    shapes = {image_id: record["shape"] for image_id, record in records.items()}
    sizes = {"turned": (80, 48), "one-patch": (16, 16)}
    assert shapes == {image_id: (1, 3, *sizes.get(image_id, (48, 80))) for image_id in shapes}

    again = refused_here(capsys, *flags)  # only the bad ones are tried
    assert f"extract_features: 0 written, {len(good)} already there, {len(reasons)} failed, in " in again


def test_images_too_large_for_the_memory(tmp_path, capsys, monkeypatch):
    """A batch that is too large is taken image by image; an image that is too large is reported."""
    images = write_pictures(tmp_path / "images", 3)
    picture(3, 160, 128).save(images / "large.png")
    forward = LabHog.forward
    batches = []

    def small_memory(self, pixels):
        batches.append(tuple(pixels.shape))
        if pixels.numel() > 3 * 80 * 64:
            on_a_cpu = RuntimeError("alloc_cpu.cpp: can't allocate memory")
            raise torch.OutOfMemoryError if len(pixels) > 1 else on_a_cpu
        return forward(self, pixels)

    monkeypatch.setattr(LabHog, "forward", small_memory)
    flags = [*features_flags(images, tmp_path / "features"), "--batch_size=3"]
    said = refused_here(capsys, *flags)
    assert said.endswith("error: 1 of 4 images failed in extract_features: see the lines above")
    assert reported(said, "extract_features") == {
        "large": "out of memory with an image of 160x128: --resize the images"
    }
    assert batches == [(3, 3, 64, 80), *[(1, 3, 64, 80)] * 3, (1, 3, 128, 160)]
    assert "out of memory with 3 images of 80x64: one by one now" in said
    assert len(list((tmp_path / "features").glob("*.pth"))) == 3


@pytest.fixture
def features(tmp_path):
    """Features of three images of 80 x 64 pixels: 4 rows of 5 patches."""
    images = write_pictures(tmp_path / "images", 3)
    run_here(*features_flags(images, tmp_path / "features"))
    return images, tmp_path / "features"


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


def with_nan(path):
    record = torch.load(path)
    record["k"][0, 7, 3] = float("nan")
    torch.save(record, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "image1.pth cannot be read"),
        (lambda path: torch.save([1, 2], path), "image1.pth holds a list, not a record"),
        (with_nan, "NaN"),
    ],
    ids=["cut", "list", "NaN"],
)
def test_bad_features_among_good_ones(features, damage, reason, tmp_path, capsys):
    images, folder = features
    damage(folder / "image1.pth")
    said = refused_here(capsys, *eigs_flags(images, folder, tmp_path / "eigs"))
    *_, summary, message = said.splitlines()
    assert message == "error: 1 of 3 images failed in extract_eigs: see the lines above"
    found = reported(said, "extract_eigs")
    assert found.keys() == {"image1"}
    assert reason in found["image1"]
    assert summary.startswith("extract_eigs: 2 written, 0 already there, 1 failed, in ")
    assert {path.name for path in (tmp_path / "eigs").iterdir()} == {"image0.pth", "image2.pth", "stage.json"}


def test_image_that_is_gone_or_another_when_colour_is_asked_for(features, tmp_path, capsys):
    images, folder = features
    (images / "image0.png").unlink()
    picture(5, 81, 64).save(images / "image2.png")
    said = refused_here(capsys, *eigs_flags(images, folder, tmp_path / "eigs"), "--image_color_lambda=10")
    assert said.endswith("error: 2 of 3 images failed in extract_eigs: see the lines above")
    found = reported(said, "extract_eigs")
    assert found["image0"] == f"no image 'image0.png' in {images}"
    assert "has 81x64 pixels, its features came from 80x64" in found["image2"]
    assert {path.name for path in (tmp_path / "eigs").iterdir()} == {"image1.pth", "stage.json"}
