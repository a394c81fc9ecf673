"""object-segmentation/main.py: from folders to table, results.json, per_image.csv and contact sheets."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from running import run_command
from shared_data import PROJECT, SAMPLES

FOLDER = PROJECT / "object-segmentation"
SAMPLE_SETTINGS = (
    f"data_root={SAMPLES}",
    f"predictions.root={SAMPLES.parent}",
    "predictions.run=masks",
    "data=[{name: samples, images_dir: images, labels_dir: masks}]",
)
ENTRY = "{name: a, images_dir: b, labels_dir: c}"
LEFT, TOP = np.array([[1, 0], [1, 0]]), np.array([[1, 1], [0, 0]])


def test_the_truth_as_prediction_is_perfect(evaluate: Callable, capsys: pytest.CaptureFixture[str]):
    done = evaluate(*SAMPLE_SETTINGS, "visualize=3")
    scores = done.scores("samples")
    assert scores == {"images": 4, "accuracy": 1, "miou": 1, "f_beta": 1, "images_without_object": 0}
    assert [row["id"] for row in done.rows] == ["astronaut", "chelsea", "coffee", "rocket"]
    assert (done.rows[1]["width"], done.rows[1]["height"]) == ("451", "300")
    assert [path.name for path in (done.folder / "sheets").iterdir()] == ["samples_1.png"]
    table = capsys.readouterr().out
    assert table.splitlines()[0] == f"masks in {SAMPLES.parent}"
    assert table.splitlines()[2].split() == ["samples", "4", "100.00", "100.00", "100.00"]
    assert table.splitlines()[-1] == f"results -> {done.folder}"


def test_figures_by_hand(evaluate: Callable, folders):
    folders.add("a", LEFT, LEFT)  # perfect
    folders.add("b", LEFT, TOP)  # one pixel of three in the union; precision and recall 1/2
    folders.add("c", LEFT, LEFT * 0)  # nothing found
    done = evaluate(*folders.overrides, "predictions.downsample=null")
    scores = done.scores()
    assert scores["images"] == 3
    assert scores["accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert scores["miou"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert scores["f_beta"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert "f_max" not in scores
    assert done.rows[1] == {
        "data_set": "mine",
        "id": "b",
        "width": "2",
        "height": "2",
        "accuracy": "0.500000",
        "iou": "0.333333",
        "f_beta": "0.500000",
    }
    assert done.results["settings"]["predictions"]["downsample"] is None


@pytest.mark.parametrize(("enlarge", "miou"), [("patches", 0.854), ("released", 0.820)])
def test_predictions_at_patches(evaluate: Callable, folders, enlarge: str, miou: float):
    """A disc, and the patches that lie in it by more than half; resized twice, its boundary moves by a pixel."""
    truth = np.hypot(*(np.indices((79, 79)) - 39.5)) < 16
    folders.add("a", truth, truth[:72, :72].reshape(9, 8, 9, 8).mean(axis=(1, 3)) > 0.5)
    done = evaluate(*folders.overrides, "predictions.downsample=8", f"enlarge={enlarge}")
    assert done.scores()["miou"] == pytest.approx(miou, abs=0.0005)
    assert done.results["settings"]["enlarge"] == enlarge


def test_crop_and_image_size(evaluate: Callable, folders):
    truth, prediction = np.zeros((20, 60), bool), np.zeros((20, 60), bool)
    truth[:, 20:40] = True
    prediction[:, 25:] = True
    folders.add("a", truth, prediction)
    entry = "data=[{name: mine, images_dir: images, labels_dir: masks, crop: true, image_size: %s}]"
    done = evaluate(*folders.overrides, entry % "null")
    assert done.scores()["miou"] == 15 / 20
    assert (done.rows[0]["width"], done.rows[0]["height"]) == ("20", "20")
    done = evaluate(*folders.overrides, entry % "4", "visualize=1")
    assert done.scores()["miou"] == 3 / 4
    assert (done.rows[0]["width"], done.rows[0]["height"]) == ("4", "4")


def test_soft_maps(evaluate: Callable, folders, capsys: pytest.CaptureFixture[str]):
    for name, level in (("a", 60), ("b", 120)):
        folders.add(name, LEFT, LEFT)
        folders.write("mine/soft", name, np.where(LEFT, 200, level))
    done = evaluate(*folders.overrides, "predictions.soft_run=soft")
    assert done.scores()["f_max"] == 1
    assert 120 <= round(255 * done.scores()["f_max_threshold"]) < 200
    assert [row["f_max"] for row in done.rows] == ["1.000000", "1.000000"]
    assert "max F-beta" in capsys.readouterr().out


@pytest.fixture
def four_data_sets(folders) -> Path:
    """One image in each of the data sets of the config, in their layouts."""
    truth = np.zeros((4, 8), bool)
    truth[:, :4] = True
    for images, masks, folder, name in (
        ("CUB_200_2011/test_images/001.finch", "CUB_200_2011/test_segmentations/001.finch", "CUB_200_2011", "finch_1"),
        ("DUT_OMRON/DUT-OMRON-image", "DUT_OMRON/pixelwiseGT-new-PNG", "DUT_OMRON", "im001"),
        ("DUTS/DUTS-TE/DUTS-TE-Image", "DUTS/DUTS-TE/DUTS-TE-Mask", "DUTS", "ILSVRC_1"),
        ("ECSSD/images", "ECSSD/ground_truth_mask", "ECSSD", "0001"),
    ):
        folders.write(images, name, np.zeros((4, 8, 3)), suffix=".jpg")
        folders.write(masks, name, truth * 255)
        run = f"{folder}/single_region_segmentation/crf/laplacian_dino_vits16"
        folders.write(run, name, np.ones((4, 8)))
    return folders.root


def test_the_four_data_sets_in_their_layouts(
    evaluate: Callable, four_data_sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OBJECT_SEGMENTATION_DATA_ROOT", str(four_data_sets))
    done = evaluate("strict=true", "visualize=1")
    assert list(done.results["data_sets"]) == ["CUB", "DUT_OMRON", "DUTS", "ECSSD"]
    assert all(done.scores(name)["miou"] == 0.5 for name in done.results["data_sets"])
    widths = {row["data_set"]: row["width"] for row in done.rows}
    assert widths == {"CUB": "4", "DUT_OMRON": "8", "DUTS": "8", "ECSSD": "8"}  # CUB is cropped
    assert capsys.readouterr().out.splitlines()[1].split() == ["data", "set", "images", "mIoU", "accuracy", "F-beta"]


def test_absent_data_sets_are_named(
    evaluate: Callable, refused: Callable, four_data_sets: Path, capsys: pytest.CaptureFixture[str]
):
    root = f"data_root={four_data_sets}"
    shutil.rmtree(four_data_sets / "CUB_200_2011" / "test_images")
    shutil.rmtree(four_data_sets / "DUTS" / "single_region_segmentation")
    assert "CUB: no such folder: " in refused(root, "strict=true")
    assert "DUTS/single_region_segmentation" in refused(root, "strict=true")
    done = evaluate(root)
    assert list(done.results["data_sets"]) == ["DUT_OMRON", "ECSSD"]
    assert list(done.results["absent"]) == ["CUB", "DUTS"]
    assert "CUB        skipped: no such folder: " in capsys.readouterr().out
    shutil.rmtree(done.folder)
    assert "no data set has photographs" in refused("data_root=/nowhere")


def test_contact_sheets(evaluate: Callable, folders):
    for index in range(9):
        folders.add(f"{index}", LEFT, TOP)
    for count, sheets in ((8, ["mine_1.png", "mine_2.png"]), (3, ["mine_1.png"]), (100, ["mine_1.png", "mine_2.png"])):
        done = evaluate(*folders.overrides, f"visualize={count}")
        assert sorted(path.name for path in (done.folder / "sheets").iterdir()) == sheets
    with Image.open(done.folder / "sheets" / "mine_1.png") as sheet:
        assert sheet.mode == "RGB"


def test_notes_and_how_predictions_were_made(evaluate: Callable, folders, capsys: pytest.CaptureFixture[str]):
    folders.add("a", LEFT, LEFT)
    folders.add("b", LEFT * 0, LEFT)
    folders.write("mine/run", "other", LEFT)
    (folders.root / "mine" / "run" / "stage.json").write_text('{"command": "x", "arguments": {"threshold": 0.0}}')
    done = evaluate(*folders.overrides)
    assert done.results["predictions_made_with"] == {"mine": {"threshold": 0.0}}
    assert done.scores()["images_without_object"] == 1
    notes = capsys.readouterr().err
    assert "1 of the predictions in " in notes
    assert "1 true masks of mine show no object" in notes


def test_files_that_do_not_fit_are_named(refused: Callable, folders):
    folders.add("a", LEFT, LEFT)
    folders.add("b", LEFT)
    assert "mine/run/b.png of the image" in refused(*folders.overrides)
    folders.write("mine/run", "b", np.zeros((3, 2)))
    assert "mine/run/b.png has 2x3 pixels, but its true mask has 2x2" in refused(*folders.overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("predictions.rot=x", "there is no setting 'predictions.rot' (did you mean root?)"),
        ("visualize=many", "visualize: Value 'many'"),
        ("visualize=-1", "visualize=-1: must be at least 0"),
        ("predictions.downsample=0", "downsample=0: must be at least 1"),
        ("enlarge=stretched", "no enlarge 'stretched'; known are patches, released"),
        ("data=[]", "no data set to evaluate"),
        ("data=[{name: a, images_dir: b}]", "data[0].labels_dir"),
        ("data=[{name: a, images_dir: b, labels_dir: c, crops: true}]", "no setting 'crops'"),
        ("data=[{name: a/b, images_dir: b, labels_dir: c}]", "'a/b' cannot be the name"),
        ("data=[{name: a, images_dir: b, labels_dir: c, image_size: 0}]", "image_size=0: must be at least 1"),
        (f"data=[{ENTRY}, {ENTRY}]", "two data sets are called a"),
    ],
)
def test_bad_overrides(refused: Callable, folders, override: str, message: str):
    folders.add("a", LEFT, LEFT)
    assert message in refused(*folders.overrides, override)


# as users start it


def test_from_its_folder_with_a_mistake_that_is_one_line_and_leaves_nothing():
    paths = ("data_root=../data/samples", "predictions.root=../data", "predictions.run=absent", "hydra.run.dir=a/b")
    result = run_command([sys.executable, "main.py", *SAMPLE_SETTINGS, *paths], cwd=FOLDER)
    assert re.fullmatch("error: .*no such folder: ../data/samples/absent\n", result.stderr)
    assert result.returncode == 1
    assert not (FOLDER / "a").exists()
