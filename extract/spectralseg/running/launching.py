"""Start a training under Accelerate: on a CPU, a GPU, or in several processes."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from spectralseg.errors import InputError, check_choice
from spectralseg.running.devices import pick_device

PRECISIONS = ("no", "fp16", "bf16")


def make_accelerator(
    device: str = "auto",
    mixed_precision: str = "no",
    logger: str | None = None,
    log_folder: str | Path | None = None,
) -> Accelerator:
    """An Accelerator for this process, one of those that a launcher started.

    Parameters
    ----------
    device
        As for :func:`spectralseg.running.devices.pick_device`. On a machine without a GPU it is the CPU, in several
        processes too: Accelerate must be told so, or each of them would train alone.
    mixed_precision
        ``no``, ``fp16`` (GPUs alone) or ``bf16``.
    logger
        ``tensorboard``, ``wandb`` or None.
    log_folder
        Where the logger's files go.

    Raises
    ------
    InputError
        No such device or precision, fp16 without a GPU, or a logger that is not installed.
    """
    picked = pick_device(device)
    check_choice("mixed_precision", mixed_precision, PRECISIONS)
    if mixed_precision == "fp16" and picked.type != "cuda":
        raise InputError(f"mixed_precision fp16 needs a GPU, and this trains on {picked.type}; bf16 works on both")
    if logger == "wandb":
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise InputError("the logger wandb needs wandb: pip install -e '.[wandb]'") from None
    elif logger not in (None, "tensorboard"):
        raise InputError(f"no logger '{logger}'; known are tensorboard and wandb")
    AcceleratorState._reset_state()  # an earlier training of this process (--multirun) may have had another precision
    return Accelerator(
        cpu=picked.type == "cpu",
        mixed_precision=mixed_precision,
        log_with=logger,
        project_dir=log_folder,
    )


def start_asked_processes() -> None:
    """Become the processes that ``accelerate launch --cpu --num_processes N`` was asked for.

    On CPUs Accelerate starts processes by MPI alone; without it that command silently runs a single one. Called at the
    start of a script, this replaces such a process by PyTorch's own launcher of N processes of the same script, and
    does nothing in all other cases.
    """
    count = _asked_processes()
    if count > 1:
        script = os.path.abspath(sys.modules["__main__"].__file__ or sys.argv[0])
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *launcher, script, *sys.argv[1:]])


def _asked_processes() -> int:
    """N if this is the only process of ``accelerate launch --cpu --num_processes N``, else 1."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true" or "WORLD_SIZE" in os.environ:
        return 1
    parent = psutil.Process().parent()
    try:
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return 1
    return asked_processes(words, Path(sys.argv[0]).name)


def asked_processes(words: Sequence[str], script: str) -> int:
    """The number after ``--num_processes`` in a command line of Accelerate's launcher, or 1.

    ``words`` are the command line's; those from the script on (a file called ``script``) are the script's own.
    """
    names = [Path(word).name for word in words]
    words = words[: names.index(script)] if script in names else words
    if "--mpirun_hostfile" in words or not any("accelerate" in name for name in names[:3]):
        return 1
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") == "__num_processes" and (value if equals else following).isdecimal():
            return int(value if equals else following)
    return 1
