"""The folder of a run: what an earlier run left there is continued, refused, or removed."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectralseg.errors import InputError
from spectralseg.files.storage import make_folder, remove, remove_leftovers
from spectralseg.running.stage import differences


def refuse_another_run(folder: Path, before: dict[str, Any], now: dict[str, Any], advice: str) -> None:
    """Raise an :class:`InputError` that names the settings that differ, and ends with the advice, if any does."""
    if difference := differences(before, now):
        raise InputError(f"{folder} holds a training, but {difference}; {advice}")


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
    remove_leftovers(folder)
    if goes_on:
        return
    remove(folder / last)
    for path in [path for pattern in others for path in folder.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove(path)
