"""What users can mend is said in one line, with status 1; bad images are counted and listed, and the rest goes on."""

import json
import sys

import pytest

from localization_data import link_coco20k, voc_annotation, voc_object
from running import run_command
from shared_data import PROJECT, SAMPLES

CHELSEA = SAMPLES / "images" / "chelsea.jpg"


# --- bad data ---


def test_bad_images_are_counted_and_listed(localization, voc):
    """The figure is over the images that can be evaluated; each other one is named with the file to mend."""
    root = voc(
        {
            "good": voc_annotation(voc_object()),
            "missed": voc_annotation(voc_object(xmax=9, ymax=9)),
            "field": voc_annotation(voc_object(xmax=None)),
            "outside": voc_annotation(voc_object(), voc_object(xmax=200)),
            "empty": voc_annotation(),
            "none": None,
            "gone": voc_annotation(voc_object()),
            "broken": voc_annotation(voc_object()),
        }
    )
    folder = root / "VOC2007" / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages" / "gone.jpg").unlink()
    (folder / "JPEGImages" / "broken.jpg").write_bytes(b"no image")
    found = localization("--data_root", root, "--set", "test", "--trivial", "whole", fails=True)
    notes = folder / "Annotations"
    summary = found.summary
    assert summary["problems"] == {
        "field": f"{notes / 'field.xml'}: object 1 has no number in bndbox/xmax",
        "none": f"no such annotation: {notes / 'none.xml'}",
        "gone": f"no such image: {folder / 'JPEGImages' / 'gone.jpg'}",
        "broken": summary["problems"]["broken"],
        "outside": f"the box (0, 0, 200, 64) of {notes / 'outside.xml'} lies outside of the image, which has 80x64 "
        "pixels",
    }
    assert summary["problems"]["broken"].startswith(
        f"{folder / 'JPEGImages' / 'broken.jpg'} cannot be read as an image"
    )
    assert summary["without_objects"] == ["empty"]
    assert set(found.rows) == {"good.jpg", "missed.jpg"}
    assert "CorLoc 50.00 % (1 of 2 images)" in found.said
    assert "1 images without objects are left out: empty" in found.said
    assert found.error == f"error: 5 of 7 images could not be handled: see {found.folder / 'results.json'}"
    assert (found.folder / "results.txt").read_text() == "corloc,50.0,,\n"
    for image_id in summary["problems"]:
        assert sum(f" {image_id} " in line for line in found.complained.splitlines()) == 1


def test_no_hard(localization, voc):
    hard, easy = voc_annotation(voc_object(truncated=1)), voc_annotation(voc_object())
    root = voc({"both": voc_annotation(voc_object(truncated=1), voc_object(xmax=9)), "hard": hard, "easy": easy})
    flags = ["--data_root", root, "--set", "test", "--trivial", "whole"]
    assert localization(*flags).summary["correct"] == 3
    found = localization(*flags, "--no_hard", name="no_hard")
    assert found.summary["correct"] == 1
    assert set(found.rows) == {"both.jpg", "easy.jpg"}
    assert found.summary["without_objects"] == ["hard"]


def test_no_image_is_left(localization, voc):
    flags = ["--set", "test", "--trivial", "whole"]
    found = localization("--data_root", voc({"a": voc_annotation()}), *flags, fails=True)
    assert found.error == "error: no image has an annotated object"
    assert not (found.folder / "results.txt").exists()
    found = localization("--data_root", voc({"b": None}), *flags, name="other", fails=True)
    assert found.error.startswith("error: 1 of 1 images could not be handled")
    assert "corloc" not in found.summary


