"""object-localization/compare.py as users call it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from localization_data import folder_flags, write_table
from objectloc.compare import main
from running import write_pictures
from spectralseg.drawing.charts import bars_picture

WHAT = ["--methods", "lost,eigenseg,tokencut,maskcut,dinoseg", "--tau", "0,0.4", "--gram_bias=-1,0", "--blocks=-1,-2"]
WHAT += ["--backbones", "test_vit=random,lab_graph", "--features", "k,out", "--foreground", "eigenvector,robust"]
WHAT += ["--dinoseg_head", "0"]


def test_all_cells_are_filled_once_and_a_run_that_was_stopped_ends_with_equal_files(tmp_path, capsys):
    write_pictures(tmp_path / "images", 3)
    table = write_table(tmp_path / "boxes.csv", {f"image{index}.png": [(4, 4, 40, 40)] for index in range(3)})
    (tmp_path / "masks").mkdir()
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            mask = np.zeros((image.height, image.width), np.uint8)
        mask[4:40, 4:40] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / path.name)
    flags = [*map(str, folder_flags(tmp_path / "images", table)), "--masks", str(tmp_path / "masks"), *WHAT]
    flags += ["--output_dir", str(tmp_path / "out")]
    main(flags)
    files = [tmp_path / "out" / f"comparison.{kind}" for kind in ("csv", "md", "png")]
    first = [path.read_bytes() for path in files]
    rows = list(csv.DictReader(first[0].decode().splitlines()))
    settings = {(row["backbone"], row["features"], row["method"], row["setting"]) for row in rows}
    of_vit = 2 * 2 * (2 + 1 + 2 + 2) + 1  # features, blocks; of LOST, eigenseg, TokenCut, MaskCut; DINO-seg
    assert len(settings) == 2 + of_vit + 2
    assert len(rows) == 3 * len(settings)  # CorLoc, AP50, mIoU
    assert ("test_vit_random", "out_block_-2", "lost", "k_patches 100, bias -1") in settings
    cells = tmp_path / "out" / "folder_images" / "cells"
    for row in (row for row in rows if row["measure"] == "mIoU" and row["setting"] == "whole"):
        assert float(row["all"]) == pytest.approx(100 * 36 * 36 / mask.size, abs=0.01)
    lost = next(cells.glob("*-k-lost-k_patches_100.cell.json"))
    assert set(json.loads(lost.read_text())) == {"CorLoc", "AP50"}
    lost.unlink()
    capsys.readouterr()
    main([*flags, "--num_workers", "2"])
    assert f"compare: 1 written, {len(settings) - 1} already there" in capsys.readouterr().err
    assert [path.read_bytes() for path in files] == first
    chosen = [line.split(" | ") for line in first[1].decode().splitlines()[2:]]
    assert len(chosen) == 2 * (2 + 5 + 1)  # per measure: floors, methods of the ViT, eigenseg of lab_graph
    for line in chosen:
        alike = [row for row in rows if (row["backbone"], row["method"], row["measure"]) == (line[1], line[3], line[5])]
        if line[3] != "trivial":
            assert float(line[8]) == max(float(row["chosen on"]) for row in alike)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--methods", "cut"], "no methods 'cut'; known are"),
        (["--blocks", "3"], "--blocks counts from the end"),
        (["--masks", "x"], "--masks belongs to --dataset folder"),
        (["--tau", "a"], "argument --tau: invalid list of float value"),
    ],
)
def test_what_cannot_be_compared(flags, complaint):
    with pytest.raises(SystemExit, match=complaint):
        main(flags)


@pytest.mark.charts
def test_bars_and_floors():
    picture = bars_picture({"CorLoc": {"bars": {"a": 50.0, "b": 10.0}, "floors": {"whole box": 30.0}}})
    colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert {(0x44, 0x77, 0xAA), (0xAA, 0x33, 0x33)} <= colours
