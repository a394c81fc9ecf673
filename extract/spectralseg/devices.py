"""Choice of the device."""

import os

import torch

from spectralseg.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` (a GPU where there is one, else the CPU) or a torch device by its name.

    On a machine with several GPUs each process of a launcher takes the one of its LOCAL_RANK (or SLURM_LOCALID).

    Raises
    ------
    InputError
        No such device here.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank % torch.cuda.device_count())
        return torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError where it was built without CUDA
        raise InputError(f"no device '{name}' here: {str(error).splitlines()[0]}") from None
    return device
