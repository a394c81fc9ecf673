"""Run object-segmentation/main.py in this process, on data sets that are made for a test."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objectseg import evaluation
from running import error_line
from spectralseg.running.hydra_app import run

CONFIG = "object-segmentation/eval"


class Evaluation:
    """What a run left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = json.loads((folder / "results.json").read_text())
        with open(folder / "per_image.csv", newline="") as file:
            self.rows = list(csv.DictReader(file))

    def scores(self, name: str = "mine") -> dict[str, float]:
        return self.results["data_sets"][name]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Evaluation]:
    """``evaluate("key=value", ...)`` with results in a folder of the test."""
    monkeypatch.delenv("OBJECT_SEGMENTATION_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*overrides: object) -> Evaluation:
        run(evaluation.evaluate, CONFIG, ["hydra.run.dir=results", *map(str, overrides)])
        return Evaluation(tmp_path / "results")

    return call


@pytest.fixture
def refused(evaluate: Callable, tmp_path: Path) -> Callable[..., str]:
    """``refused("key=value", ...)`` is the one line of a run that must fail, and that leaves no results."""

    def call(*overrides: object) -> str:
        message = error_line(evaluate, *overrides)
        assert not list(tmp_path.glob("results/*"))
        return message

    return call


class Folders:
    """A data set ``mine`` of masks by id, in the layout that :attr:`overrides` tells the script."""

    def __init__(self, root: Path) -> None:
        self.root = root
        entry = "{name: mine, images_dir: images, labels_dir: masks}"
        self.overrides = (f"data_root={root}", f"predictions.root={root}", "predictions.run=run", f"data=[{entry}]")

    def add(self, name: str, truth: np.ndarray, prediction: np.ndarray | None = None) -> None:
        """An image with its masks; truth as 8-bit grey with 0 and 255, prediction as it is."""
        height, width = truth.shape
        self.write("images", name, np.full((height, width, 3), 99), suffix=".jpg")
        self.write("masks", name, np.where(truth, 255, 0))
        if prediction is not None:
            self.write("mine/run", name, prediction)

    def write(self, folder: str, name: str, pixels: np.ndarray | Image.Image, suffix: str = ".png") -> None:
        path = self.root / folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.astype(np.uint8))
        picture.save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "data")
