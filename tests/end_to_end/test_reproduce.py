"""reproduce.py: every row on shrunken data with stand-in weights, through a mirror."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.models import resnet50

from eagle_layouts import scenes, write_cityscapes, write_cocostuff, write_potsdam
from localization_data import voc_annotation, voc_object
from objectloc.command import read_arguments
from objectloc.localize import data_set
from running import error_line, picture
from shared_data import PROJECT
from spectralseg import doors
from spectralseg.commands import reproduce
from spectralseg.commands.reproduce import MARKS, main, read_rows, summary, table, write_tables
from spectralseg.drawing import charts
from spectralseg.models.backbones import DINO_ADDRESS, SOURCES
from spectralseg.models.resnets import DINO_RESNET50

BOOK = read_rows(None)
STANDINS = {"dino_vits8_300ep": "dino_vits8"}  # of the same shapes
MASKS = {
    "CUB": ("CUB_200_2011/test_images/gull", "CUB_200_2011/test_segmentations/gull"),
    "DUTS": ("DUTS/DUTS-TE/DUTS-TE-Image", "DUTS/DUTS-TE/DUTS-TE-Mask"),
    "DUT_OMRON": ("DUT_OMRON/DUT-OMRON-image", "DUT_OMRON/pixelwiseGT-new-PNG"),
    "ECSSD": ("ECSSD/images", "ECSSD/ground_truth_mask"),
}
SMALLER = {  # what a step of a recipe is told beside, so that it takes a second
    "semantic_segmentation": ("visualize=0",),
    "semantic_segmentation_train": (
        *("max_train_steps=1", "data.loader.batch_size=2", "data.transform.resize_size=64", "visualize=0"),
        *("data.transform.crop_size=64", "data.loader.num_workers=0", "logger=null", "device=cpu"),
    ),
    "eagle_train": (
        *("max_steps=2", "batch_size=2", "num_workers=0", "val_batch_size=2", "step_schedulers=0", "pictures=0"),
        *("res=32", "val_res=32", "dim=16", "logger=null", "device=cpu", "feature_samples=4"),
    ),
    "eagle_eval": ("res=32", "num_workers=0", "batch_size=2", "pictures=0", "device=cpu"),
}


def test_rows_of_the_papers_and_the_tables_of_what_was_measured(tmp_path):
    kinds = [row["recipe"].partition("_")[0] for row in BOOK["rows"].values()]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {"localization": 12, "masks": 4, "semantic": 1, "selftraining": 1, "eagle": 3}
    published = {name: DINO_ADDRESS + str(source.published) for name, source in SOURCES.items()}
    published["dino_resnet50"] = DINO_RESNET50
    assert BOOK["weights"] == {name: published[name] for name in BOOK["weights"]}
    results, page = PROJECT / "docs" / "results", (PROJECT / "README.md").read_text()
    assert (results / "README.md").read_text() == table(BOOK["rows"], results)
    assert page.partition(MARKS[0])[2].partition(MARKS[1])[0] == summary(BOOK["rows"], results)
    for name, row in ((name, row) for name, row in BOOK["rows"].items() if row["recipe"] == "localization"):
        (template,) = row["commands"]
        words = template.format(**row | {"weights": "w"}, data="d", out="o").split()
        _, data, detector = read_arguments(words[1:])
        assert name == f"{data.dataset.lower()}-{detector.mode}"
    noted = {"measured": {"accuracy": 64.0, "mIoU": 27.123}, "commit": "0123456789", "weights": ["a.pth sha256:00"]}
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "cocostuff-eagle.json").write_text(json.dumps([noted]))
    (tmp_path / "README.md").write_text(f"before\n{MARKS[0]}old\n{MARKS[1]}after\n")
    write_tables(BOOK["rows"], tmp_path / "docs" / "results")
    written = (tmp_path / "README.md").read_text()
    assert "cocostuff 64.00 / 27.12, cityscapes not yet measured, potsdam not yet measured |" in written
    assert (written[:7], written[-6:], "old" in written) == ("before\n", "after\n", False)
    line = "| 64.2 / 27.2 | Kim et al., CVPR 2024 | 64.00 / 27.12 | 0123456 | a.pth sha256:00 |"
    assert line in (tmp_path / "docs" / "results" / "README.md").read_text()


@pytest.fixture(scope="session")
def weights(standin_weights: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in rows.yaml -> a file of the layout of the published one."""

    def find(name: str) -> Path:
        if name != "dino_resnet50":
            return standin_weights(STANDINS.get(name, name)).resolve()
        path = tmp_path_factory.getbasetemp() / f"{name}.pth"
        if not path.exists():
            torch.manual_seed(0)
            torch.save(resnet50().state_dict(), path)
        return path

    return find


