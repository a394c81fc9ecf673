"""Training: it learns, resumes exactly, stops in time, keeps the right checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from eagle_layouts import scenes, write_directory
from eagle_runs import data_overrides, metrics
from eagleseg.checkpoints.files import load_checkpoint
from running import in_two_processes
from spectralseg.training.logs import Log

TRAIN = "train_segmentation_eigen"


def weights(folder: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name)["model"]


@pytest.mark.slow
def test_two_textures_are_told_apart(run_script: Callable[..., Path], textures: list[str]):
    folder = run_script(
        TRAIN,
        *textures,
        *("max_steps=80", "val_freq=80", "checkpoint_freq=80", "step_schedulers=20", "extra_clusters=0"),
        *("batch_size=8", "eigen_cluster_out=8", "eigen_cluster_lr=5e-3", "lr=2e-3"),
    )
    last = metrics(folder)[-1]
    assert last["step"] == 80
    assert last["cluster_strict_accuracy"] > 95
    assert last["linear_accuracy"] > 95


def test_a_run_resumed_with_workers_is_the_uninterrupted_one(run_script: Callable[..., Path], textures: list[str]):
    whole = run_script(TRAIN, *textures, "max_steps=6", folder="whole")
    run_script(TRAIN, *textures, "max_steps=3", "checkpoint_freq=3", folder="parts")
    parts = run_script(TRAIN, *textures, "max_steps=6", "num_workers=1", folder="parts")
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=0)
    # the second validation of the interrupted run was at its end
    assert metrics(whole)[-1] == metrics(parts)[-1]
    assert [line["step"] for line in metrics(parts)] == [2, 3, 4, 6]


def test_loss_that_is_no_number_stops_and_keeps_checkpoints(
    run_script: Callable[..., Path], refused: Callable[..., str], textures: list[str], tmp_path: Path
):
    run_script(TRAIN, *textures, "max_steps=2")
    before = weights(tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    state["model"]["linear_probe.weight"][0] = 3e38
    torch.save(state, tmp_path / "run" / "last.pth")
    message = refused(TRAIN, *textures, "max_steps=4")
    assert "'linear'" in message
    assert "lr" in message
    torch.testing.assert_close(before, weights(tmp_path / "run", "best.pth"), rtol=0, atol=0)


def test_diverging_weights_are_not_saved(
    refused: Callable[..., str], textures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def diverge(optimizer: torch.optim.Adam, closure: object = None) -> None:
        optimizer.param_groups[0]["params"][0].data[0] = torch.nan

    monkeypatch.setattr(torch.optim.Adam, "step", diverge)
    assert "head.A.weight is no longer finite" in refused(TRAIN, *textures, "checkpoint_freq=1")
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.parametrize("select_by", ["cluster_miou", "last"])
def test_best_checkpoints(run_script: Callable[..., Path], textures: list[str], select_by: str):
    folder = run_script(
        TRAIN, *textures, "max_steps=5", "val_freq=1", "keep_best=2", f"select_by={select_by}", "checkpoint_freq=5"
    )
    lines = metrics(folder)
    value = "cluster_released_miou" if select_by == "cluster_miou" else "step"
    best = sorted(lines, key=lambda line: (line[value], line["step"]), reverse=True)[:2]
    assert {path.name for path in folder.glob("step_*.pth")} == {f"step_{line['step']:06d}.pth" for line in best}
    assert load_checkpoint(folder / "best.pth")["step"] == best[0]["step"]


def test_selection_by_loss_begins_after_the_schedule(run_script: Callable[..., Path], textures: list[str]):
    folder = run_script(TRAIN, *textures, "max_steps=4", "val_freq=1", "keep_best=9", "select_by=loss")
    assert {path.name for path in folder.glob("step_*.pth")} == {"step_000003.pth", "step_000004.pth"}
    folder = run_script(TRAIN, *textures, "max_steps=2", "select_by=loss", folder="within the schedule")
    assert load_checkpoint(folder / "best.pth")["step"] == 2
    assert not list(folder.glob("step_*.pth"))


def test_without_labels(
    run_script: Callable[..., Path], refused: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "data"
    write_directory(root / "bare", {"train": scenes(6), "val": scenes(2, first=9)}, labels=False)
    overrides = data_overrides(root, "bare", 3)
    folder = run_script(TRAIN, *overrides, "select_by=loss", "val_freq=4")
    assert f"step 4: loss {metrics(folder)[0]['loss']:.4f}\n" in capsys.readouterr().err
    assert "cluster_released_miou" not in metrics(folder)[-1]
    assert np.isfinite(metrics(folder)[-1]["loss"])
    assert load_checkpoint(folder / "best.pth")["match"] == {}
    assert (folder / "pictures" / "step_000004_predictions.png").exists()
    assert "select_by" in refused(TRAIN, *overrides, "select_by=cluster_miou", folder="other")


def test_variants_train(run_script: Callable[..., Path], textures: list[str]):
    """Each to other weights than the usual settings and the other variants, as another seed does."""
    settings = [*textures, "label_smoothing=true", "max_steps=3", "pictures=0"]
    folders = [run_script(TRAIN, *settings, folder="usual")]
    for variant in ("eicue_color=rgb", "eicue_color=none", "centroid_mode=mean", "centroid_mode=learned", "seed=1"):
        folders.append(run_script(TRAIN, *settings, variant, folder=variant.partition("=")[2]))
    assert len({weights(folder)["project_head.weight"].numpy().tobytes() for folder in folders}) == len(folders)


@pytest.mark.parametrize("config", ["train_config_cocostuff", "train_config_cityscapes", "train_config_potsdam"])
def test_ablation_of_the_losses(run_script, textures: list[str], monkeypatch: pytest.MonkeyPatch, config: str):
    logged: dict[int, set[str]] = {}

    def note(log: Log, values: dict[str, float], step: int) -> None:
        logged[step] = {name.removeprefix("loss/") for name in values} if "loss/total" in values else logged[step]

    monkeypatch.setattr(Log, "scalars", note)
    settings = ["--config-name", config, *textures, "max_steps=3", "val_freq=3", "scalar_log_freq=1"]
    settings += ["pictures=0", "feature_samples=4"]
    expected = {"correspondence_positive", "correspondence_negative", "cluster", "linear", "total"}
    states = {}
    for part, more in (("correspondence", set()), ("eicue", {"eigen", "eigen_blur"}), ("contrast", set())):
        states[part] = weights(run_script(TRAIN, *settings, f"+losses={part}", folder=part))
        expected |= more
        assert logged[1] == logged[2] == expected
        assert logged[3] == expected | ({"contrast", "contrast_blur"} if part == "contrast" else set())
    shared = [name for name in states["eicue"] if not name.startswith("eigen_probe")]
    same = [all(torch.equal(states["eicue"][name], states[part][name]) for name in shared) for part in states]
    assert same == [True, True, False]  # EiCue's loss reaches its own probes alone
    probes = [states[part]["eigen_probe.clusters"] for part in ("correspondence", "eicue")]
    assert not torch.equal(*probes)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("batch_size=1", "batch_size"),
        ("select_by=luck", "no select_by 'luck'"),
        ("mixed_precision=int8", "no mixed_precision 'int8'"),
        ("eicue_source=precomputed", "eigs_dir"),
        ("eicue_source=none", "momentum_limit=0"),
        ("max_steps=0", "max_steps=0"),
        ("nonsense=1", "nonsense"),
        ("patch_size=16", "patch_size"),
        ("backbone=lab_hog9", "no backbone"),
        ("dir_dataset_name=elsewhere", "elsewhere"),
        ("dir_dataset_n_classes=1", "class"),
        ("features_dir=nowhere", "nowhere"),
    ],
)
def test_bad_settings(refused: Callable[..., str], textures: list[str], override: str, says: str, tmp_path: Path):
    assert says in refused(TRAIN, *textures, override)
    assert not list((tmp_path / "run").glob("*.pth"))


def test_another_run_in_the_folder_is_refused(
    run_script: Callable[..., Path], refused: Callable[..., str], textures: list[str]
):
    folder = run_script(TRAIN, *textures, "max_steps=2")
    before = (folder / "last.pth").read_bytes()
    assert "lr=0.0005 instead of 0.1" in refused(TRAIN, *textures, "max_steps=2", "lr=0.1")
    assert (folder / "last.pth").read_bytes() == before
    refused(TRAIN, *textures, "max_steps=2", "overwrite=true", "backbone=dino_vits16", "weights=nowhere.pth")
    assert (folder / "last.pth").read_bytes() == before  # nothing is lost to a run that cannot begin
    run_script(TRAIN, *textures, "max_steps=2", "lr=0.1", "overwrite=true")
    assert (folder / "last.pth").read_bytes() != before


@pytest.mark.slow
def test_two_processes_train_as_one(run_script: Callable[..., Path], textures: list[str], tmp_path: Path):
    settings = [*textures, "max_steps=4", "val_freq=4", "checkpoint_freq=2", "batch_size=8"]
    alone = run_script(TRAIN, *settings, folder="alone")
    together = tmp_path / "together"
    said = in_two_processes(partial(run_script, TRAIN, *settings, folder=together), tmp_path)
    assert said.count("cluster mIoU") == 1  # it reports once
    one, two = metrics(alone)[-1], metrics(together)[-1]
    assert one["loss"] == pytest.approx(two["loss"], rel=0.2)
    assert one["linear_accuracy"] == pytest.approx(two["linear_accuracy"], abs=10)


def test_batches_too_small_for_the_processes(
    refused: Callable[..., str], textures: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 2))
    assert "batch_size=2 cannot be shared by 2 processes" in refused(TRAIN, *textures, "batch_size=2")
