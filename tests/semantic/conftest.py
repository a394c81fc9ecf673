"""Run evaluation and self-training in this process, on data sets that are made for a test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semanticseg import evaluation, self_training
from shared_data import shared
from spectralseg.running.hydra_app import run


class VocLike:
    """A data set in VOC's layout with its label maps, and the settings that name it."""

    def __init__(self, root: Path) -> None:
        self.root, self.segments = root, root / "segmaps"
        self.voc = root / "VOCdevkit" / "VOC2012"
        self.settings = [f"data.root={root}", f"segments_dir={self.segments}"]

    def add(self, name: str, truth: Any, labels: Any = None, image: Any = None, val: bool = True) -> None:
        """An image with its true mask and label map (both as PNG; the truth with VOC's 255)."""
        truth = np.array(truth, dtype=np.uint8)
        self.write(self.voc / "JPEGImages" / f"{name}.jpg", np.full((*truth.shape, 3), 99) if image is None else image)
        self.write(self.voc / "SegmentationClass" / f"{name}.png", truth)
        if labels is not None:
            self.write(self.segments / f"{name}.png", np.array(labels))
        listed = self.voc / "ImageSets" / "Segmentation" / "val.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        with open(listed, "a") as file:
            file.write(f"{name}\n" if val else "")

    @staticmethod
    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels.astype(np.uint8))
        picture.save(path, quality=95) if path.suffix == ".jpg" else picture.save(path)


@pytest.fixture
def voc(tmp_path: Path) -> VocLike:
    return VocLike(tmp_path / "data")


def runner(task: Callable[..., None], config: str, *always: str) -> Callable[..., dict[str, Any]]:
    """``run("key=value", ...)`` -> results.json of the run folder (of several seeds: seeds.json)."""

    def call(*overrides: object) -> dict[str, Any]:
        settings = [*always, *map(str, overrides)]
        chosen = dict(setting.split("=", 1) for setting in settings if "=" in setting)
        run(task, config, settings)
        name = "seeds.json" if "seeds" in chosen else "results.json"
        return json.loads((Path(chosen["hydra.run.dir"]) / name).read_text())

    return call


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``evaluate("key=value", ...)`` -> results.json, in the folder ``results`` of the test."""
    monkeypatch.chdir(tmp_path)
    return runner(evaluation.evaluate, "semantic-segmentation/eval", "hydra.run.dir=results", "visualize=0")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``train("key=value", ...)`` -> results.json of a small training, in the folder ``run`` of the test."""
    monkeypatch.chdir(tmp_path)
    return runner(self_training.train, "semantic-segmentation/train", *SMALL, "hydra.run.dir=run")


SMALL = (
    "model.backbone=test_vit",  # of timm: 6 blocks of 64 channels
    "model.weights=random",
    "model.unfrozen_backbone_layers=-1",
    "device=cpu",
    "data.transform.resize_size=64",
    "data.transform.crop_size=48",
    "data.loader.batch_size=4",
    "data.loader.num_workers=0",
    "max_train_steps=4",
    "checkpoint_every=null",
    "logger=null",
    "visualize=0",
)


@pytest.fixture(scope="session")
def voc2012() -> Path:
    """400 real images of VOC2012, in its layout; skips where ../shared is absent."""
    root = shared() / "data" / "VOC2012"
    if not root.is_dir():
        pytest.skip(f"needs {root}, which is not part of the project")
    return root


def add_squares(voc: VocLike, count: int, prefix: str, val: bool, noise: float) -> None:
    """Red squares are cats, blue ones dogs. Label maps at patches; a share ``noise`` of their cells is random."""
    random = np.random.default_rng(val)
    for index in range(count):
        cells = np.zeros((4, 5), int)
        cells[index % 3 : index % 3 + 2, index % 4 : index % 4 + 2] = 1 + index % 2
        shown = np.kron(cells, np.ones((16, 16), int))
        colours = np.array([[90, 90, 90], [220, 40, 40], [40, 40, 220]])
        image = np.clip(colours[shown] + random.normal(0, 12, (*shown.shape, 3)), 0, 255)
        wrong = random.random(cells.shape) < noise
        labels = np.where(wrong, random.integers(0, 3, cells.shape), cells)
        voc.add(f"{prefix}{index}", np.array([0, 8, 12])[shown], labels, image, val)


@pytest.fixture
def squares(voc: VocLike) -> VocLike:
    """12 images to train on and 6 to validate, whose label maps are wrong in a sixth of their cells."""
    add_squares(voc, 12, "train", False, noise=0.25)
    add_squares(voc, 6, "val", True, noise=0.25)
    return voc


@pytest.fixture
def small() -> tuple[str, ...]:
    """Settings of a training that takes seconds."""
    return SMALL
