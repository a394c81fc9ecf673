"""A table of cells: one backbone, feature, block, method and setting each, on one data set."""

import contextlib
import csv
import functools
import io
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from objectloc.average_precision import annotated, average_precision
from objectloc.ground_truth import DataSet, open_data_set
from objectloc.localize import data_set
from objectloc.options import CompareOptions, DataOptions, DetectorOptions, ResultOptions
from objectloc.run import run
from objectloc.scores import CORRECT
from spectralseg.commands.features import FeatureSettings, extract_features
from spectralseg.drawing.charts import bars_picture
from spectralseg.errors import InputError
from spectralseg.files.storage import LAB_GRAPH, atomic_write, load_json, make_folder, save_json, save_picture
from spectralseg.models.backbones import STATISTICS
from spectralseg.running.stage import Stage

FLOORS = ("whole", "central")
SUFFIX = ".cell.json"
COLUMNS = ("data set", "backbone", "features", "method", "setting", "measure", "images", "all", "chosen on", "reported")


@dataclass(frozen=True)
class Source:
    """A backbone with the parts and blocks that are read of it; ``weights`` None: the published ones."""

    backbone: str
    weights: str | None
    parts: tuple[str, ...]
    blocks: tuple[int, ...]

    @property
    def label(self) -> str:
        """The backbone, and whose weights it has."""
        return self.backbone if self.weights is None else f"{self.backbone}_{Path(self.weights).stem}"

    @property
    def folder(self) -> str:
        """Name of the folder of its features."""
        return "-".join((self.label, "+".join(self.parts), "+".join(str(-block) for block in self.blocks)))


@dataclass(frozen=True)
class Cell:
    """A combination; without a source, boxes that look at nothing. ``features`` and ``setting`` are names."""

    source: Source | None
    features: str
    method: str
    setting: str
    detector: DetectorOptions

    @property
    def name(self) -> str:
        """Of its files."""
        setting = self.setting.replace(", ", "_").replace(" ", "_")
        return "-".join((self.source.label if self.source else "none", self.features, self.method, setting))


def compare(data_sets: Sequence[DataOptions], options: CompareOptions) -> None:
    """Fill the cells that are missing, and write the table, its summary and the picture."""
    rows: list[dict[str, Any]] = []
    for data in data_sets:
        images = open_data_set(data)
        if images.find_boxes is None and options.masks is None:
            raise InputError(f"{images.name} has nothing to compare with: --annotations or --masks")
        folder = make_folder(Path(options.output_dir) / images.name)
        found = {cell.name: cell for cell in cells(options, folder)}
        stage = Stage("compare", folder / "cells", SUFFIX, {"images": asdict(data), "masks": options.masks})
        pending = stage.begin(found)
        for source in dict.fromkeys(found[name].source for name in pending):
            if source is not None:
                _extract(source, images, folder, options.device)
        stage.run(functools.partial(_fill, found, data, options.masks, folder), pending, options.num_workers)
        stage.finish()
        if options.masks is not None:
            stage = Stage("compare masks", folder / "mask_cells", SUFFIX, stage.arguments)
            pending = stage.begin(found)
            scores = _score_masks(images, options.masks, folder, pending) if pending else {}
            for name, of_cell in scores.items():
                save_json(stage.output(name), {"mIoU": of_cell}, indent=None)
                stage.done(name)
            stage.finish()
        for kind in ("cells", *(["mask_cells"] if options.masks else [])):
            rows += [row for cell in found.values() for row in _rows(images.name, cell, folder / kind)]
    _write(Path(options.output_dir), rows)


def cells(options: CompareOptions, folder: Path) -> Iterator[Cell]:
    """All combinations that there are; features lie below ``folder``."""
    for kind in FLOORS:
        yield Cell(None, "none", "trivial", kind, DetectorOptions(mode="trivial", trivial=kind))
    for text in options.backbones:
        backbone, _, weights = text.partition("=")
        is_vit = backbone not in STATISTICS
        parts = tuple(dict.fromkeys(options.features)) if is_vit else ("k",)
        blocks = tuple(sorted(set(options.blocks))) if is_vit else (-1,)
        read = (*parts, "attn_cls") if is_vit and "dinoseg" in options.methods else parts
        source = Source(backbone, weights or None, read, blocks)
        for part, block, method in itertools.product(parts, blocks, options.methods):
            if method != "eigenseg" and backbone == LAB_GRAPH:
                continue  # colours of cells, of which the other methods make nothing
            if method == "dinoseg":
                if not is_vit or (part, block) != (parts[0], blocks[-1]):
                    continue  # it reads the attention of the deepest block
                part = "attn_cls"
            shown = part if block == -1 else f"{part}_block_{block}"
            stored = part if block == blocks[-1] else shown
            for setting, values in _settings(method, backbone, options):
                values |= {
                    "which_features": stored,
                    "precomputed_features_dir": str(folder / "features" / source.folder),
                }
                yield Cell(source, shown, method, setting, DetectorOptions(mode=method, **values))


