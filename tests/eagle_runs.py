"""Run EAGLE's scripts in this process, on a problem whose answer is known."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eagle_layouts import Pair
from eagleseg.checkpoints.files import save_checkpoint
from eagleseg.commands import crop, demo, evaluate, train
from eagleseg.model.heads import EagleModel
from shared_data import PROJECT

EAGLE = PROJECT / "eagle"
SCRIPTS = {
    "train_segmentation_eigen": train,
    "eval_segmentation": evaluate,
    "demo_segmentation": demo,
    "crop_datasets": crop,
}

NAMES = ["ground", "box", "ball"]
SIZES = {"dim": 8, "eigen_cluster": 4, "eigen_cluster_out": 5, "extra_clusters": 2}


def two_textures(seed: int, side: int = 64) -> Pair:
    """Vertical stripes to one side of a random line, horizontal ones to the other: RGB picture, labels 0 and 1."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    angle = random.uniform(0, 2 * np.pi)
    across = np.cos(angle) * (columns - side / 2) + np.sin(angle) * (rows - side / 2)
    label = (across > random.uniform(-side / 6, side / 6)).astype(np.uint8)
    stripes = np.where(label, columns // 2 % 2, rows // 2 % 2)
    pixels = 60 + 120 * stripes[..., None] + random.integers(-10, 11, (side, side, 3))
    return Image.fromarray(pixels.astype(np.uint8)), label


def data_overrides(root: Path, name: str, n_classes: int) -> list[str]:
    """Overrides that choose a ``directory`` data set, and sizes fit for a test."""
    data = {"pytorch_data_dir": root, "dataset_name": "directory", "dir_dataset_name": name, "crop_type": "null"}
    small = {"backbone": "lab_hog8", "res": 64, "val_res": 64, "dim": 16, "batch_size": 4, "num_workers": 0}
    rest = {"dir_dataset_n_classes": n_classes, "device": "cpu", "logger": "null", "step_schedulers": 1}
    few = {"max_steps": 4, "val_freq": 2, "checkpoint_freq": 2, "val_batch_size": 4, "pictures": 2}
    return [f"{key}={value}" for key, value in {**data, **small, **rest, **few}.items()]


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_checkpoint(path: Path, **changes: object) -> Path:
    """A model for ``lab_hog8`` and three classes that was never trained."""
    torch.manual_seed(0)
    model = EagleModel(14, 3, **SIZES)
    settings = {"backbone": "lab_hog8", "weights": None, "dropout": True, **SIZES, "dataset_name": "directory"}
    settings |= {"dir_dataset_name": "scenes", "dir_dataset_n_classes": 3, "dir_dataset_class_names": NAMES}
    match = {cluster: cluster for cluster in range(3)}
    content = {"model": model.state_dict(), "settings": settings, "class_names": NAMES, "match": match, "step": 7}
    save_checkpoint(path, {**content, **changes})
    return path
