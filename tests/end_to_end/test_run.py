"""``run``: from a folder of one's own photographs to masks, cut-outs, boxes and a page."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from running import picture, refused_here, run_here, write_pictures
from spectralseg.api import object_box
from spectralseg.commands.run import find_photographs
from spectralseg.errors import InputError


def run(images: Path, output: Path, *more: object) -> None:
    run_here("run", "--images", images, "--output", output, "--model_name", "lab_hog", *more)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Other formats and sub-folders, a large photograph, one on its side, a file that is no image."""
    folder = tmp_path / "photographs"
    (folder / "holiday").mkdir(parents=True)
    picture(0, 1200, 800).save(folder / "large.WEBP")
    picture(1, 96, 64).save(folder / "holiday" / "cup.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture(2, 91, 60).save(folder / "turned.jpg", exif=exif)
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image either")
    return folder


def test_photographs_of_all_kinds(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        run(photographs, out, "--objects", 2)
    assert "1 of 4 photographs failed" in str(stop.value.code)
    printed = capsys.readouterr()
    assert re.search(r"broken failed: .*broken.jpg cannot be read as an image", printed.err)
    assert printed.out.strip().endswith(f"3 of 4 photographs -> {out / 'index.html'}")

    results = json.loads((out / "results.json").read_text())
    assert list(results["failed"]) == ["broken"]
    assert len(json.loads((out / "objects" / "objects.json").read_text())["images"]) == 3
    assert (out / "index.html").read_text().count('alt="objects') == 3
    sizes = {"holiday__cup": (96, 64), "large": (1200, 800), "turned": (60, 91)}
    assert {result["id"]: (result["width"], result["height"]) for result in results["images"]} == sizes
    for result in results["images"]:
        mask, cutout = Image.open(out / result["mask"]), Image.open(out / result["cutout"])
        assert mask.size == cutout.size == sizes[result["id"]]
        assert set(np.unique(mask)) <= {0, 255}
        assert cutout.mode == "RGBA"
        np.testing.assert_array_equal(np.array(cutout)[..., 3], np.array(mask))
        box = object_box(np.array(mask) > 0)
        assert result["box"] == (None if box is None else list(box))
    with Image.open(out / "images" / "large.png") as working_copy:
        assert working_copy.size == (640, 427)
    for folder in ("features", "eigs", "single_region_segmentation/patches", "multi_region_segmentation/patches"):
        files = [path for path in (out / folder).iterdir() if path.name != "stage.json"]
        assert {path.stem for path in files} == set(sizes), folder

    page = (out / "index.html").read_text()
    assert all(name in page for name in sizes)
    assert not re.search(r"(src|href)=\"?https?:", page)


def test_a_second_run_does_nothing_again_and_a_new_photograph_joins(tmp_path: Path):
    photographs, out = write_pictures(tmp_path / "photographs", 1), tmp_path / "out"
    run(photographs, out)
    stages = ("images", "features", "eigs", "single_region_segmentation/patches", "masks", "cutouts")

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for stage in stages for path in (out / stage).glob("*.p*")}

    before = files()
    picture(1).save(photographs / "rocket.png")
    run(photographs, out)
    after = files()
    assert before.items() <= after.items()
    assert {path.stem for path in after.keys() - before.keys()} == {"rocket"}


def test_other_arguments_in_a_filled_folder(tmp_path: Path):
    images, out = write_pictures(tmp_path / "images", 2), tmp_path / "out"
    run(images, out, "--nocrf")
    with pytest.raises(SystemExit, match="K=5 instead of 6"):
        run(images, out, "--nocrf", "--K", 6)
    run(images, out, "--nocrf", "--K", 6, "--overwrite")
    results = {path: path.read_bytes() for folder in ("masks", "cutouts") for path in (out / folder).glob("*.png")}
    assert len(results) == 2 * 2
    with pytest.raises(SystemExit, match="mask_format=palette instead of binary"):
        run(images, out, "--nocrf", "--K", 6, "--mask_format", "binary")
    run(images, out, "--nocrf", "--K", 6, "--mask_format", "binary", "--overwrite")
    assert {path: path.read_bytes() for path in results} == results
    patches = out / "single_region_segmentation" / "patches" / "image0.png"
    assert set(np.unique(np.array(Image.open(patches)))) == {0, 255}


def test_without_pydensecrf_torch_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    images, out = write_pictures(tmp_path / "images", 2), tmp_path / "out"
    run(images, out)
    sharp = out / "single_region_segmentation" / "crf"
    assert len(list(sharp.glob("*.png"))) == 2
    assert json.loads((sharp / "stage.json").read_text())["arguments"]["crf_backend"] == "torch"
    with pytest.raises(SystemExit, match="there is no pydensecrf here"):
        run(images, out, "--crf_backend", "pydensecrf")


def test_names_that_would_collide(tmp_path: Path):
    for name in ("a/x.jpg", "b/x.jpg", "x.jpg", "x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ids = {"a__x": "a/x.jpg", "b__x": "b/x.jpg", "x_jpg": "x.jpg", "x_png": "x.png"}
    assert find_photographs(tmp_path, tmp_path / "out") == ids
    (tmp_path / "a__x.jpg").touch()
    with pytest.raises(InputError, match="'a/x.jpg' and 'a__x.jpg' would both be called 'a__x_jpg'; rename"):
        find_photographs(tmp_path, tmp_path / "out")


def test_results_inside_the_folder_of_photographs_are_no_photographs(tmp_path: Path):
    (tmp_path / "out").mkdir()
    for name in ("x.jpg", "out/y.png", ".hidden.jpg"):
        (tmp_path / name).touch()
    assert find_photographs(tmp_path, tmp_path / "out") == {"x": "x.jpg"}


def test_nothing_to_do(tmp_path: Path):
    with pytest.raises(SystemExit, match="no image in"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit, match="no such folder"):
        run(tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_file_in_one_file_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photograph, cut, box = tmp_path / "images" / "image0.png", tmp_path / "cut.png", tmp_path / "box.json"
    write_pictures(photograph.parent, 1)
    run(photograph, tmp_path / "folder", "--nocrf")
    run(photograph, cut, "--nocrf")
    run(photograph, box, "--nocrf")
    assert cut.read_bytes() == (tmp_path / "folder" / "cutouts" / "image0.png").read_bytes()
    (result,) = json.loads((tmp_path / "folder" / "results.json").read_text())["images"]
    assert json.loads(box.read_text()) == {name: result[name] for name in ("file", "width", "height", "box")}
    flags = {"model_name": "lab_hog", "images": photograph}
    assert "cut.png is there already" in refused_here(capsys, "run", **flags, output=cut)
    assert "no photograph: give a folder" in refused_here(capsys, "run", **flags | {"images": tmp_path}, output=box)
    (tmp_path / "broken.jpg").write_text("no image")
    flags["images"] = tmp_path / "broken.jpg"
    assert "cannot be read" in refused_here(capsys, "run", **flags, output=tmp_path / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box.json", "broken.jpg", "cut.png", "folder", "images"]
