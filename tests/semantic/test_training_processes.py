"""Self-training as users start it: in two processes, and killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from running import run_command, start_command
from shared_data import PROJECT

TRAIN = str(PROJECT / "semantic-segmentation" / "train.py")
MATCHING = "matching='[(0, 0), (1, 8), (2, 12)]'"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", TRAIN]
TIMEOUT = 300


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_report_once(train, squares, small, tmp_path: Path):
    settings = (*squares.settings, MATCHING, "data.loader.batch_size=12", "max_train_steps=15", "lr=0.002")
    settings += ("evaluate_every=100",)
    one = train(*settings)["history"]
    command = [*ACCELERATE, *small, *settings, f"hydra.run.dir={tmp_path / 'two'}"]
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    two = results(tmp_path / "two")["history"]
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == [0, 15]
    assert two[0]["miou"] == one[0]["miou"]  # the same weights, and each image counted once
    assert two[0]["accuracy"] == one[0]["accuracy"]
    # then the batch norms of each process see half a batch
    assert two[1]["loss"] == pytest.approx(one[1]["loss"], rel=0.15)
    assert two[1]["miou"] == pytest.approx(one[1]["miou"], abs=0.15)
    assert "2 processes on cpu" in done.stdout
    for once in (r"12 images to train on", r"^step 0, ", r"step 15, ", r"^best: mIoU", r"^results -> "):
        assert len(re.findall(once, done.stdout, re.MULTILINE)) == 1, once


@pytest.mark.slow
def test_killed_and_started_again(squares, small, tmp_path: Path):
    settings = (*squares.settings, MATCHING, "max_train_steps=9")
    # Each run in a process of its own: sums depend on what else a process has done with torch's threads and memory.
    command = [sys.executable, TRAIN, *small, *settings, f"hydra.run.dir={tmp_path / 'killed'}"]
    latest = tmp_path / "killed" / "checkpoint-latest.pth"
    seen, deadline = set(), time.monotonic() + TIMEOUT
    first = start_command(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while len(seen) < 2 and first.poll() is None and time.monotonic() < deadline:  # that of step 0 and one more
            seen |= {latest.stat().st_mtime_ns} if latest.exists() else set()
            time.sleep(0.01)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    before = torch.load(latest, weights_only=True)
    assert 0 < before["step"] < 9
    assert f"going on at step {before['step']} of 9" in run_command(command).stdout
    assert run_command([*command[:-1], f"hydra.run.dir={tmp_path / 'run'}"]).returncode == 0
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoint-latest.pth", weights_only=True) for name in ("run", "killed")
    )
    assert whole["history"] == resumed["history"]
    assert all(torch.equal(value, resumed["model"][name]) for name, value in whole["model"].items())
    assert not list((tmp_path / "killed").glob(".*"))  # what the killed process was writing
