"""Evaluation: figures worked out by hand, recorded matches, what does not fit, as users start it."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from running import error_line, run_script_here
from semanticseg.evaluation import count
from semanticseg.pseudolabels import pair
from semanticseg.settings import Data, Loader, Transform
from shared_data import PROJECT, reference


def test_the_truth_as_label_maps_is_perfect(evaluate, voc2012: Path, tmp_path: Path, capsys):
    masks = voc2012 / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    (tmp_path / "val.txt").write_text("\n".join(sorted(path.stem for path in masks.iterdir())[::10]))
    result = evaluate(f"data.root={voc2012}", f"segments_dir={masks}", "data.val_list=val.txt", "visualize=3")
    assert (result["miou"], result["accuracy"]) == (1, 1)
    assert result["matching"] == [[number, number] for number in range(21)]
    assert result["matched_by"] == "hungarian"
    assert result["images"] == 40
    present = [name for name, entry in result["classes"].items() if entry["iou"] == 1]
    assert 10 < len(present) < 21
    assert result["miou_all_classes"] == pytest.approx(len(present) / 21)
    printed = capsys.readouterr().out
    assert "background   100.00" in printed
    assert "matching='\"[(0, 0), (1, 1), " in printed
    assert printed.splitlines()[-1] == f"results -> {tmp_path / 'results'}"


def test_nothing_but_background(evaluate, voc):
    """12 of 20 pixels are background, 5 cat, 2 dog, 1 void: IoU 12/19 and twice 0."""
    truth = np.zeros((4, 5), int)
    truth[0], truth[1, :2], truth[3, 4] = 8, 12, 255
    voc.add("a", truth, np.zeros((4, 5)))
    result = evaluate(*voc.settings)
    assert result["classes"]["background"]["iou"] == pytest.approx(12 / 19)
    assert result["classes"]["cat"]["iou"] == result["classes"]["dog"]["iou"] == 0
    assert result["miou"] == pytest.approx(12 / 19 / 3)
    assert result["miou_all_classes"] == pytest.approx(12 / 19 / 21)
    assert result["accuracy"] == pytest.approx(12 / 19)
    assert result["classes"]["cat"]["share"] == pytest.approx(5 / 19)


def test_figures_by_hand_over_two_images(evaluate, voc):
    # cluster 1 covers 3 of 4 pixels of class 8 and 1 of background; cluster 2 both pixels of class 3
    voc.add("a", [[8, 8, 8, 8]], [[1, 1, 1, 0]])
    voc.add("b", [[0, 0, 3, 3]], [[0, 1, 2, 2]])
    result = evaluate(*voc.settings)
    assert result["matching"][1:3] == [[1, 8], [2, 3]]
    assert result["classes"]["cat"]["iou"] == pytest.approx(3 / 5)
    assert result["classes"]["bird"]["iou"] == 1
    assert result["classes"]["background"]["iou"] == pytest.approx(1 / 3)
    assert result["miou"] == pytest.approx((3 / 5 + 1 + 1 / 3) / 3)
    assert result["accuracy"] == pytest.approx(6 / 8)


def test_label_maps_are_enlarged_as_asked(evaluate, voc):
    """1 x 2 patches of 16 on 20 x 41 pixels: the cat's patch is the left one, 16 columns; stretched it has 21."""
    truth = np.zeros((20, 41), int)
    truth[:16, :16] = 8
    voc.add("a", truth, [[1, 0]])
    for enlarge, found in (("patches", 16 * 16 + 4 * 21), ("released", 20 * 21)):
        result = evaluate(*voc.settings, f"enlarge={enlarge}")
        assert result["classes"]["cat"]["iou"] == pytest.approx(16 * 16 / found)
        assert result["settings"]["enlarge"] == enlarge


def test_void_never_counts(evaluate, voc):
    voc.add("a", [[0, 0, 8, 8]], [[0, 0, 1, 1]])
    before = evaluate(*voc.settings)
    voc.add("b", [[255, 255]], [[1, 0]])
    voc.add("c", [[255, 255]], [[255, 20]])
    after = evaluate(*voc.settings)
    assert {**before, "images": 3} == after
    assert after["miou"] == 1


