"""The folder of a run: what an earlier run left there is continued, refused, or removed."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from spectralseg.errors import InputError
from spectralseg.files.storage import make_folder, remove, remove_leftovers
from spectralseg.running.stage import differences


def refuse_another_run(folder: Path, before: dict[str, Any], now: dict[str, Any], advice: str) -> None:
    """Raise an :class:`InputError` that names the settings that differ, and ends with the advice, if any does."""
    if difference := differences(before, now):
        raise InputError(f"{folder} holds a training, but {difference}; {advice}")


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any], path: Path) -> None:
    """Give an Adam the state of another in the checkpoint ``path``; an :class:`InputError` where it does not fit."""
    own = [dict(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
        for before, now in zip(own, optimizer.param_groups, strict=True):
            now.update({name: value for name, value in before.items() if name != "params"})  # settings are this run's
            for parameter in before["params"]:
                kept = optimizer.state[parameter]
                if kept == {}:
                    continue
                fits = all(bool(value.isfinite().all()) for value in kept.values()) and float(kept["step"]) >= 0
                if not fits or {kept[name].shape for name in ("exp_avg", "exp_avg_sq")} != {parameter.shape}:
                    raise ValueError
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError):
        remedy = "start anew: overwrite=true"
        raise InputError(f"{path} holds an optimizer's state that does not fit this run; {remedy}") from None


def make_ready(folder: Path, goes_on: bool, last: str, others: Sequence[str]) -> None:
    """Create the folder of a run; unless the run goes on, what an earlier one left there is removed.

    Parameters
    ----------
    folder
        Of the run.
    goes_on
        Whether the run continues the one in the folder.
    last
        Name of the checkpoint at which a run goes on. It is removed first: without it nothing is resumed.
    others
        Names and patterns of the other files and folders.
    """
    make_folder(folder)
    remove_leftovers(folder, below=True)
    if goes_on:
        return
    remove(folder / last)
    for path in [path for pattern in others for path in folder.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove(path)
