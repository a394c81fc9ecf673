"""Training from the extract stage's files equals training that runs the backbone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eagle_checkpoints import load_checkpoint
from eagle_layouts import camvid, write_directory
from eagle_runs import data_overrides, metrics
from running import run_extract

TRAIN, CROP = "train_segmentation_eigen", "crop_datasets"
BACKBONE = "vit_tiny_patch16_224"


@pytest.fixture
def crops(run_script: Callable[..., Path], tmp_path: Path) -> tuple[list[str], Path]:
    """Overrides that train on five crops of street scenes, and the folder of the crops."""
    root = tmp_path / "data"
    write_directory(root / "streets", {"train": camvid("train", 3), "val": camvid("val", 2)})
    chosen = [f"pytorch_data_dir={root}", "dataset_name=directory", "dir_dataset_name=streets"]
    chosen += ["dir_dataset_n_classes=11", "dir_dataset_void=11"]
    run_script(CROP, *chosen)
    overrides = [*data_overrides(root, "streets", 11), "dir_dataset_void=11", "crop_type=five"]
    overrides += [f"backbone={BACKBONE}", "weights=random", "patch_size=16", "max_steps=3", "res=128"]
    (folder,) = (root / "cropped").iterdir()
    return overrides, folder


def extract(folder: Path, output: Path, *flags: str) -> Path:
    """The extract stage on the crops."""
    images = folder / "img" / "train"
    result = run_extract(
        "extract_features",
        *("--images_list", folder / "lists" / "train.txt", "--images_root", images, "--batch_size", 4),
        *("--model_name", BACKBONE, "--weights", "random", "--resize", 128, "--center_crop", 128),
        *("--output_dir", output, *flags),
    )
    assert result.returncode == 0, result.stderr
    return output


@pytest.mark.slow
def test_equal_to_running_the_backbone(
    run_script: Callable[..., Path], refused: Callable[..., str], crops: tuple[list[str], Path], tmp_path: Path
):
    overrides, folder = crops
    features = extract(folder, tmp_path / "features", "--which_block=-3,-2,-1")
    running = run_script(TRAIN, *overrides, folder="running")
    stored = run_script(TRAIN, *overrides, f"features_dir={features}", folder="stored")
    one, two = (load_checkpoint(path / "last.pth")["model"] for path in (running, stored))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-4, msg=name)
    assert metrics(stored)[-1]["loss"] == pytest.approx(metrics(running)[-1]["loss"], rel=1e-4)

    last_block = extract(folder, tmp_path / "last_block")
    assert "--which_block=-3,-2,-1" in refused(TRAIN, *overrides, f"features_dir={last_block}", folder="other")

    message = refused(TRAIN, *overrides, f"features_dir={features}", "backbone=vit_small_patch16_224", folder="other")
    assert "model_name=vit_tiny_patch16_224" in message

    eigenvectors = tmp_path / "eigs"
    result = run_extract(
        *("extract_eigs", "--images_root", folder / "img" / "train", "--features_dir", last_block),
        *("--which_matrix", "laplacian", "--K", 4, "--output_dir", eigenvectors),
    )
    assert result.returncode == 0, result.stderr
    precomputed = [f"eigs_dir={eigenvectors}", "eicue_source=precomputed"]
    fixed = run_script(TRAIN, *overrides, *precomputed, folder="fixed")
    assert metrics(fixed)[-1]["loss"] != metrics(running)[-1]["loss"]
    assert "eigen_cluster" in refused(TRAIN, *overrides, *precomputed, "eigen_cluster=6", folder="too_many")