def test_coco20k(localization, tmp_path):
    """Eight photographs: one without its file, one whose box has no numbers, and one that the annotations lack."""
    root = link_coco20k(tmp_path / "data") / "COCO"
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    boxes = {entry["image_id"]: entry for entry in content["annotations"] if not entry["iscrowd"]}
    ids = [image["id"] for image in content["images"] if image["id"] in boxes][:8]
    del boxes[ids[1]]["bbox"]
    path.write_text(json.dumps(content))
    names = [f"COCO_train2014_{number:012d}" for number in (*ids, 999999)]
    (root / "images" / "train2014" / f"{names[0]}.jpg").unlink()
    (root / "coco_20k_filenames.txt").write_text("\n".join(names))
    flags = ["--dataset", "COCO20k", "--data_root", tmp_path / "data", "--arch", "lab_hog", "--eigenseg"]
    found = localization(*flags, fails=True)
    assert found.folder.parent.name == "COCO20k_train"
    assert found.error.startswith("error: 3 of 9 images could not be handled")
    assert set(found.rows) == {f"{name}.jpg" for name in names[2:8]}
    problems = found.summary["problems"]
    assert problems[names[0]].startswith("no such image: ")
    assert problems[names[1]].endswith(f"of {names[1]}.jpg has no bbox of four numbers")
    assert f"has no image {names[8]}.jpg, which {root / 'coco_20k_filenames.txt'} names" in problems[names[8]]


# --- flags ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eigensg"], "no flag --eigensg (did you mean --eigenseg?)"),
        (["--nonsense=3"], "no flag --nonsense=3"),
        (["extra"], "no flag extra"),
        (["--dataset", "VOC7"], "argument --dataset: invalid choice: 'VOC7'"),
        (["--k_patches", "many"], "argument --k_patches: "),
        (["--k_patches", "0"], "k_patches=0: must be at least 1"),
        (["--num_workers", "-1"], "num_workers=-1: must be at least 0"),
        (["--save_predictions", "maybe"], "argument --save_predictions: takes True or False, not 'maybe'"),
        (["--eigenseg", "--tokencut"], "argument --tokencut: not allowed with argument --eigenseg"),
        (["--name"], "argument --name: expected one argument"),
        (["--dataset", "COCO20k", "--set", "val"], "--set val: COCO20k is a part of train2014"),
        (["--precomputed_eigs_dir", "x"], "--precomputed_eigs_dir is for --eigenseg"),
        (["--eigenseg", "--precomputed_eigs_dir", "a", "--precomputed_features_dir", "b"], "not both"),
        (["--eigenseg", "--precomputed_eigs_dir", "nowhere"], "no such folder: nowhere"),
        (["--precomputed_features_dir", "."], "no *.pth file in ."),
        (["--image_path", "nowhere.jpg"], "no such image: nowhere.jpg"),
        (["--image_path", CHELSEA, "--arch", "nonsense"], "no backbone 'nonsense'; known are dino_vits16"),
        (["--image_path", CHELSEA, "--patch_size", "7"], "no vit_small with patches of 7 pixels: --patch_size 16 or 8"),
        (["--image_path", CHELSEA, "--arch", "vit_tiny"], "DINO published no weights of vit_tiny"),
        (["--image_path", CHELSEA, "--arch", "resnet50", "--tokencut"], "--arch resnet50 is for LOST alone"),
        (["--image_path", CHELSEA, "--arch", "lab_hog", "--dinoseg"], "lab_hog has no blocks"),
        (["--image_path", CHELSEA, "--weights", "nowhere.pth"], "no such weights file: nowhere.pth"),
        (["--image_path", CHELSEA, "--device", "nonsense"], "no device 'nonsense' here"),
        (["--image_path", __file__, "--trivial", "whole"], "test_localization_errors.py cannot be read as an image"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(localization, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    found = localization(*flags, fails=True)
    assert found.error.startswith("error: ")
    assert message in found.error
    assert "\n" not in found.error
    assert "CorLoc" not in found.said


def test_the_results_cannot_be_written(localization, tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be")
    found = localization("--image_path", CHELSEA, "--trivial", "whole", fails=True)
    assert found.error.startswith(f"error: cannot create the folder {tmp_path / 'results'}")


def test_in_a_process_of_its_own():
    """No traceback, one line, status 1; help with status 0; from the repository's root, and at once."""
    script = "object-localization/main.py"
    for flags, status in ((["--eigensg"], 1), (["--help"], 0)):
        result = run_command([sys.executable, script, *flags], cwd=PROJECT)
        assert result.returncode == status
        assert len(result.stderr.splitlines()) == status
        assert ("--precomputed_eigs_dir" in result.stdout) == (status == 0)
