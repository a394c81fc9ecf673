"""Run scripts as users do, extract.py on pictures that are small, and check what they say."""

import multiprocessing
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from shared_data import PROJECT
from spectralseg.commands import cli
from spectralseg.errors import InputError
from spectralseg.running.fire_app import main

EXTRACT = PROJECT / "extract" / "extract.py"


def command_line(*arguments: object) -> list[str]:
    """``python extract.py ...``, whatever the folder."""
    return [sys.executable, str(EXTRACT), *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """This environment with some variables more."""
    return {**os.environ, **variables}


def run_command(command: Sequence[object], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    options = {"timeout": 300, "capture_output": True, "text": True, "check": False, **options}
    return subprocess.run([str(word) for word in command], **options)


def start_command(command: Sequence[object], **options: object) -> subprocess.Popen[str]:
    """Start a command in a process group of its own.

    Ctrl-C reaches it as at a terminal: what started the tests may have ignored it (as ``nohup`` and scripts in the
    background do), and processes inherit that.
    """
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    options = {"text": True, "start_new_session": True, **pipes, **options}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([str(word) for word in command], **options)
    finally:
        signal.signal(signal.SIGINT, before)


def forked(work: Callable[[], object], log: Path, **variables: str) -> multiprocessing.Process:
    """A process that is forked from this one, where everything is imported, for work that speaks into a file."""
    process = multiprocessing.get_context("fork").Process(target=_logged, args=(work, log, variables))
    process.start()
    return process


def _logged(work: Callable[[], object], log: Path, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1)  # not what pytest reads
    work()


def in_two_processes(work: Callable[[], object], folder: Path) -> str:
    """Do the work in two processes, as those that torchrun starts; what they said."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    AcceleratorState._reset_state(reset_partial_state=True)  # which says that one process trains
    logs = [folder / f"{rank}.log" for rank in "01"]
    processes = [forked(work, log, RANK=log.stem, LOCAL_RANK=log.stem, **launched) for log in logs]
    for process in processes:
        process.join(300)
    said = "".join(log.read_text() for log in logs)
    assert [process.exitcode for process in processes] == [0, 0], said
    return said


def run_script_here(monkeypatch: pytest.MonkeyPatch, script: Path, *arguments: object) -> None:
    """Run a script in this process, as if it were started with these arguments."""
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")


def start_extract(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start extract.py in a process group of its own."""
    return start_command(command_line(*arguments), **options)


def as_flags(**values: object) -> list[str]:
    """``--name=value`` for each of them."""
    return [f"--{name}={value}" for name, value in values.items()]


def features_flags(images: Path, output: Path, names: Sequence[str] | None = None) -> list[str]:
    """``extract_features`` with lab_hog of the images in a folder (all of them, in a list beside it)."""
    if names is None:
        names = sorted(path.name for path in images.iterdir())
    images_list = output.with_suffix(".txt")
    images_list.write_text("".join(f"{name}\n" for name in names))
    flags = {"images_list": images_list, "images_root": images, "model_name": "lab_hog", "batch_size": 1}
    return ["extract_features", *as_flags(**flags, output_dir=output)]


def eigs_flags(images: Path, features: Path, output: Path, K: int = 3) -> list[str]:
    """``extract_eigs`` of K eigenvectors."""
    return ["extract_eigs", *as_flags(images_root=images, features_dir=features, output_dir=output, K=K)]


def run_here(*arguments: object, **flags: object) -> None:
    """Run a command of extract.py in this process."""
    main(cli.COMMANDS, [*map(str, arguments), *as_flags(**flags)])


def error_line(call: Callable[..., object], *arguments: object, **options: object) -> str:
    """The one line of a script that must end with status 1, or of a function that must raise ``InputError``."""
    with pytest.raises((SystemExit, InputError)) as stop:
        call(*arguments, **options)
    error = stop.value.code if isinstance(stop.value, SystemExit) else str(stop.value)
    assert isinstance(error, str)
    assert error.startswith("error: ") == isinstance(stop.value, SystemExit)
    assert "\n" not in error
    return error


def refused_here(capsys: pytest.CaptureFixture[str], *arguments: object, **flags: object) -> str:
    """Run a command of extract.py that must fail with status 1; all that it says, its error as the last line."""
    error = error_line(run_here, *arguments, **flags)
    said = capsys.readouterr().err.replace("\r", "\n")
    assert "Traceback" not in said
    return said + error


def reported(said: str, command: str) -> dict[str, str]:
    """id -> why it failed, from what a command said."""
    return dict(re.findall(rf"{command}: (\S+) failed: (.*)", said))


def extracted(images: Path, folder: Path, *flags: object, eigs: str = "eigs") -> Path:
    """The folder with ``features`` (lab_hog) and five eigenvectors of the images of another folder."""
    folder.mkdir(exist_ok=True)
    run_here(*features_flags(images, folder / "features"), *flags)
    run_here(*eigs_flags(images, folder / "features", folder / eigs, K=5))
    return folder


def picture(seed: int, width: int = 80, height: int = 64) -> Image.Image:
    """A bright rectangle on a noisy ground: small, and no two alike."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 100, (height, width, 3), dtype=np.uint8)
    top, left = random.integers(0, height // 2), random.integers(0, width // 2)
    pixels[top : top + height // 2, left : left + width // 2] += random.integers(60, 150, 3, dtype=np.uint8)
    return Image.fromarray(pixels)


def write_pictures(folder: Path, count: int, **size: int) -> Path:
    """``count`` pictures image0.png, image1.png, ... in a new folder."""
    folder.mkdir(parents=True)
    for index in range(count):
        picture(index, **size).save(folder / f"image{index}.png")
    return folder


def touch(folder: Path, *names: str) -> Path:
    """The folder, with empty files in it."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


class Trap:
    """Whoever unpickles it without care makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def contents(folder: Path, suffix: str = "") -> dict[str, bytes]:
    """Name -> bytes of all files in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(suffix)}