@pytest.fixture
def places(tmp_path, monkeypatch) -> list[str]:
    """Flags for folders of the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folders = {"data_root": "data sets", "output_dir": "out, [1]", "results_dir": "docs/results"}
    return [f"--{flag}={tmp_path / folder}" for flag, folder in folders.items()]


def write_data(row: dict, root: Path) -> None:
    """A few small pictures in the layout of a row's data set."""
    if row["needs"].startswith("VOC"):
        voc = root / row["needs"]
        for index in range(4):
            put(voc / "JPEGImages" / f"{index}.jpg", picture(index))
            put(voc / "SegmentationClass" / f"{index}.png", truth(index))
            put(voc / "Annotations" / f"{index}.xml", voc_annotation(voc_object()))
        put(voc / "ImageSets" / "Main" / "trainval.txt", "0\n1\n")
        put(voc / "ImageSets" / "Segmentation" / "val.txt", "2\n3\n")
    elif row["needs"] == "COCO":
        names = [f"COCO_train2014_{index:012d}.jpg" for index in range(2)]
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        for index, name in enumerate(names):
            put(root / "COCO" / "images" / "train2014" / name, picture(index))
            content["images"].append({"id": index, "file_name": name, "width": 80, "height": 64})
            box = {"id": index, "image_id": index, "category_id": 1, "bbox": [4, 4, 40, 40], "area": 1600, "iscrowd": 0}
            content["annotations"].append(box)
        put(root / "COCO" / "annotations" / "instances_train2014.json", json.dumps(content))
        put(root / "COCO" / "coco_20k_filenames.txt", "\n".join(names))
    elif row["recipe"] == "masks":
        images, masks = (root / "object-segmentation" / folder for folder in MASKS[row["set"]])
        for index in range(2):
            put(images / f"{index}.jpg", picture(index))
            put(masks / f"{index}.png", truth(index).point(lambda label: 255 * (label > 0)))
    else:
        writer = {"cocostuff": write_cocostuff, "cityscapes": write_cityscapes, "potsdam": write_potsdam}[row["needs"]]
        writer(root, {"train": scenes(3), "val": scenes(2, first=9)})


def truth(index: int) -> Image.Image:
    """Class 8 in the middle."""
    label = np.zeros((64, 80), dtype=np.uint8)
    label[16:48, 16 : 40 + 8 * index] = 8
    return Image.fromarray(label)


def put(path: Path, content: Image.Image | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content) if isinstance(content, str) else content.save(path)


@pytest.fixture
def commands_here(monkeypatch) -> list[str]:
    """The commands of rows run in this process, made smaller; the scripts that were started."""
    real, started = subprocess.run, []

    def run(command: list[str], **options: object) -> object:
        if command[0] != sys.executable:
            return real(command, **options)
        door = command[2].rpartition("; ")[2].removesuffix("()")
        started.append(door)
        data_set.cache_clear()
        more = SMALLER.get(door, ()) if "job_type=generate" not in command else ("device=cpu",)
        monkeypatch.setattr(sys, "argv", [door, *command[3:], *more])
        try:
            getattr(doors, door)()
        except SystemExit as stop:
            return SimpleNamespace(returncode=bool(stop.code))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    monkeypatch.setattr(charts, "_drawn", lambda *_: Image.new("RGB", (1, 1)))  # longer than all the rest
    return started


