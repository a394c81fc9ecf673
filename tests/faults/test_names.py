"""Names that no file should have: each costs its own image at most, and none leads elsewhere or onto the terminal."""

import csv
import json
import os

import pytest
from PIL import Image

from objectloc.command import main as localize
from running import as_flags, contents, picture, refused_here, touch, write_pictures
from spectralseg.errors import InputError, printable
from spectralseg.files.images import read_images_list
from spectralseg.files.names import LONGEST, check_entry, check_id

HANDLED = (" led", "nbsp\xa0", "two  words", "%s {} $HOME", "-flag", "é\u200d\U0001f600", "a.host-1.tmp", "l" * LONGEST)
REFUSED = ("line\nerror: 9 failed", "cr\rx", "red\x1b[31m", "ls\u2028x", "nel\x85x", os.fsdecode(b"b\xff"), "l" * 251)
SUFFIXES = {"features": ".pth", "eigs": ".pth", "masks": ".png", "cutouts": ".png"}


@pytest.fixture
def odd(tmp_path):
    """A folder of photographs with these names, and a plain one; in a list they are named without their breaks."""
    folder = write_pictures(tmp_path / "images", 1)
    for name in (*HANDLED, *REFUSED):
        picture(1).save(folder / f"{name}.png")
    return folder


def test_run_loses_the_odd_ones_alone(odd, tmp_path, capsys):
    said = refused_here(capsys, "run", images=odd, output=tmp_path / "out", model_name="lab_hog", multiprocessing=2)
    good = {"image0", *HANDLED}
    for folder, suffix in SUFFIXES.items():
        assert {name.removesuffix(suffix) for name in contents(tmp_path / "out" / folder, suffix)} == good
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {result["id"] for result in results["images"]} == good
    assert results["failed"].keys() == set(REFUSED)
    assert all(line.isprintable() for line in said.split("\n"))
    assert said.count("\nerror: ") == 1


def test_lists_lose_the_odd_ones_alone(odd, tmp_path, capsys):
    names = [name for name in ("image0", *HANDLED, *REFUSED) if "\n" not in name]
    (tmp_path / "list.txt").write_bytes(b"".join(os.fsencode(f"{name}.png\r\n") for name in names))
    flags = {"images_list": tmp_path / "list.txt", "images_root": odd, "model_name": "lab_hog", "batch_size": 2}
    said = refused_here(capsys, "extract_features", **flags, output_dir=tmp_path / "features")
    assert f"{len(REFUSED) - 1} of {len(names)} images failed" in said
    made = {name.removesuffix(".pth") for name in contents(tmp_path / "features", ".pth")}
    assert made == {"image0", *HANDLED}


def test_localize_writes_below_its_folder_alone(tmp_path, capsys):
    voc = tmp_path / "data" / "VOC2012" / "VOCdevkit" / "VOC2012"
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    write_pictures(voc / "JPEGImages", 0)
    for place in (voc / "JPEGImages" / "a.jpg", tmp_path / "elsewhere.jpg"):
        Image.new("RGB", (40, 30)).save(place)
    outside = f"{os.path.relpath(tmp_path, voc / 'JPEGImages')}/elsewhere"
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text(f"a\n{outside}\n")
    flags = as_flags(dataset="VOC12", data_root=tmp_path / "data", trivial="whole", output_dir=tmp_path / "out")
    before = contents(tmp_path, "jpg")
    with pytest.raises(SystemExit, match="1 of 2 images could not be handled"):
        localize([*flags, "--no_evaluation", "--name=x", "--visualize=pred"])
    assert "elsewhere' is no plain name" in capsys.readouterr().err
    assert contents(tmp_path, "jpg") == before
    boxes = tmp_path / "out" / "VOC12_trainval" / "x"
    assert contents(boxes / "boxes", ".box.json").keys() == {"a.box.json"}
    with open(boxes / "boxes.csv") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["a.jpg"]
    assert [path.name for path in tmp_path.rglob("*elsewhere*")] == ["elsewhere.jpg"]


@pytest.mark.parametrize("name", ["../a.jpg", "sub/../../a.jpg", "/etc/passwd", "a\0.jpg"])
def test_entries_that_lead_elsewhere(name, tmp_path):
    root = touch(tmp_path / "root", "sub/b.jpg")
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text(f"sub/b.jpg\n{name}\n")
    with pytest.raises(InputError, match="list.txt"):
        read_images_list(tmp_path / "list.txt", root)
    with pytest.raises(InputError, match="must be a path below"):
        check_entry(name, "the list")


@pytest.mark.parametrize("name", ["", ".", "..", ".a.png.host-1.tmp", "a/b", "/a", "\0", 3, None, "l" * 236, *REFUSED])
def test_ids_that_are_refused(name):
    with pytest.raises(InputError):
        check_id(name)


def test_names_are_printed_in_one_line_and_stay_so():
    shown = printable("a b\x1b[31m\n\xa0\u202e\udcffé")
    assert shown == "a b\\x1b[31m\\n\\xa0\\u202e\\udcffé"
    assert printable(shown) == shown