@pytest.mark.parametrize(("clusters", "kind"), [(6, "hungarian"), (9, "majority")])
def test_recorded_matches(evaluate, voc, clusters: int, kind: str):
    numbers = np.load(reference("regions.npz"))
    recorded = json.loads(reference("regions.json").read_text())
    prediction, truth = numbers[f"matching/pred{clusters}"], numbers["matching/gt"]
    for index in range(7):
        voc.add(f"{index}", *(np.array_split(labels.ravel(), 7)[index][None] for labels in (truth, prediction)))
    result = evaluate(*voc.settings, "data.num_classes=5", f"data.num_clusters={clusters - 1}")
    assert result["matching"] == recorded[f"matching/{kind}"]
    assert result["matched_by"] == kind
    assert result["miou_all_classes"] == pytest.approx(recorded[f"matching/{kind}_miou"], rel=1e-12)
    assert list(result["classes"]) == [str(number) for number in range(6)]


def test_a_match_is_passed_on(evaluate, voc, capsys):
    voc.add("a", [[8, 8, 12, 0]], [[1, 1, 2, 0]])
    found = evaluate(*voc.settings)
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("matching="))
    voc.add("a", [[8, 8, 12, 0]], [[2, 2, 1, 0]])  # would be matched the other way round
    for setting in (printed.replace("'", ""), "matching=results/results.json"):
        again = evaluate(*voc.settings, setting)
        assert again["matching"] == found["matching"]
        assert again["matched_by"] == "given"
        assert again["miou"] == pytest.approx(1 / 3)
    assert evaluate(*voc.settings, "matching=identity")["classes"]["cat"]["iou"] == 0


def test_over_several_seeds(evaluate, voc, capsys):
    voc.add("a", [[8, 8, 8, 0]])
    for seed, labels in ((0, [[1, 1, 1, 0]]), (3, [[2, 2, 0, 0]])):
        voc.write(voc.root / f"seed_{seed}" / "a.png", np.array(labels))
    result = evaluate(voc.settings[0], f"segments_dir={voc.root}/seed_%", "seeds=[0,3]")
    mious = [1, (2 / 3 + 1 / 2) / 2]
    assert [result["seeds"][seed]["miou"] for seed in ("0", "3")] == pytest.approx(mious)
    assert result["mean"]["miou"] == pytest.approx(np.mean(mious))
    assert result["standard_deviation"]["miou"] == pytest.approx(np.std(mious, ddof=1))
    assert "mIoU 79.17 +- 29.46" in capsys.readouterr().out
    again = (f"segments_dir={voc.root}/seed_3", "matching=results/seed3/results.json")  # of a seed, as of one alone
    assert evaluate(voc.settings[0], *again)["miou"] == result["seeds"]["3"]["miou"]
    assert "of an evaluation (of a seed)" in error_line(evaluate, *voc.settings, "matching=results/seeds.json")


def test_pictures(evaluate, voc, tmp_path: Path):
    for index in range(5):
        voc.add(f"{index}", np.full((40, 60), 8), np.full((40, 60), 3))
    evaluate(*voc.settings, "visualize=3")
    drawn = sorted((tmp_path / "results" / "overlays").iterdir())
    assert [path.stem for path in drawn] == ["0", "2", "4"]
    with Image.open(drawn[0]) as sheet:
        assert sheet.mode == "RGB"
        pixels = np.asarray(sheet).reshape(-1, 3)
    cat = np.round(0.3 * 99 + 0.7 * np.array([64, 0, 0]))  # VOC's colour of cats over the grey photograph
    painted = (np.abs(pixels - cat) <= 2).all(axis=1).mean()
    assert painted > 0.3  # truth and, renamed, prediction
    assert (tmp_path / "results" / "confusion.png").is_file()
    evaluate(*voc.settings, "visualize=1")
    assert len(list((tmp_path / "results" / "overlays").iterdir())) == 1


def test_crf_before_evaluation(evaluate, voc, tmp_path: Path):
    """A light square on dark ground, its label map at patches: the CRF finds the edge."""
    truth = np.zeros((64, 64), int)
    truth[20:50, 20:50] = 8
    image = np.where(truth[..., None] > 0, 230, 20) * np.ones(3)
    voc.add("a", truth, image=image)
    voc.write(voc.segments / "a.png", np.kron([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], [[1]]))
    coarse = evaluate(*voc.settings)
    sharp = evaluate(*voc.settings, "crf=true", "crf_processes=0")
    assert coarse["miou"] < 0.9
    assert sharp["miou"] > 0.97
    assert sharp["segments"]["folder"].endswith("results/crf")
    stage = json.loads((tmp_path / "results" / "crf" / "stage.json").read_text())
    assert stage["arguments"]["num_classes"] == 21
    assert evaluate(*voc.settings, "crf=true", "crf_dir=sharp", "crf_processes=0")["miou"] == sharp["miou"]
    assert (tmp_path / "sharp" / "a.png").is_file()


