"""Self-training: it learns, goes on where it stopped, and says what is wrong."""

import functools
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from faults import kills
from running import error_line, in_two_processes
from semanticseg import self_training
from semanticseg.augment import seed_of
from semanticseg.deeplab import build_model
from semanticseg.prediction import predict
from semanticseg.run_folder import load_model
from semanticseg.self_training import Trainer, self_training_loss
from semanticseg.settings import Model
from spectralseg.running.launching import make_accelerator

CAT, DOG = 8, 12
MATCHING = "matching='[(0, 0), (1, 8), (2, 12)]'"


def checkpoint(folder: Path, name: str = "latest") -> dict[str, Any]:
    return torch.load(folder / f"checkpoint-{name}.pth", weights_only=True)


assert_equal = functools.partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.slow
def test_it_becomes_better_than_its_pseudo_labels(train, squares, tmp_path: Path, capsys):
    steps = ("max_train_steps=60", "lr=0.003", "evaluate_every=10", "data.loader.batch_size=6", "visualize=2")
    result = train(*squares.settings, *steps, "logger=tensorboard", "log_every=5", "checkpoint_every=20")
    history = result["history"]
    assert [entry["step"] for entry in history] == [0, 20, 40, 60]
    losses = [entry["loss"] for entry in history[1:]]
    assert losses[-1] < 0.8 * losses[0]
    pseudo = result["pseudo_labels"]["miou"]
    assert 0.4 < pseudo < 0.8
    assert history[-1]["miou"] > history[0]["miou"] + 0.2
    assert history[-1]["miou"] > pseudo
    assert result["final"]["miou"] == history[-1]["miou"]
    assert result["best"]["miou"] == max(entry["miou"] for entry in history)
    assert dict(map(tuple, result["matching"])) | {1: CAT, 2: DOG} == dict(map(tuple, result["matching"]))
    folder = tmp_path / "run"
    written = {path.name for path in folder.iterdir()}
    names = {"checkpoint-latest.pth", "checkpoint-best.pth", "checkpoint-0020.pth"}
    assert written == names | {"results.json", "confusion.png", "overlays", "tensorboard"}
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert len(list((folder / "overlays").iterdir())) == 2
    printed = capsys.readouterr().out
    assert "12 images to train on, 6 to validate; 1 process on cpu" in printed
    assert f"best: mIoU {100 * result['best']['miou']:.2f}" in printed


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    go = Trainer._train_step

    def stopping(self: Trainer, stream: Any) -> float:
        if self.step == step:
            raise KeyboardInterrupt
        return go(self, stream)

    monkeypatch.setattr(Trainer, "_train_step", stopping)


