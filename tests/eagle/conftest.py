"""EAGLE's scripts in this process, and a problem whose answer is known."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from eagle_layouts import write_directory
from eagle_runs import SCRIPTS, data_overrides, two_textures
from running import error_line


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``run_script(name, "key=value", ..., folder="run")`` returns the run folder, one of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EAGLE_DATA_ROOT", raising=False)

    def call(name: str, *overrides: object, folder: str = "run") -> Path:
        arguments = [*map(str, overrides), f"hydra.run.dir={folder}"]
        SCRIPTS[name].main(arguments)
        return tmp_path / folder

    return call


@pytest.fixture
def refused(run_script: Callable[..., Path]) -> Callable[..., str]:
    """The one line of a run that must fail."""
    return functools.partial(error_line, run_script)


@pytest.fixture
def textures(tmp_path: Path) -> list[str]:
    """Overrides for a ``directory`` data set of two textures, 24 images to train on and 8 to validate."""
    root = tmp_path / "data"
    splits = {"train": [two_textures(n) for n in range(24)], "val": [two_textures(100 + n) for n in range(8)]}
    write_directory(root / "textures", splits)
    return data_overrides(root, "textures", 2)
