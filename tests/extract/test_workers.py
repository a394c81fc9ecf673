"""Worker processes: none that dies hangs the run or takes others along, and none outlives it."""

import functools
import os
import signal
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import worker_jobs
from running import contents, eigs_flags, features_flags, picture, start_command, start_extract
from spectralseg.errors import InputError, OutputError
from spectralseg.files.storage import save_record
from spectralseg.running import workers
from spectralseg.running.stage import Stage
from spectralseg.running.workers import DIED, attempt, map_processes, read_ahead, stream

pytestmark = pytest.mark.slow  # processes take seconds to start


@pytest.fixture(autouse=True)
def _no_hang():
    """A run that hangs fails instead of holding up the others."""

    def stop(*_):
        raise TimeoutError("this hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def wait_until(condition, seconds=180):
    """The first value of ``condition()`` that is true; an error after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def test_attempts(tmp_path):
    work = functools.partial(worker_jobs.work, str(tmp_path))
    assert attempt(work, "input") == "the image is upside down"
    assert attempt(work, "raise") == "ZeroDivisionError: no patch"
    with pytest.raises(OutputError):
        attempt(work, "output")


def test_processes_have_one_thread_each(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    ids = [f"image{index}" for index in range(12)]
    results = dict(map_processes(functools.partial(worker_jobs.work, str(tmp_path)), ids, 2))
    assert results == dict.fromkeys(ids)
    said = {path.read_text() for path in tmp_path.iterdir()}
    pids = {int(text.partition(" ")[0]) for text in said}
    assert said == {f"{pid} 1 1 1 1" for pid in pids}
    assert os.getpid() not in pids
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_are_forked_from_a_process_without_threads():
    """Which cannot deadlock them: a lock that another thread held would stay locked in the copy."""
    list(map_processes(worker_jobs.note_nothing, ["a"], 1))
    server = psutil.Process(forkserver._forkserver._forkserver_pid)
    assert server.ppid() == os.getpid()
    assert server.num_threads() == 1
    assert any("torch" in Path(library.path).name for library in server.memory_maps())


def test_a_killed_server_ends_no_run(tmp_path):
    work = functools.partial(worker_jobs.work, str(tmp_path))
    ids = [f"image{index}" for index in range(8)]
    results = map_processes(work, ids, 2)
    first = next(results)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert dict([first, *results]) == dict.fromkeys(ids)


def test_a_server_that_never_answers_ends_in_words(tmp_path, monkeypatch):
    def refuse(*_: object):
        raise ConnectionRefusedError

    monkeypatch.setattr(workers, "_submit", refuse)
    monkeypatch.setattr(workers.time, "sleep", lambda _: None)
    ids = ["a", "b", "c"]
    results = list(map_processes(functools.partial(worker_jobs.work, str(tmp_path)), ids, 2))
    assert results == [(image_id, workers.NO_SERVER) for image_id in ids]


def test_a_killed_worker_costs_its_own_image_alone(tmp_path, capsys):
    stage = Stage("extract_eigs", tmp_path, ".pth", {})
    ids = ["a", "b", "c", "d", "kill", "raise"]
    stage.run(functools.partial(worker_jobs.work, str(tmp_path)), stage.begin(ids), multiprocessing=2)
    with pytest.raises(InputError, match="^2 of 6 images failed"):
        stage.finish()
    assert stage.failures == {"kill": DIED, "raise": "ZeroDivisionError: no patch"}
    assert contents(tmp_path).keys() == {*(f"{image_id}.pth" for image_id in "abcd"), "stage.json"}
    assert f"extract_eigs: kill failed: {DIED}" in capsys.readouterr().err


def test_workers_that_exit_one_after_the_other(tmp_path):
    ids = ["a", "exit1", "exit2", "b", "input"]
    results = list(map_processes(functools.partial(worker_jobs.work, str(tmp_path)), ids, 1))
    assert sorted(results) == [
        ("a", None),
        ("b", None),
        ("exit1", DIED),
        ("exit2", DIED),
        ("input", "the image is upside down"),
    ]


def test_a_result_that_cannot_be_written_ends_the_run(tmp_path):
    work = functools.partial(worker_jobs.work, str(tmp_path))
    with pytest.raises(OutputError, match="the disk is full"):
        list(map_processes(work, ["output", *map(str, range(1000))], 1))
    assert len(contents(tmp_path)) < 10


# --- streams --------------------------------------------------------------------------------------------------------


def arrays(*numbers, taken=None):
    """An array for each number, made when it is asked for; ``taken`` notes the numbers."""
    for number in numbers:
        if taken is not None:
            taken.append(number)
        yield np.full((200, 300), number)


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_stream_gives_results_in_order_and_takes_items_as_it_goes(processes):
    taken, pids = [], set()
    for number, (pid, array) in enumerate(stream(worker_jobs.doubled, arrays(*range(12), taken=taken), processes)):
        assert array.shape == (200, 300)
        assert (array == 2 * number).all()
        assert len(taken) - number <= max(1, 2 * processes)
        pids.add(pid)
    assert number == 11
    assert (os.getpid() in pids) == (processes == 0)
    assert len(pids) <= max(1, processes)
    assert not any(psutil.pid_exists(pid) for pid in pids - {os.getpid()})
    assert list(stream(worker_jobs.doubled, [], processes)) == []


@pytest.mark.parametrize("processes", [0, 2])
def test_stream_raises_what_its_work_and_its_items_raise(processes):
    def broken():
        yield np.zeros(1)
        raise InputError("no more images")

    with pytest.raises(InputError, match="^14 is refused$"):
        list(stream(worker_jobs.doubled, arrays(1, 14, 2), processes))
    with pytest.raises(ZeroDivisionError, match="^no patch$"):
        list(stream(worker_jobs.doubled, arrays(15), processes))
    with pytest.raises(InputError, match="^no more images$"):
        list(stream(worker_jobs.doubled, broken(), processes))


def test_stream_ends_when_a_worker_dies():
    taken = []
    results = stream(worker_jobs.doubled, arrays(1, 13, *range(2, 13), taken=taken), 1)
    assert next(results)[1][0, 0] == 2
    with pytest.raises(InputError) as caught:
        next(results)
    assert str(caught.value) == f"item 2: {DIED}"
    assert len(taken) <= 4


def test_stream_that_is_left_ends_its_workers():
    results = stream(worker_jobs.doubled, arrays(*range(1, 12)), 2)
    pid, _ = next(results)
    assert psutil.pid_exists(pid)
    results.close()
    assert not psutil.pid_exists(pid)


def test_stream_ends_with_its_parent():
    command = [sys.executable, "-c", "import worker_jobs; worker_jobs.stream_slowly()"]
    process = start_command(command, cwd=os.path.dirname(worker_jobs.__file__))
    assert process.stdout.readline() == "first\n"
    assert len(members(process)) >= 3
    process.kill()
    wait_until(lambda: not members(process), seconds=30)
    assert "Traceback" not in process.communicate(timeout=60)[1]


# --- the whole command ----------------------------------------------------------------------------------------------


@pytest.fixture
def eigs(tmp_path):
    """``extract_eigs`` in two processes over 60 images, each of which takes a while of dense LAPACK."""
    features = tmp_path / "features"
    features.mkdir()
    torch.manual_seed(0)
    for index in range(60):
        record = {"k": torch.randn(1, 900, 20), "patch_size": 16, "shape": (1, 3, 480, 480), "id": f"image{index}"}
        save_record(features / f"image{index}.pth", record)
    output = tmp_path / "output"
    return [*eigs_flags(tmp_path, features, output), "--multiprocessing=2", "--solver=dense"], output


@pytest.fixture
def features(tmp_path):
    """``extract_features`` over 1000 copies of a photograph, decoded by two processes."""
    folder = tmp_path / "images"
    folder.mkdir()
    picture(0, 640, 480).save(folder / "0.png")
    for index in range(1, 1000):
        (folder / f"{index}.png").hardlink_to(folder / "0.png")
    output = tmp_path / "output"
    return [*features_flags(folder, output), "--num_workers=2"], output


@pytest.fixture(params=["eigs", "features"])
def command(request):
    """Flags of a command that goes on for long in several processes, and its output folder."""
    return request.getfixturevalue(request.param)


def members(process):
    """All processes of a command's process group that are alive."""
    found = []
    for other in psutil.process_iter():
        try:
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def first_output(output):
    return lambda: output.is_dir() and any(path.suffix == ".pth" for path in output.iterdir())


def check_interrupted(process):
    stderr = process.communicate(timeout=180)[1]
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "interrupted: the same command goes on where it stopped"
    assert sum("extract_" not in line for line in stderr.splitlines() if line) == 1, stderr
    wait_until(lambda: not members(process), seconds=30)


def test_ctrl_c(command):
    """A terminal sends it to all processes of the group."""
    flags, output = command
    process = start_extract(*flags)
    wait_until(first_output(output))
    assert len(members(process)) >= 3
    os.killpg(process.pid, signal.SIGINT)
    check_interrupted(process)
    assert all(path.name == "stage.json" or path.suffix == ".pth" for path in output.iterdir())
    for path in output.glob("*.pth"):
        torch.load(path, weights_only=True)


def test_ctrl_c_while_workers_start(eigs):
    process = start_extract(*eigs[0])
    wait_until(lambda: len(members(process)) >= 3)
    time.sleep(0.3)  # they are importing torch now
    os.killpg(process.pid, signal.SIGINT)
    check_interrupted(process)


def test_decoders_end_with_a_killed_parent(features):
    flags, output = features
    process = start_extract(*flags)
    wait_until(first_output(output))
    assert len(members(process)) >= 3
    process.kill()
    wait_until(lambda: not members(process), seconds=30)
    process.communicate()


def test_a_killed_decoder_ends_the_run_in_one_line(features):
    flags, output = features
    process = start_extract(*flags)
    wait_until(first_output(output))
    decoders = [other for other in members(process) if other.pid != process.pid]
    decoders[0].kill()
    stderr = process.communicate(timeout=180)[1]
    assert process.returncode == 1, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("error: a process that loads images died ")
    wait_until(lambda: not members(process), seconds=30)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_reading_ahead(threads: int):
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number * number

    stream = read_ahead(work, range(30), threads)
    assert next(stream) == 0
    assert len(begun) <= 1 + 3 * max(threads, 0) + 1  # not everything at once
    assert [0, *stream] == [number * number for number in range(30)]
    assert sorted(begun) == list(range(30))


def test_an_error_ends_the_reading():
    def work(number: int) -> int:
        if number == 2:
            raise InputError("number 2")
        return number

    before = threading.active_count()
    stream = read_ahead(work, range(1000), 2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(InputError, match="number 2"):
        next(stream)
    assert threading.active_count() == before