def test_files_that_do_not_fit_are_named(evaluate, voc):
    voc.add("a", np.zeros((32, 48)), np.zeros((32, 48)))
    voc.add("b", np.zeros((32, 48)))
    assert "segmaps/b.png is missing" in error_line(evaluate, *voc.settings)
    for labels, message in (
        (np.zeros((48, 32)), "b.png has 32x48 cells, which fits no image of 48x32"),
        (np.full((2, 3), 21), "b.png holds the cluster number 21, but they end at 20"),
        (np.full((2, 3), 255), "segmaps/b.png: cluster number 255 is not among the 21"),
        (np.zeros((2, 3, 3)), "b.png is a picture of mode RGB, not a label map"),
    ):
        voc.write(voc.segments / "b.png", labels)
        assert message in error_line(evaluate, *voc.settings)
    voc.write(voc.segments / "b.png", np.zeros((2, 3)))
    assert evaluate(*voc.settings)["images"] == 2
    voc.write(voc.voc / "SegmentationClass" / "b.png", np.full((32, 48), 21))
    assert "SegmentationClass/b.png: class number 21 is not" in error_line(evaluate, *voc.settings)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("segments_dir=null", "segments_dir=... is missing"),
        ("segments_dir=/nowhere", "segments_dir: no such folder: /nowhere"),
        ("segment_dir=x", "there is no setting 'segment_dir' (did you mean segments_dir?)"),
        ("data.num_clusters=300", "num_clusters=300: must be from 1 to 254"),
        ("data.val_list=/none.txt", "cannot read the list of ids /none.txt"),
        ("data.class_names=[a,b]", "has 2 names, but there are 21 classes"),
        ("matching='[(0, 0), (1, 99)]'", "(1, 99) is beyond"),
        ("matching='[(0, 0)]'", "the match says nothing about the clusters 1"),
        ("matching=[(0,0)]", "needs quotes of its own"),
        ("matching=everything", "it looks like"),
        ("enlarge=stretched", "no enlarge 'stretched'; known are patches, released"),
        ("seeds=[0,0]", "different numbers"),
        ("seeds=[0,1]", "segments_dir needs a %"),
        ("visualize=-1", "at least 0"),
    ],
)
def test_bad_overrides(evaluate, voc, tmp_path: Path, override: str, message: str):
    voc.add("a", [[0, 8]], [[0, 1]])
    assert message in error_line(evaluate, *voc.settings, override)
    assert not list(tmp_path.glob("results/*"))


def test_memory_does_not_grow_with_the_images(voc):
    """Of 60 images no more is held than of 15, and never all their pixels."""
    size, random = (300, 400), np.random.default_rng(0)
    for index in range(60):
        labels = random.integers(0, 21, (3, 4)).repeat(100, 0).repeat(100, 1)
        voc.add(f"{index}", labels, labels)
    masks = voc.voc / "SegmentationClass"
    data = Data("", "", str(masks), "", Loader(1, 0), Transform(8, 8), 20, 20)
    peaks = []
    for count_of_images in (15, 60):
        files = pair([str(index) for index in range(count_of_images)], None, masks, voc.segments)
        tracemalloc.start()
        assert count(files, data).sum() == count_of_images * size[0] * size[1]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 60 * size[0] * size[1]


# as users start it


def test_the_published_name_from_the_repository(voc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    voc.add("a", [[0, 8]], [[0, 1]])
    script = PROJECT / "semantic-segmentation" / "eval.py"
    run_script_here(monkeypatch, script, *voc.settings, f"hydra.run.dir={tmp_path}", "visualize=0")
    assert capsys.readouterr().out.splitlines()[-1] == f"results -> {tmp_path}"
    assert json.loads((tmp_path / "results.json").read_text())["miou"] == 1


def test_help_explains(evaluate, train, capsys):
    for start_script, script in ((evaluate, "main.py"), (train, "train.py")):
        with pytest.raises(FileNotFoundError):  # nothing ran, so there are no results
            start_script("--help")
        shown = capsys.readouterr().out
        assert f"python {script}" in shown
        assert "\nname: " in shown
