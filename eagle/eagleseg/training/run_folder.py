"""The folder of a training run: its settings, checkpoints, the best few of them, metrics.

    settings.json        what the run computes; another run in this folder is refused
    last.pth             everything that is needed to go on
    best.pth             the best checkpoint by ``select_by``
    step_000700.pth      the best ``keep_best``
    metrics.jsonl        a line per validation
    pictures/, logs/     pictures of validations; TensorBoard's files

A run that is started again goes on at last.pth.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eagleseg.checkpoints.files import load_checkpoint, save_checkpoint
from eagleseg.training.settings import TrainSettings
from spectralseg.files.records import EAGLE_RUN, METRICS_LINE, check
from spectralseg.files.storage import (
    DAMAGED,
    atomic_write,
    load_json,
    make_folder,
    parse_json,
    remove,
    save_json,
    save_picture,
)
from spectralseg.training.run_folder import make_ready, refuse_another_run

SETTINGS, LAST, BEST, METRICS, PICTURES, LOGS = (
    *("settings.json", "last.pth", "best.pth", "metrics.jsonl", "pictures", "logs"),
)
HIGHER_IS_BETTER = {"cluster_miou": True, "loss": False, "last": True}


class RunFolder:
    """Checkpoints and metrics of one run; used by the main process alone, apart from :meth:`last`.

    Parameters
    ----------
    path
        The folder; created by :meth:`begin`.
    settings
        Of the run.
    weights
        What the backbone tells of its weights, wherever they lie.

    Raises
    ------
    InputError
        The folder holds a run with other settings, and ``overwrite`` is not set.
    """

    def __init__(self, path: Path, settings: TrainSettings, weights: str) -> None:
        self.path, self.settings = path, settings
        self.identity = json.loads(json.dumps({**settings.identity(), "weights": weights}))
        self.ranking: list[tuple[float, int]] = []  # (value of select_by, step) of the checkpoints kept, best first
        before = None if settings.overwrite else load_json(path / SETTINGS)
        if before is not None:
            before = check(before, dict, path / SETTINGS, DAMAGED)
            advice = "choose another experiment_name, or overwrite=true"
            refuse_another_run(path, before, self.identity, advice)

    def begin(self) -> None:
        """Prepare the folder; files of an earlier run are removed, unless this run continues it."""
        goes_on = not self.settings.overwrite and (self.path / LAST).exists()
        make_ready(self.path, goes_on, LAST, (BEST, METRICS, "step_*.pth", PICTURES, LOGS))
        save_json(self.path / SETTINGS, self.identity)

    def last(self) -> dict[str, Any] | None:
        """What :meth:`save_last` wrote, or None at the start of a run."""
        path = self.path / LAST
        if self.settings.overwrite or not path.exists():
            return None
        state = check(load_checkpoint(path), EAGLE_RUN, path, "start anew with overwrite=true")
        self.ranking = [(float(value), int(step)) for value, step in state["ranking"].get(self.settings.select_by, [])]
        return state

    def save_last(self, content: dict[str, Any]) -> None:
        """Write last.pth."""
        save_checkpoint(self.path / LAST, {**content, "ranking": {self.settings.select_by: self.ranking}})

    def save_if_good(self, value: float, step: int, content: dict[str, Any], at_end: bool = False) -> None:
        """Keep a checkpoint if it is among the best ``keep_best`` by ``select_by``.

        Parameters
        ----------
        value
            Of ``select_by``; NaN is not kept.
        step, content
            The checkpoint, and when it was made.
        at_end
            Whether this is the run's last validation, which is kept if nothing else was.
        """
        if np.isnan(value):
            if at_end and not self.ranking:
                save_checkpoint(self.path / BEST, content)
            return
        sign = -1 if HIGHER_IS_BETTER[self.settings.select_by] else 1
        ranking = sorted([*self.ranking, (value, step)], key=lambda entry: (sign * entry[0], -entry[1]))
        kept, dropped = ranking[: self.settings.keep_best], ranking[self.settings.keep_best :]
        if (value, step) in kept:
            save_checkpoint(self._step_path(step), content)
            if kept[0] == (value, step):
                save_checkpoint(self.path / BEST, content)
        for _, old in dropped:
            if old != step:
                remove(self._step_path(old))
        self.ranking = kept

    def _step_path(self, step: int) -> Path:
        return self.path / f"step_{step:06d}.pth"

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; lines of the same step or later, written before a resume, are removed."""
        lines = [line for line in self.metrics() if line["step"] < metrics["step"]]
        with atomic_write(self.path / METRICS) as file:
            file.writelines((json.dumps(line) + "\n").encode() for line in [*lines, metrics])

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / METRICS
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [check(parse_json(line, path), METRICS_LINE, path, DAMAGED) for line in lines]

    def save_picture(self, name: str, picture: Image.Image) -> None:
        """Write pictures/<name>.png."""
        save_picture(make_folder(self.path / PICTURES) / f"{name}.png", picture)
