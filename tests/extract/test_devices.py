"""Which device a process computes on."""

import pytest
import torch

from spectralseg.errors import InputError
from spectralseg.running.devices import pick_device


def check_refused(name):
    with pytest.raises(InputError, match=f"^no device '{name}' here: ") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_cpu():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", "cuda:x", "meta"])
def test_devices_that_are_not_here(name):
    check_refused(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu():
    check_refused("cuda")
    assert pick_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("variables", "index"),
    [({}, 0), ({"LOCAL_RANK": "2"}, 2), ({"SLURM_LOCALID": "3"}, 3), ({"LOCAL_RANK": "6", "SLURM_LOCALID": "1"}, 2)],
)
def test_processes_share_the_gpus_of_a_machine(variables, index, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert pick_device("auto") == torch.device("cuda", index)


def test_a_local_rank_that_is_no_number(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(InputError, match="LOCAL_RANK='first', which is no whole number"):
        pick_device()
