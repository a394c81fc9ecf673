"""EAGLE from the files of the extract stage, and from layouts of data sets, through the scripts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eagle_layouts import camvid, scenes, write_cocostuff, write_directory
from eagle_runs import data_overrides, metrics
from eagleseg.checkpoints.files import load_checkpoint
from eagleseg.commands import crop
from spectralseg.commands.eigs import EigenSettings, extract_eigs
from spectralseg.commands.features import FeatureSettings, extract_features
from spectralseg.models.backbones import load_backbone

TRAIN, EVALUATE = "train_segmentation_eigen", "eval_segmentation"
RES = 64
QUICK = ("feature_samples=4", "neg_samples=2", "pictures=0", "extra_clusters=0")


@pytest.fixture
def crops(tmp_path: Path) -> list[str]:
    """Overrides for a ViT on the five crops of a few images, whose features and eigenvectors lie in files."""
    root = tmp_path / "data"
    write_directory(root / "mine", {"train": scenes(3, width=160, height=140), "val": scenes(1, 7)})
    overrides = data_overrides(root, "mine", 3)
    chosen = [override for override in overrides if override.startswith(("pytorch_data_dir", "dataset", "dir_"))]
    crop.main(chosen)
    folder = root / "cropped" / "mine_five_crop_0.5"
    torch.save(load_backbone("test_vit", "random").model.state_dict(), tmp_path / "vit.pth")
    settings = FeatureSettings("test_vit", (-3, -2, -1), weights=str(tmp_path / "vit.pth"), resize=RES, center_crop=RES)
    images = str(folder / "img" / "train")
    extract_features(str(folder / "lists" / "train.txt"), images, str(tmp_path / "features"), settings, device="cpu")
    extract_eigs(images, str(tmp_path / "features"), str(tmp_path / "eigs"), EigenSettings(K=4), device="cpu")
    vit = ["crop_type=five", "backbone=test_vit", f"weights={tmp_path / 'vit.pth'}", "patch_size=16", f"res={RES}"]
    return [*overrides, *vit]


def test_training_from_files_is_training_with_the_backbone(run_script: Callable, crops: list[str], tmp_path: Path):
    """Four steps of both, with the contrast in the last two; the same seed."""
    first = run_script(TRAIN, *crops, *QUICK, "max_steps=4", folder="backbone")
    stored = f"features_dir={tmp_path / 'features'}"
    second = run_script(TRAIN, *crops, *QUICK, "max_steps=4", stored, folder="files")
    early, *weights = (
        load_checkpoint(path)["model"] for path in (first / "step_000002.pth", first / "last.pth", second / "last.pth")
    )
    for name, value in weights[0].items():
        assert torch.linalg.norm(value - weights[1][name]) <= 1e-4 * torch.linalg.norm(value), name
        if not name.startswith("eigen"):  # these learn slowly
            assert torch.linalg.norm(value - early[name]) > 5e-4 * torch.linalg.norm(value), name
    for one, other in zip(metrics(first), metrics(second), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=1e-4, nan_ok=True), name


def test_training_on_stored_eigenvectors(run_script: Callable, crops: list[str], tmp_path: Path):
    """As a fixed EiCue: another run than with the learned one, and the same whether features are stored or not."""
    eigs = (f"eigs_dir={tmp_path / 'eigs'}", "eicue_source=precomputed")
    variants = {"learned": (), "stored": eigs, "both": (*eigs, f"features_dir={tmp_path / 'features'}")}
    clusters = {}
    for name, overrides in variants.items():
        folder = run_script(TRAIN, *crops, *QUICK, "max_steps=2", *overrides, folder=name)
        clusters[name] = load_checkpoint(folder / "last.pth")["model"]["eigen_probe.clusters"]
    assert torch.allclose(clusters["stored"], clusters["both"], rtol=1e-5)
    assert not torch.allclose(clusters["stored"], clusters["learned"], rtol=1e-5)


def layout(name: str, root: Path) -> tuple[dict[str, object], set[str]]:
    """Writes real images in the layout of a data set; its overrides, and classes that must be among those evaluated."""
    if name == "cocostuff3":
        fine = np.array([105, 93, 110, *[255] * 9], dtype=np.uint8)  # sky, plant, ground
        splits = {split: [(image, fine[label]) for image, label in camvid(split, 4)] for split in ("train", "val")}
        write_cocostuff(root, splits, few=True)
        return {}, {"sky", "plant", "ground"}
    write_directory(root / "streets", {"train": camvid("train", 4), "val": camvid("val", 2)})
    return {"dir_dataset_name": "streets", "dir_dataset_n_classes": 11, "dir_dataset_void": 11}, {"class 0", "class 3"}


@pytest.mark.parametrize("name", ["cocostuff3", "directory"])
def test_layouts_train_and_are_evaluated(run_script: Callable, tmp_path: Path, name: str):
    """The others are rows of reproduce.py."""
    root = tmp_path / "data"
    chosen, classes = layout(name, root)
    overrides = [text for text in data_overrides(root, "", 1) if not text.startswith(("dataset_name", "dir_dataset"))]
    chosen = {"dataset_name": name, **chosen}
    folder = run_script(
        TRAIN, *overrides, "batch_size=2", "max_steps=2", *QUICK, *(f"{key}={value}" for key, value in chosen.items())
    )
    line = metrics(folder)[-1]
    assert 0 < line["linear_accuracy"] <= 100
    evaluation = [f"pytorch_data_dir={root}", f"model_path={folder / 'last.pth'}", "run_crf=false", "res=64"]
    results = run_script(EVALUATE, *evaluation, "device=cpu", "num_workers=0", folder="evaluation")
    scores = json.loads((results / "results.json").read_text())["scores"]
    measured = {label for label, iou in scores["linear"]["iou"].items() if iou is not None}
    assert classes <= measured <= set(scores["linear"]["iou"])
