"""Fixtures that several rooms of the tests share, and what makes every run of the tests the same."""

import logging
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings
from PIL import Image
from threadpoolctl import threadpool_limits

import shared_data
from file_server import FileServer
from spectralseg.drawing import charts
from spectralseg.running.workers import ONE_THREAD

# Everybody draws the same examples, in the same order, whatever was drawn before; `make fuzz` draws new ones.
# Times vary a lot on machines that are shared: no example may fail for being slow.
settings.register_profile("fixed", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("fuzz", deadline=None, derandomize=False, print_blob=True, max_examples=500)
settings.load_profile("fixed")

SEEN_BY_RUNS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "HYDRA_FULL_ERROR", "EAGLE_DATA_ROOT", "COLUMNS")
SET_BY_LIBRARIES = ("PYTEST_CURRENT_TEST", "KMP_", "TORCH", "TRITON_")  # when a part of them is first imported
SEEN_BY_RUNS_PREFIXES = ("SLURM_", "ACCELERATE_", "WANDB_")


def pytest_configure(config: pytest.Config) -> None:
    """All tests compute on the CPU, wherever they run, but those of a GPU, which are asked for: ``make test-gpu``."""
    if not any("test_gpu" in str(argument) for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """Tests run as one process of one thread with no settings of the user's, whatever started them.

    One thread, because rounding depends on their number, and because several processes hinder each other with more.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in SEEN_BY_RUNS or name.startswith(SEEN_BY_RUNS_PREFIXES):
                patch.delenv(name)
        patch.setenv("MPLBACKEND", "Agg")  # Streamlit sets it
        for name, value in ONE_THREAD.items():  # for libraries that are loaded from now on, and for child processes
            patch.setenv(name, value)
        torch.set_num_threads(1)
        with threadpool_limits(1):
            yield


def _state_of_process() -> dict[str, object]:
    """What a test may change for those that follow it."""
    return {
        **{f"${name}": value for name, value in os.environ.items() if not name.startswith(SET_BY_LIBRARIES)},
        # torch's loaders set that for SIGCHLD, once and for all
        **{f"signal {n}": signal.getsignal(n) for n in signal.valid_signals() - {signal.SIGCHLD}},
        "current folder": os.getcwd(),
        "sys.path": list(sys.path),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "torch's gradients": torch.is_grad_enabled(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "numpy's errors": np.geterr(),
        "Pillow's limit of pixels": Image.MAX_IMAGE_PIXELS,
        "Hydra": GlobalHydra.instance().is_initialized(),
    }


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """A test draws the same random numbers wherever it stands, and leaves the process as it found it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    assert torch.get_num_threads() == 1, "changed by an import or by a fixture of a module: rounding depends on it"
    before = _state_of_process()
    yield
    after = _state_of_process()
    changed = {name: after.get(name) for name in before | after if before.get(name) != after.get(name)}
    assert changed == {}, "left changed"


@pytest.fixture(autouse=True)
def _charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are composed but not rendered, which takes longer than what they show, unless a test looks at them."""
    if request.node.get_closest_marker("charts") is None:
        monkeypatch.setattr(charts, "_drawn", lambda figure: Image.new("RGB", (8, 8)))


@pytest.fixture(scope="session")
def standin_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Model name -> checkpoint with stand-in weights; skips where ../shared is absent."""
    return lambda model: shared_data.standin_weights(tmp_path_factory, model)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium; skips where it, or playwright, is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FileServer]]:
    """Arguments of :class:`FileServer` -> one that runs; no proxy stands between."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    servers = []

    def start(*arguments: object, **options: object) -> FileServer:
        server = FileServer(*arguments, **options)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()
