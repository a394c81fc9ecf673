"""Choice of the device, and how its memory is kept."""

import ctypes
import os

import psutil
import torch

from spectralseg.errors import InputError


def integer_variable(name: str) -> int:
    """A whole number that a launcher left in the environment, or an :class:`InputError` that shows what is there."""
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        raise InputError(f"the environment says {name}={os.environ.get(name)!r}, which is no whole number") from None


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` (a GPU where there is one, else the CPU) or a torch device by its name.

    On a machine with several GPUs each process of a launcher takes the one of its LOCAL_RANK (or SLURM_LOCALID).

    Raises
    ------
    InputError
        No such device here.
    """
    variable = "LOCAL_RANK" if "LOCAL_RANK" in os.environ else "SLURM_LOCALID"
    local_rank = integer_variable(variable) if variable in os.environ else 0
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank % torch.cuda.device_count())
        return torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
        torch.zeros(1, device=device).cpu()  # 'meta' can be allocated on, but holds nothing
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError where it was built without CUDA
        raise InputError(f"no device '{name}' here: {str(error).splitlines()[0]}") from None
    return device


def device_or_processes(name: str, multiprocessing: int) -> torch.device:
    """As :func:`pick_device`, for commands that use a GPU or several processes: ``auto`` is the CPU for processes."""
    device = pick_device("cpu" if multiprocessing > 0 and name == "auto" else name)
    if multiprocessing > 0 and device.type != "cpu":
        raise InputError(f"--multiprocessing is for CPUs: leave it out, or leave out --device {name}")
    return device


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it after each layer; without glibc this does nothing.

    Activations of some ten megabytes are otherwise mapped, zeroed and unmapped for every layer of every image, which
    costs a tenth of the time of a ViT on a CPU.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of mallopt's parameters in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc takes
        mallopt(trim_threshold, (1 << 31) - 1)


def require_memory(cells: int, bytes_per_pair: int, remedy: str) -> None:
    """Raise an :class:`InputError` with the ``remedy`` where dense matrices of ``cells`` x ``cells`` would not fit.

    ``bytes_per_pair`` are those that a pair of cells needs in all matrices that are held at once.
    """
    needed, available = bytes_per_pair * cells**2, psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"{cells} patches need about {needed / 1e9:.0f} GB for their affinities, {available / 1e9:.0f} GB are "
            f"free; {remedy}"
        )