@pytest.mark.slow
@pytest.mark.parametrize("name", BOOK["rows"])
def test_a_row_from_weights_to_the_noted_figure(name, places, weights, serve, commands_here, tmp_path):
    row = BOOK["rows"][name]
    write_data(row, tmp_path / "data sets")
    rows = {each: BOOK["rows"][each] | {"seeds": [0]} for each in BOOK["rows"]}
    mirrors = [weights(each) for each in row["weights"]]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in mirrors]
    by_http = name in ("voc07-lost", "voc12-selftraining")
    addresses = [serve(path.read_bytes()).address if by_http else f"file://{path}" for path in mirrors]
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(BOOK | {"rows": rows}))
    flags = [name, *places, f"--weights={','.join(addresses)}", f"--sha256={','.join(digests)}"]
    complaint = error_line(main, [*flags, f"--rows={tmp_path / 'rows.yaml'}"])
    assert complaint.startswith(f"error: {name}: ")
    assert complaint.endswith(f"{' and '.join(row['published'])} not met")
    (note,) = json.loads((tmp_path / "docs" / "results" / f"{name}.json").read_text())
    assert [each.partition("sha256:")[2] for each in note["weights"]] == digests
    assert {"commit", "versions", "machine", "seconds", "date"} <= note.keys()
    assert note["measured"].keys() == row["published"].keys()
    assert len(commands_here) == len(row["commands"])
    figures = " / ".join(f"{value:.2f}" for value in note["measured"].values())
    assert f"| {figures} |" in (tmp_path / "docs" / "results" / "README.md").read_text()


def test_in_processes_of_its_own_a_figure_within_its_tolerance_is_met_and_added(places, weights, tmp_path, capsys):
    row = BOOK["rows"]["voc07-lost"] | {"published": {"CorLoc": 60.0}, "tolerance": 60.0}
    write_data(row, tmp_path / "data sets")
    results = tmp_path / "docs" / "results" / "voc07-lost.json"
    put(results, json.dumps([{"measured": {"CorLoc": 1.0}}]))
    put(tmp_path / "rows.yaml", yaml.safe_dump(BOOK | {"rows": {"voc07-lost": row}}))
    main(["voc07-lost", *places, f"--weights={weights('dino_vits16')}", f"--rows={tmp_path / 'rows.yaml'}"])
    assert "published 60.0 (tolerance 60.0): met -> " in capsys.readouterr().out
    assert [note["measured"]["CorLoc"] for note in json.loads(results.read_text())][:-1] == [1.0]


def test_what_is_missing_or_wrong_is_said_in_one_line(places, commands_here, tmp_path):
    write_data(BOOK["rows"]["voc07-lost"], tmp_path / "data sets")
    (tmp_path / "weights.pth").write_bytes(b"other")
    (tmp_path / "rows.yaml").write_text("rows: {a: {recipe: b}}\nrecipes: {b: {published: {c: x}}}")
    row = {key: value for key, value in BOOK["rows"]["voc07-lost"].items() if key != "flags"}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(BOOK | {"rows": {"a": row}}))
    given = f"--weights={tmp_path / 'weights.pth'}"
    for flags, told in (
        (["voc12-lost"], "get the data set from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"),
        (["voc07-lost", given, "--sha256=00"], "weights.pth has the sha256"),
        (["voc07-lost", f"{given},b"], "voc07-lost reads dino_vits16: --weights needs as many, with"),
        (["voc07-lost", given], "voc07-lost: object_localization failed, see above; the same command goes on"),
        (["voc07-lost", "--weights=none.pth"], "no such weights file: "),
        (["voc07-lost", f"--weights={tmp_path.as_uri()}/none.pth"], "none.pth"),
        (["voc07-los"], "no row 'voc07-los'; known are voc07-eigenseg"),
        (["--list", f"--rows={tmp_path / 'rows.yaml'}"], "rows.yaml is no file of rows (ValueError: could not convert"),
        (["--list", f"--rows={tmp_path / 'more.yaml'}"], "more.yaml is no file of rows (KeyError: 'flags')"),
    ):
        assert told in error_line(main, [*flags, *places])
    assert not (tmp_path / "docs").exists()
    put(tmp_path / "docs" / "results" / "voc07-lost.json", "[1]")
    assert "voc07-lost.json is no list of measured figures" in error_line(main, ["--list", *places])
