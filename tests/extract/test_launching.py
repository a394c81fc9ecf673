"""Processes and devices of a training."""

import sys

import pytest
import torch

from running import environment, run_command
from shared_data import PROJECT
from spectralseg.errors import InputError
from spectralseg.running.launching import asked_processes, make_accelerator, start_asked_processes


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("python /bin/accelerate launch --num_processes 2 --cpu train.py lr=1", 2),
        ("python /bin/accelerate launch --cpu --num-processes=3 ../semantic/train.py", 3),
        ("accelerate-launch --cpu --num_processes 4 train.py", 4),
        ("python /bin/accelerate launch --cpu train.py --num_processes 5", 1),  # the script's own flag
        ("python /bin/accelerate launch --cpu train.py", 1),
        ("python /bin/accelerate launch --cpu --mpirun_hostfile hosts --num_processes 2 train.py", 1),
        ("bash run.sh --num_processes 2", 1),
        ("", 1),
    ],
)
def test_processes_that_accelerate_was_asked_for(words: str, count: int):
    assert asked_processes(words.split(), "train.py") == count


def test_other_launches_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    replaced = []
    monkeypatch.setattr("os.execv", lambda *arguments: replaced.append(arguments))
    monkeypatch.setattr("spectralseg.running.launching.asked_processes", lambda *_: 2)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    start_asked_processes()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("WORLD_SIZE", "2")
    start_asked_processes()
    assert not replaced
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(sys, "argv", ["train.py", "lr=1"])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/somewhere/train.py", raising=False)
    start_asked_processes()
    (program, words) = replaced[0]
    assert program == sys.executable
    assert words[1:3] == ["-m", "torch.distributed.run"]
    assert words[-4:] == ["--nproc_per_node", "2", "/somewhere/train.py", "lr=1"]


@pytest.mark.slow
def test_accelerate_launch_on_a_cpu(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "from spectralseg.running.launching import make_accelerator, start_asked_processes\n"
        "start_asked_processes()\n"
        "accelerator = make_accelerator('cpu')\n"
        "print(accelerator.process_index, accelerator.num_processes)\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", script]
    done = run_command(launch, env=environment(PYTHONPATH=str(PROJECT / "extract")))
    assert sorted(done.stdout.splitlines()) == ["0 2", "1 2"], done.stderr


def test_an_accelerator_for_the_cpu(tmp_path):
    accelerator = make_accelerator("cpu", "bf16", "tensorboard", tmp_path)
    assert accelerator.device == torch.device("cpu")
    assert accelerator.num_processes == 1
    assert accelerator.mixed_precision == "bf16"
    assert make_accelerator("cpu").mixed_precision == "no"  # not that of the first in this process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cpu", "fp16"), "fp16 needs a GPU"),
        (("cpu", "fp8"), "no mixed_precision 'fp8'; known are no, fp16, bf16"),
        (("nowhere",), "no device 'nowhere'"),
        (("cpu", "no", "paper"), "no logger 'paper'"),
    ],
)
def test_what_cannot_be_had(arguments: tuple, message: str):
    with pytest.raises(InputError, match=message):
        make_accelerator(*arguments)


def test_wandb_is_optional(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[wandb\]'"):
        make_accelerator("cpu", "no", "wandb")