def _settings(method: str, backbone: str, options: CompareOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a method is tried with: name, and the detector's options."""
    if method == "lost":
        for k_patches, bias in itertools.product(options.k_patches, options.gram_bias):
            name = f"k_patches {k_patches}" + (f", bias {bias:g}" if bias else "")
            yield name, {"k_patches": k_patches, "gram_bias": bias}
    elif method in ("tokencut", "maskcut"):
        yield from ((f"tau {tau:g}", {"tau": (tau,)}) for tau in options.tau)
    elif method == "dinoseg":
        yield from ((f"head {head}", {"dinoseg_head": head}) for head in options.dinoseg_head)
    else:
        for foreground in options.foreground:
            if foreground != "robust" or backbone == LAB_GRAPH:
                yield foreground, {"foreground": foreground}


def _extract(source: Source, images: DataSet, folder: Path, device: str) -> None:
    names = folder / "images.txt"
    with atomic_write(names) as file:
        file.write("".join(f"{name}\n" for name in images.files.values()).encode(errors="surrogateescape"))
    settings = FeatureSettings(source.backbone, source.blocks, source.parts, source.weights)
    target = folder / "features" / source.folder
    extract_features(str(names), str(images.root), str(target), settings, device=device)


def _fill(found: dict[str, Cell], data: DataOptions, masks: str | None, folder: Path, name: str) -> None:
    """Find the boxes of a cell and write what they score: per measure, image's id -> value in [0, 1]."""
    images = data_set(data)
    results = ResultOptions(
        output_dir=str(folder / "found"), name=name, save_predictions=False, save_masks=masks is not None
    )
    with contextlib.redirect_stdout(io.StringIO()):
        run(results, data, found[name].detector)
    own = folder / "found" / images.name / name
    scores: dict[str, Any] = {}
    if images.find_boxes is not None:
        boxes = _content(own / "results.json")["boxes"]
        ids = {file: image_id for image_id, file in images.files.items()}
        scores["CorLoc"] = {ids[file]: float(entry["iou"] >= CORRECT) for file, entry in boxes.items()}
        truth = annotated(images)
        predictions = [
            {"image_id": image["id"], "category_id": 1, "bbox": _sides(boxes[image["file_name"]]["box"]), "score": 1.0}
            for image in truth["images"]
            if image["file_name"] in boxes
        ]
        scores["AP50"] = average_precision(truth, predictions).scores["boxes"]["AP50"]
    save_json(folder / "cells" / f"{name}{SUFFIX}", scores, indent=None)


def _sides(box: Sequence[float]) -> list[float]:
    xmin, ymin, xmax, ymax = box
    return [xmin, ymin, xmax - xmin, ymax - ymin]


def _content(path: Path) -> dict[str, Any]:
    content = load_json(path)
    if content is None:
        raise InputError(f"{path} is missing: delete its folder and run again")
    return content


def _score_masks(images: DataSet, masks: str, folder: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """IoU per cell and image, by object-segmentation in a process of its own: tasks do not import each other."""
    same = f"images_dir: '.', labels_dir: '{Path(masks).resolve()}'"
    entries = ", ".join(f"{{name: '{name}', folder: '{name}', {same}}}" for name in names)
    overrides = [
        f"data_root='{images.root.resolve()}'",
        f"predictions={{root: '{(folder / 'found' / images.name).resolve()}', run: masks, downsample: null}}",
        f"data=[{entries}]",
        f"hydra.run.dir='{(folder / 'evaluation').resolve()}'",
    ]
    door = "from spectralseg.doors import object_segmentation; object_segmentation()"
    ended = subprocess.run([sys.executable, "-c", door, *overrides], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise InputError(f"object-segmentation: {(ended.stderr.strip().splitlines() or ['failed'])[-1]}")
    scores: dict[str, dict[str, float]] = {name: {} for name in names}
    with open(folder / "evaluation" / "per_image.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            scores[row["data_set"]][row["id"]] = float(row["iou"])
    return scores


def _rows(data: str, cell: Cell, folder: Path) -> Iterator[dict[str, Any]]:
    """A row of ``COLUMNS`` per measure, in per cent: every second image, from the first on, is to choose on."""
    start = (data, cell.source.label if cell.source else "none", cell.features, cell.method, cell.setting)
    for measure, values in _content(folder / f"{cell.name}{SUFFIX}").items():
        if not isinstance(values, dict):
            yield dict(zip(COLUMNS, (*start, measure, "", round(values, 2), "", ""), strict=True))
            continue
        ordered = [values[image_id] for image_id in sorted(values)]
        parts = [
            round(100 * float(np.mean(each)), 2) if each else "" for each in (ordered, ordered[::2], ordered[1::2])
        ]
        yield dict(zip(COLUMNS, (*start, measure, len(ordered), *parts), strict=True))


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    best: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in (row for row in rows if row["reported"] != ""):
        trivial = row["setting"] if row["method"] == "trivial" else ""
        key = tuple(row[name] for name in ("data set", "measure", "backbone", "method")) + (trivial,)
        if key not in best or row["chosen on"] > best[key]["chosen on"]:
            best[key] = row
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    lines += [f"| {' | '.join(str(row[name]) for name in COLUMNS)} |" for row in best.values()]
    print("\n".join(lines))
    _write_text(folder / "comparison.csv", text.getvalue())
    _write_text(folder / "comparison.md", "\n".join([*lines, ""]))
    charts: dict[str, dict[str, dict[str, float]]] = {}
    for row in best.values():
        chart = charts.setdefault(f"{row['measure']}, {row['data set']}", {"bars": {}, "floors": {}})
        if row["method"] == "trivial":
            chart["floors"][f"{row['setting']} box"] = row["reported"]
        else:
            chart["bars"][f"{row['backbone']} {row['features']}\n{row['method']}, {row['setting']}"] = row["reported"]
    save_picture(folder / "comparison.png", bars_picture(charts))
    print(f"{len(rows)} rows -> {folder / 'comparison.csv'}, comparison.md, comparison.png")


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))
