"""Processes that are measured: of one variant of a stage, asked for image after image, and of whole commands."""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
VARIANT_PROCESS = str(Path(__file__).with_name("variant_process.py"))


def variant_process(**settings: object) -> list[str]:
    """The command of a process that runs one variant (`variant_process.py`)."""
    return [sys.executable, VARIANT_PROCESS, json.dumps(settings)]


class Worker:
    """Such a process, started from this small one, which has no torch."""

    def __init__(self, **settings: object) -> None:
        command = variant_process(**settings)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def __call__(self, **request: object) -> dict[str, float]:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a measuring process ended early (status {self.process.wait()})")
        return json.loads(answer)


class Result(NamedTuple):
    """Medians over images of seconds of the processor and by the clock, and MiB before the first image and in all."""

    seconds: float
    wall: float
    start_mib: float
    peak_mib: float


def measure(settings: dict[str, dict], requests: Sequence[dict], rounds: int, saves: dict[str, list]) -> dict:
    """Run all requests in all variants, in turns.

    Parameters
    ----------
    settings : variant -> arguments of its `Worker`.
    requests : one per image.
    rounds : of each image the least of so many counts: other work on the machine can only add to it.
    saves : variant -> a path per image for the result of the first round.

    Returns
    -------
    variant -> `Result`.
    """
    answers = {variant: [[] for _ in requests] for variant in settings}
    with ExitStack() as stack:
        workers = {variant: stack.enter_context(Worker(**arguments)) for variant, arguments in settings.items()}
        for turn in range(rounds):
            for index, request in enumerate(requests):
                for variant in list(workers)[:: 1 if (index + turn) % 2 else -1]:
                    save = saves[variant][index] if turn == 0 else None
                    answers[variant][index].append(workers[variant](**request, save=save))
    results = {}
    for variant, images in answers.items():
        least = [[min(answer[clock] for answer in image) for image in images] for clock in ("seconds", "wall")]
        memory = images[-1][-1]["start_mib"], images[-1][-1]["peak_mib"]
        results[variant] = Result(*map(statistics.median, least), *memory)
    return results


class Used(NamedTuple):
    """What a process took: seconds of the processor and by the clock, MiB, and the most files it had open."""

    seconds: float
    wall: float
    peak_mib: float
    files: int


def usage(command: list[str], requests: Sequence[dict] = ()) -> Used:
    """Run a command to its end, its stdin the requests."""
    start, files, pid = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile("w+") as lines:
        lines.writelines(f"{json.dumps(request)}\n" for request in requests)
        lines.seek(0)
        process = subprocess.Popen(command, stdin=lines, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not pid:
        time.sleep(0.02)
        with contextlib.suppress(OSError):
            files = max(files, len(os.listdir(f"/proc/{process.pid}/fd")))
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return Used(used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss / 1024, files)


def describe(rates: dict[str, float], start: float) -> str:
    """The machine in a line, with rates in 10^9 a second and the seconds that the import of torch takes."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    tree = ["git", "describe", "--always", "--dirty=+"]  # +: with changes of one's own
    commit = subprocess.run(tree, cwd=PROJECT, capture_output=True, text=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"One thread of {os.cpu_count()} cores of {cpu}; {memory:.0f} GiB; Python {platform.python_version()}; torch "
        f"{metadata.version('torch')} on the CPU; commit {commit.stdout.strip()}; load average at the start "
        f"{os.getloadavg()[0]:.1f}; {rates['float32']:.0f} GFLOP/s in float32 and {rates['bfloat16']:.0f} in bfloat16; "
        f"copies {rates['copy']:.1f} GB/s; disk {rates['disk']:.2f} GB/s; import of torch {start:.1f} s"
    )
