"""Fixtures that several rooms of the tests share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

import shared_data

# Times vary a lot on machines that are shared; an example must not fail for being slow. CI draws the same ones always.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run as one process, whatever started them."""
    for name in [name for name in os.environ if name in LAUNCHER_VARIABLES or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def standin_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Model name -> checkpoint with stand-in weights; skips where ../shared is absent."""
    return lambda model: shared_data.standin_weights(tmp_path_factory, model)
