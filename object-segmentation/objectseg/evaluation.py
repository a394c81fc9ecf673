r"""Evaluate one binary mask per image against the truth, on CUB, DUT-OMRON, DUTS, ECSSD or data sets of your own.

    cd object-segmentation
    python main.py predictions.root=../data/object-segmentation \
        predictions.run=single_region_segmentation/crf/laplacian_dino_vits16

Settings are explained in configs/object-segmentation/eval.yaml. Prints a table and writes into the run folder
(outputs/object-segmentation/<predictions.run>, or what hydra.run.dir=... says) results.json, per_image.csv and, with
visualize=N, contact sheets. On the sample photographs, with their true masks as predictions:

    python main.py data_root=../data/samples predictions.root=../data predictions.run=masks \
        'data=[{name: samples, images_dir: images, labels_dir: masks}]'
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from objectseg.dataset import Paths, View, pair, read, read_photograph
from objectseg.metrics import MeanScores
from spectralseg import __version__
from spectralseg.drawing.pictures import contact_sheet, overlay
from spectralseg.errors import InputError
from spectralseg.files.label_maps import ENLARGE
from spectralseg.files.storage import atomic_write, make_folder, remove, save_json, save_picture
from spectralseg.progress import phase, progress_bar, say
from spectralseg.running.hydra_app import run, run_folder, to_settings
from spectralseg.running.stage import describe
from spectralseg.settings import Settings, setting

SHEET_IMAGES, SHEET_COLUMNS = 6, 3  # photograph, truth, prediction in a row
COLUMNS = {"images": "images", "miou": "mIoU", "accuracy": "accuracy", "f_beta": "F-beta", "f_max": "max F-beta"}


@dataclass
class DataSet(Settings):
    """An entry of ``data`` in configs/object-segmentation/eval.yaml, where its settings are explained."""

    name: str
    images_dir: str
    labels_dir: str
    folder: str | None = None
    crop: bool = False
    image_size: int | None = setting(None, least=1)


@dataclass
class Predictions(Settings):
    """The entry ``predictions`` of that file."""

    root: str
    run: str
    downsample: int | None = setting(16, least=1)
    soft_run: str | None = None


@dataclass
class EvalSettings(Settings):
    """All settings of that file."""

    data_root: str
    predictions: Predictions
    data: list[DataSet] = field(default_factory=list)
    enlarge: str = setting("patches", choices=ENLARGE)
    strict: bool = False
    visualize: int = setting(0, least=0)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run(evaluate, "object-segmentation/eval", argv)


def evaluate(config: DictConfig) -> None:
    """The whole evaluation: pairs all files first, so that one that is missing is named before the work begins."""
    settings = to_settings(config, EvalSettings)
    _check_names(settings.data)
    pairs, absent = _find(settings)
    folder = make_folder(run_folder())
    results = {}
    with atomic_write(folder / "per_image.csv") as file:
        table = csv.writer(
            io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        )
        scores = ["accuracy", "iou", "f_beta", *(["f_max"] if settings.predictions.soft_run else [])]
        table.writerow(["data_set", "id", "width", "height", *scores])
        for data_set in settings.data:
            if data_set.name in pairs:
                results[data_set.name] = _evaluate_one(data_set, settings, pairs[data_set.name], table, folder)
    _write_results(folder, settings, results, absent)
    print(f"{settings.predictions.run} in {settings.predictions.root}")
    print(_as_table(results, absent))
    print(f"results -> {folder}")


def _check_names(data_sets: Sequence[DataSet]) -> None:
    names = [data_set.name for data_set in data_sets]
    if not names:
        raise InputError("data: there is no data set to evaluate")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"data: two data sets are called {name}")
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"data: '{name}' cannot be the name of a data set: files are named after it")


def _find(settings: EvalSettings) -> tuple[dict[str, list[Paths]], dict[str, str]]:
    """Files of each data set, and why the others are absent."""
    found, absent = {}, {}
    for data_set in settings.data:
        folders = _folders(data_set, settings)
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing:
            absent[data_set.name] = f"no such folder: {missing[0]}"
            continue
        found[data_set.name], notes = pair(*folders)
        for note in notes:
            say(f"note: {note}")
    if absent and (settings.strict or not found):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise InputError(f"{'not every' if found else 'no'} data set has photographs, masks and predictions: {reasons}")
    return found, absent


def _folders(data_set: DataSet, settings: EvalSettings) -> list[Path]:
    """Of photographs, true masks, predictions and, where there are any, soft maps."""
    root, predictions = Path(settings.data_root), settings.predictions
    runs = [predictions.run, *([predictions.soft_run] if predictions.soft_run else [])]
    below = Path(predictions.root) / (data_set.folder or data_set.name)
    return [root / data_set.images_dir, root / data_set.labels_dir, *(below / run for run in runs)]


@phase("scores of a data set")
def _evaluate_one(
    data_set: DataSet, settings: EvalSettings, pairs: list[Paths], table: Any, folder: Path
) -> dict[str, float | int]:
    view = View(data_set.image_size, data_set.crop)
    means = MeanScores()
    sheets = _Sheets(folder / "sheets", data_set.name, min(settings.visualize, len(pairs)))
    shown = set(np.linspace(0, len(pairs) - 1, sheets.images).round().astype(int).tolist())
    without_object = 0
    images = read(pairs, view, settings.predictions.downsample, settings.enlarge)
    progress = progress_bar(images, desc=data_set.name, total=len(pairs), unit="image")
    for index, (paths, truth, prediction, soft) in enumerate(progress):
        scores = means.add(prediction, truth, soft)
        size = (truth.shape[1], truth.shape[0])
        table.writerow([data_set.name, paths.id, *size, *(f"{score:.6f}" for score in scores.values())])
        without_object += not truth.any()
        if index in shown:
            sheets.add(paths, view, truth, prediction, scores["iou"])
    if without_object:
        say(
            f"note: {without_object} true masks of {data_set.name} show no object (their IoU is 0): foreground is where"
            " the first channel is above 127"
        )
    return {"images": means.images, **means.means(), "images_without_object": without_object}


class _Sheets:
    """Contact sheets of a data set, a page at a time: ``<name>_1.png``, ... in place of those of an earlier run."""

    def __init__(self, folder: Path, name: str, images: int) -> None:
        self.folder, self.name, self.images = folder, name, images
        self._panels: list[tuple[str, Image.Image]] = []
        self._added = self._pages = 0
        for path in folder.glob("*.png"):
            if path.stem.rpartition("_")[0] == name:
                remove(path)

    def add(self, paths: Paths, view: View, truth: np.ndarray, prediction: np.ndarray, iou: float) -> None:
        photograph = read_photograph(paths.image, view, truth.shape)
        self._panels += [
            (paths.id, photograph),
            ("truth", overlay(photograph, truth)),
            (f"prediction, IoU {iou:.3f}", overlay(photograph, prediction)),
        ]
        self._added += 1
        if self._added % SHEET_IMAGES == 0 or self._added == self.images:
            self._pages += 1
            save_picture(
                make_folder(self.folder) / f"{self.name}_{self._pages}.png", contact_sheet(self._panels, SHEET_COLUMNS)
            )
            self._panels = []


def _write_results(
    folder: Path, settings: EvalSettings, results: dict[str, dict[str, float | int]], absent: dict[str, str]
) -> None:
    made_with = {}
    for data_set in settings.data:
        if data_set.name in results:
            description = describe(_folders(data_set, settings)[2])
            made_with[data_set.name] = None if description is None else description["arguments"]
    content = {
        "data_sets": results,
        "absent": absent,
        "settings": asdict(settings),
        "predictions_made_with": made_with,
        "spectralseg": __version__,
    }
    save_json(folder / "results.json", content)


def _as_table(results: dict[str, dict[str, float | int]], absent: dict[str, str]) -> str:
    """Names to the left, figures in percent to the right; absent data sets with the reason."""
    columns = [name for name in COLUMNS if any(name in scores for scores in results.values())]
    rows: list[Sequence[str]] = [["data set", *(COLUMNS[name] for name in columns)]]
    for name, scores in results.items():
        rows.append([name, str(scores["images"]), *(f"{100 * scores[column]:.2f}" for column in columns[1:])])
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns) + 1)]
    widths[0] = max(widths[0], *(len(name) for name in absent), 0)
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines, *(f"{name.ljust(widths[0])}  skipped: {reason}" for name, reason in absent.items())])