def test_interrupted_and_resumed_it_ends_with_the_same_weights(
    train, squares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """With everything that has a state of its own; then there is nothing more to do."""
    settings = (*squares.settings, MATCHING, "max_train_steps=8", "gradient_accumulation_steps=2")
    settings += ("ema=true", "ema_decay=0.9", "model.unfrozen_backbone_layers=1")
    train(*settings, "hydra.run.dir=whole")
    whole = checkpoint(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(SystemExit) as stop:
            train(*settings)
        assert stop.value.code == 130
    assert checkpoint(tmp_path / "run")["step"] == 6  # of the evaluation before
    capsys.readouterr()
    result = train(*settings)
    assert "going on at step 6 of 8" in capsys.readouterr().out
    interrupt_at(monkeypatch, 8)
    assert train(*settings) == result
    resumed = checkpoint(tmp_path / "run")
    assert resumed["step"] == whole["step"] == 8
    assert resumed["history"] == whole["history"] == result["history"]
    for part in ("model", "ema"):
        assert_equal(whole[part], resumed[part])
    assert_equal(*(checkpoint(tmp_path / folder, "best")["model"] for folder in ("whole", "run")))
    assert any(not torch.equal(value, whole["ema"][name]) for name, value in whole["model"].items())


def test_mixed_precision(train, squares):
    settings = (*squares.settings, MATCHING, "max_train_steps=1")
    full, mixed = train(*settings), train(*settings, "mixed_precision=bf16", "overwrite=true")
    losses = [result["history"][-1]["loss"] for result in (full, mixed)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_training_with_other_settings_is_not_continued(train, squares, tmp_path: Path):
    train(*squares.settings, MATCHING, "max_train_steps=2")
    message = error_line(train, *squares.settings, "matching='[(0, 0), (1, 8), (2, 3)]'", "max_train_steps=2", "lr=0.1")
    assert "holds a training, but with lr=0.005 instead of 0.1, matching=" in message
    assert "overwrite=true" in message
    result = train(*squares.settings, MATCHING, "max_train_steps=2", "lr=0.1", "overwrite=true")
    assert checkpoint(tmp_path / "run")["settings"]["lr"] == 0.1
    assert len(result["history"]) < 4
    (tmp_path / "run" / "checkpoint-latest.pth").write_bytes(b"damaged")
    assert "checkpoint-latest.pth cannot be read" in error_line(train, *squares.settings, MATCHING)


def test_predictions_are_written_and_evaluated(train, evaluate, squares, tmp_path: Path):
    result = train(*squares.settings, MATCHING, "max_train_steps=20", "lr=0.003", "ema=true", "ema_decay=0.5")
    generate = ("job_type=generate", *squares.settings)
    shutil.rmtree(squares.segments)  # no need of them any more
    train(*generate)
    predictions = tmp_path / "run" / "predictions"
    assert sorted(path.stem for path in predictions.glob("*.png")) == sorted(f"val{index}" for index in range(6))
    network, content = load_model(tmp_path / "run" / "checkpoint-best.pth")
    accelerator = make_accelerator("cpu")
    with Image.open(squares.voc / "JPEGImages" / "val0.jpg") as image:
        expected = predict(network.eval(), image.convert("RGB"), accelerator)
    written = Image.open(predictions / "val0.png")
    assert written.mode == "P"
    np.testing.assert_array_equal(np.asarray(written), expected)
    scored = evaluate(squares.settings[0], f"segments_dir={predictions}", "matching=identity")
    assert scored["miou"] == pytest.approx(result["best"]["miou"], abs=1e-12)
    assert scored["segments"]["made_with"]["step"] == content["step"] == result["best"]["step"]
    before = (predictions / "val0.png").stat().st_mtime_ns
    train(*generate, "generate_list=all", "checkpoint=run/checkpoint-best.pth")  # goes on
    assert len(list(predictions.glob("*.png"))) == 18
    assert (predictions / "val0.png").stat().st_mtime_ns == before
    assert "already holds 18" in error_line(train, *generate, "checkpoint=run/checkpoint-latest.pth")
    said = error_line(train, *generate, "data.val_list=other.txt")
    assert re.search(r"checkpoint-best.pth was validated on /.*, not on data.val_list=other.txt: set", said)


def test_checkpoints_that_cannot_be_used(train, squares, tmp_path: Path):
    generate = ("job_type=generate", *squares.settings)
    assert "no such checkpoint: " in error_line(train, *generate)
    torch.save({"model": {}}, tmp_path / "other.pth")
    assert "is no checkpoint of this self-training" in error_line(train, *generate, "checkpoint=other.pth")


def test_crf_before_self_training(train, squares, tmp_path: Path):
    result = train(*squares.settings, "crf=true", "crf_processes=0", "max_train_steps=1")
    assert len(list((tmp_path / "run" / "crf").glob("*.png"))) == 18  # the match is found on sharpened maps too
    coarse = train(*squares.settings, "max_train_steps=1", "overwrite=true")
    assert result["pseudo_labels"]["miou"] > coarse["pseudo_labels"]["miou"]  # noise in the cells is smoothed away


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("segments_dir=null", "segments_dir=... is missing"),
        ("job_type=eval", "no job_type 'eval'"),
        ("model.weights=/none.pth", "no such weights file: /none.pth"),
        ("data.loader.batch_size=13", "more than the 12 images"),
        ("data.loader.batch_size=1", "at least 2"),
        ("data.transform.resize_size=40", "resize_size=40 is below crop_size=48"),
        ("data.transform.std=[1,1,0]", "data.transform.std must have"),
        ("max_train_steps=0", "max_train_steps=0: must be at least 1"),
        ("lr=-1", "lr=-1.0: must be above 0"),
        ("ema_decay=1", "ema_decay=1.0: must be above 0 and below 1"),
        ("model.unfrozen_backbone_layers=-2", "unfrozen_backbone_layers=-2: must be at least -1"),
        ("mixed_precision=fp16", "fp16 needs a GPU"),
        ("device=nowhere", "no device 'nowhere'"),
        ("logger=paper", "no logger 'paper'"),
        ("matching='[(0, 0)]'", "matching says nothing about its cluster"),
        ("unfrozen_backbone_layers=1", "there is no setting"),
    ],
)
def test_bad_settings(train, squares, tmp_path: Path, override: str, message: str):
    assert message in error_line(train, *squares.settings, *(() if "matching" in override else (MATCHING,)), override)
    assert not list(tmp_path.glob("run/*.pth")) or "matching" in override


def test_a_bad_file_is_named(train, squares):
    (squares.segments / "train3.png").unlink()
    assert "segmaps/train3.png is missing" in error_line(train, *squares.settings, MATCHING)
    squares.write(squares.segments / "train3.png", np.zeros((7, 7)))
    assert "train3.png has 7x7 cells" in error_line(train, *squares.settings, MATCHING)
    squares.write(squares.segments / "train3.png", np.zeros((4, 5)))
    (squares.voc / "JPEGImages" / "train3.jpg").write_bytes(b"damaged")
    assert "train3.jpg cannot be read as an image" in error_line(train, *squares.settings, MATCHING, "overwrite=true")


def test_loss_and_gradient_leave_void_out():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    expected = torch.nn.functional.cross_entropy(logits[:1], labels[:1].long())
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    labels[1] = 255
    loss = self_training_loss(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected_gradient)
    labels[:] = 255
    loss = self_training_loss(logits, labels)
    assert loss == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_20_steps_are_those_of_a_plain_loop(train, squares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """AdamW on the mean cross-entropy of two batches a step, with a rate that falls linearly to 0."""
    batches, read = [], self_training.read_batches

    def noting(*arguments: Any) -> Iterator[Any]:
        batches.extend(read(*arguments))
        return iter(batches)

    monkeypatch.setattr(self_training, "read_batches", noting)
    train(*squares.settings, MATCHING, "max_train_steps=20", "lr=0.001", "gradient_accumulation_steps=2")
    state = checkpoint(tmp_path / "run")
    about = state["settings"]
    network, _ = build_model(Model(**about["model"]), about["data"]["num_classes"] + 1, about["seed"])
    network.train()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [value for value in network.parameters() if value.requires_grad], 1e-3, weight_decay=1e-8
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)
    for step in range(20):
        torch.manual_seed(seed_of(about["seed"], step, 0))  # of dropout
        optimizer.zero_grad()
        for images, labels in batches[2 * step : 2 * step + 2]:
            loss = torch.nn.functional.cross_entropy(network(images / 255), labels.long(), ignore_index=255)
            (loss / 2).backward()
        optimizer.step()
        rates.step()
    for name, expected in network.state_dict().items():
        travelled = (expected - start[name]).float().norm()
        assert (state["model"][name] - expected).float().norm() <= 1e-4 * travelled, name


# --- in processes of their own ---


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_report_once(train, squares, small, tmp_path: Path):
    settings = (*squares.settings, MATCHING, "data.loader.batch_size=12", "max_train_steps=5", "lr=0.002")
    settings += ("evaluate_every=100",)
    one = train(*settings)["history"]
    work = functools.partial(self_training.main, [*small, *settings, f"hydra.run.dir={tmp_path / 'two'}"])
    printed = in_two_processes(work, tmp_path)
    two = json.loads((tmp_path / "two" / "results.json").read_text())["history"]
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == [0, 5]
    assert two[0]["miou"] == one[0]["miou"]  # the same weights, and each image counted once
    assert two[0]["accuracy"] == one[0]["accuracy"]
    # then the batch norms of each process see half a batch
    assert two[1]["loss"] == pytest.approx(one[1]["loss"], rel=0.15)
    assert two[1]["miou"] == pytest.approx(one[1]["miou"], abs=0.15)
    assert "2 processes on cpu" in printed
    for once in (r"12 images to train on", r"^step 0, ", r"step 5, ", r"^best: mIoU", r"^results -> "):
        assert len(re.findall(once, printed, re.MULTILINE)) == 1, once


@pytest.mark.slow
def test_killed_and_started_again(squares, small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While it writes; each run in a process of its own, which this one's torch has left alone."""
    settings, replace, calls = (*small, *squares.settings, MATCHING, "max_train_steps=9"), os.replace, itertools.count()

    def start(folder: str) -> int | None:
        work = functools.partial(self_training.main, [*settings, f"hydra.run.dir={tmp_path / folder}"])
        return kills.run(work, tmp_path / "log")

    def replace_or_die(*paths: Any) -> None:
        if next(calls) == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        assert start("killed") == -signal.SIGKILL
    assert list((tmp_path / "killed").glob(".*"))  # what it was writing
    before = checkpoint(tmp_path / "killed")["step"]
    assert 0 < before < 9
    assert start("killed") == 0
    assert f"going on at step {before} of 9" in (tmp_path / "log").read_text()
    assert start("run") == 0
    whole, resumed = (checkpoint(tmp_path / folder) for folder in ("run", "killed"))
    assert whole["history"] == resumed["history"]
    assert all(torch.equal(value, resumed["model"][name]) for name, value in whole["model"].items())
    assert not list((tmp_path / "killed").glob(".*"))
