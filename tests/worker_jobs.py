"""Work for processes; in a module of its own, because processes find it by its name."""

import os
import signal
import time
from pathlib import Path

from spectralseg.errors import InputError, OutputError


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
