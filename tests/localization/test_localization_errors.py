"""What users can mend is said in one line, with status 1; bad images are counted and listed, and the rest goes on."""

import json
import sys
from pathlib import Path

import pytest

from running import run_command, write_pictures
from shared_data import PROJECT, SAMPLES, shared

CHELSEA = SAMPLES / "images" / "chelsea.jpg"


def voc_object(xmin: object = 1, ymin: object = 1, xmax: object = 80, ymax: object = 64) -> str:
    sides = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    texts = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items() if value is not None)
    return f"<object><truncated>0</truncated><difficult>0</difficult><bndbox>{texts}</bndbox></object>"


def annotation(*objects: str) -> str:
    return f"<annotation>{''.join(objects)}</annotation>"


# --- bad data ---


def test_bad_images_are_counted_and_listed(localization, voc):
    """The figure is over the images that can be evaluated; each other one is named with the file to mend."""
    root = voc(
        {
            "good": annotation(voc_object()),
            "missed": annotation(voc_object(xmax=9, ymax=9)),
            "field": annotation(voc_object(xmax=None)),
            "outside": annotation(voc_object(), voc_object(xmax=200)),
            "empty": annotation(),
            "none": None,
            "gone": annotation(voc_object()),
            "broken": annotation(voc_object()),
        }
    )
    folder = root / "VOC2007" / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages" / "gone.jpg").unlink()
    (folder / "JPEGImages" / "broken.jpg").write_bytes(b"no image")
    found = localization("--data_root", root, "--set", "test", "--trivial", "whole")
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
    hard = voc_object().replace("<truncated>0", "<truncated>1")
    root = voc(
        {"both": annotation(hard, voc_object(xmax=9)), "hard": annotation(hard), "easy": annotation(voc_object())}
    )
    flags = ["--data_root", root, "--set", "test", "--trivial", "whole"]
    assert localization(*flags).summary["correct"] == 3
    found = localization(*flags, "--no_hard", name="no_hard")
    assert found.error is None
    assert found.summary["correct"] == 1
    assert set(found.rows) == {"both.jpg", "easy.jpg"}
    assert found.summary["without_objects"] == ["hard"]


def test_no_image_is_left(localization, voc):
    found = localization("--data_root", voc({"a": annotation()}), "--set", "test", "--trivial", "whole")
    assert found.error == "error: no image has an annotated object"
    assert not (found.folder / "results.txt").exists()
    found = localization("--data_root", voc({"b": None}), "--set", "test", "--trivial", "whole", name="other")
    assert found.error.startswith("error: 1 of 1 images could not be handled")
    assert "corloc" not in found.summary


def test_coco20k_of_real_photographs(localization, tmp_path):
    """Eight of the 64, one of them without its file, and one that the annotations lack."""
    source = shared() / "data" / "COCO"
    root = tmp_path / "data" / "COCO"
    (root / "images" / "train2014").mkdir(parents=True)
    (root / "annotations").mkdir()
    content = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"COCO_train2014_{image['file_name']}"
    names = [image["file_name"] for image in content["images"][:8]]
    for name in names[1:]:
        (root / "images" / "train2014" / name).symlink_to(
            source / "images" / "train2017" / name.removeprefix("COCO_train2014_")
        )
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    (root / "coco_20k_filenames.txt").write_text("\n".join([*names, "COCO_train2014_000000999999.jpg"]))
    found = localization("--dataset", "COCO20k", "--data_root", tmp_path / "data", "--arch", "lab_hog", "--eigenseg")
    assert found.folder.parent.name == "COCO20k_train"
    assert set(found.rows) <= set(names[1:])
    assert set(found.summary["problems"]) == {Path(names[0]).stem, "COCO_train2014_000000999999"}
    assert len(found.rows) + len(found.summary["without_objects"]) == 7
    assert found.summary["problems"][Path(names[0]).stem].startswith("no such image: ")
    assert found.error.startswith("error: 2 of ")


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
        (["--data_root", "nowhere"], "cannot read VOC07's list of images"),
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
    found = localization(*flags)
    assert found.error.startswith("error: ")
    assert message in found.error
    assert "\n" not in found.error
    assert "CorLoc" not in found.said


def test_a_head_that_is_not_there(localization, tmp_path):
    images = write_pictures(tmp_path / "images", 1)
    flags = ("--dataset", "folder", "--images_root", images, "--arch", "test_vit", "--weights", "random")
    found = localization(*flags, "--dinoseg", "--dinoseg_head", 6)
    assert found.summary["problems"]["image0"].endswith("no head 6: the backbone has 2, counted from 0")


def test_the_results_cannot_be_written(localization, tmp_path):
    (tmp_path / "results").write_text("a file where a folder should be")
    found = localization("--image_path", CHELSEA, "--trivial", "whole")
    assert found.error.startswith(f"error: cannot create the folder {tmp_path / 'results'}")


def test_in_a_process_of_its_own():
    """No traceback, one line, status 1; help with status 0; from the repository's root, and at once."""
    script = "object-localization/main.py"
    for flags, status in ((["--eigensg"], 1), (["--dataset", "COCO20k", "--set", "val"], 1), (["--help"], 0)):
        result = run_command([sys.executable, script, *flags], cwd=PROJECT)
        assert result.returncode == status
        assert len(result.stderr.splitlines()) == status
        assert ("--precomputed_eigs_dir" in result.stdout) == (status == 0)
