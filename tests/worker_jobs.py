"""Work for processes; in a module of its own, because processes find it by its name."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from spectralseg.errors import InputError, OutputError
from spectralseg.progress import verbose_since


def work(folder: str, image_id: str) -> None:
    """Write ``<folder>/<image_id>.pth``, or end badly in the way that the id names."""
    if image_id.startswith("exit"):
        os._exit(3)
    if image_id.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if image_id.startswith("raise"):
        raise ZeroDivisionError("no patch\nat all")
    if image_id.startswith("input"):
        raise InputError("the image is upside down")
    if image_id.startswith("output"):
        raise OutputError("cannot write: the disk is full")
    Path(folder, f"{image_id}.pth").write_text(describe_process())
    time.sleep(0.05)


def describe_process() -> str:
    """Process, threads of torch, threads that libraries are told to use, and what Ctrl-C does."""
    import torch

    variables = [os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
    return " ".join(map(str, (os.getpid(), torch.get_num_threads(), *variables)))


def note_nothing(image_id: str) -> None:
    """Nothing at all, in a worker."""


def doubled(array: np.ndarray) -> tuple[int, np.ndarray]:
    """This process's id and twice the array; item 0 takes longest, 13 ends the process, 14 is refused, 15 is a bug."""
    number = int(array.flat[0])
    if number == 0:
        time.sleep(0.3)
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 14:
        raise InputError("14 is refused")
    if number == 15:
        raise ZeroDivisionError("no patch")
    return os.getpid(), 2 * array


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def stream_slowly() -> None:
    """Go on for long, and say when the first result is there. For a process of its own."""
    from spectralseg.running.workers import stream

    for number, _ in enumerate(stream(slow, iter([0.01] + [0.2] * 1000), 2)):
        if number == 0:
            print("first", flush=True)


def save_since(folder: Path, name: str) -> None:
    """Write since when this process is verbose."""
    (folder / name).write_text(str(verbose_since()))
