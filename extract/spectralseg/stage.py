"""Run a stage over image ids: this machine's share, what is already there, processes, progress, failures, summary.

A per-image stage can be killed at any moment and started again: outputs appear whole (:mod:`spectralseg.storage`), and
those that exist are skipped. Each stage folder explains itself in a ``stage.json``.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spectralseg import __version__
from spectralseg.errors import InputError
from spectralseg.storage import atomic_write, make_folder, remove_leftovers
from spectralseg.workers import attempt, map_processes

DESCRIPTION_FILE = "stage.json"


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and the number of processes, from the launcher's environment.

    Understood are ``torchrun`` and ``accelerate launch`` (RANK, WORLD_SIZE) and Slurm: array tasks, steps started by
    ``srun``, and steps inside array tasks. Without a launcher: (0, 1).
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"])
    rank, world = 0, 1
    if "SLURM_ARRAY_TASK_ID" in env:
        first, last = int(env["SLURM_ARRAY_TASK_MIN"]), int(env["SLURM_ARRAY_TASK_MAX"])
        world = int(env["SLURM_ARRAY_TASK_COUNT"])
        rank = int(env["SLURM_ARRAY_TASK_ID"]) - first
        if last - first + 1 != world:
            raise InputError("a Slurm array must number its tasks without gaps (--array=0-N) to share out the images")
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:  # not SLURM_NTASKS: sbatch sets it outside srun too
        tasks = int(env["SLURM_STEP_NUM_TASKS"])
        rank, world = rank * tasks + int(env["SLURM_PROCID"]), world * tasks
    return rank, world


def describe(folder: str | Path) -> dict[str, Any] | None:
    """The ``stage.json`` of a folder, or None where there is none."""
    path = Path(folder) / DESCRIPTION_FILE
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it if it is damaged") from None


def provenance(folder: str | Path) -> Any:
    """What the files in ``folder`` were made from: the arguments of its stage, else its absolute path."""
    description = describe(folder)
    return str(Path(folder).resolve()) if description is None else description["arguments"]


class Stage:
    """One run of one command over image ids, writing one file per image into one folder.

    Parameters
    ----------
    command
        Name of the command, for ``stage.json`` and messages.
    output_dir
        Folder of the outputs; created if need be.
    suffix
        Outputs are ``<output_dir>/<id><suffix>``.
    arguments
        Everything that decides what the outputs hold (not: devices, processes, batch sizes). A folder filled with
        other arguments is refused.
    overwrite
        Redo outputs that exist, with these arguments.
    """

    def __init__(
        self, command: str, output_dir: str | Path, suffix: str, arguments: dict[str, Any], overwrite: bool = False
    ) -> None:
        self.command, self.suffix, self.overwrite = command, suffix, overwrite
        self.folder = make_folder(output_dir)
        self.arguments = json.loads(json.dumps(arguments, default=str))
        self.failures: dict[str, str] = {}
        self.written = self.skipped = 0
        self.started = time.monotonic()
        self._bar: tqdm | None = None

    def output(self, image_id: str) -> Path:
        """Where the result of an image belongs."""
        return self.folder / f"{image_id}{self.suffix}"

    def begin(self, ids: Iterable[str]) -> list[str]:
        """Check the folder, take this process's share of the ids, and return those whose output is still to be made."""
        ids = sorted(ids)
        rank, world = rank_and_world_size()
        share = ids[rank::world]
        remove_leftovers(self.folder)
        self._check_folder(ids)
        if self.overwrite:  # outputs go first: whoever resumes a killed --overwrite must not take old files for new
            for image_id in share:
                self.output(image_id).unlink(missing_ok=True)
        self._write_description()
        pending = [image_id for image_id in share if not self.output(image_id).exists()]
        self.skipped = len(share) - len(pending)
        if world > 1:
            print(f"{self.command}: process {rank} of {world} takes {len(share)} of {len(ids)} images", file=sys.stderr)
        interval = 0.2 if sys.stderr.isatty() else 30  # a log file wants a line now and then
        self._bar = tqdm(total=len(pending), desc=self.command, unit="image", mininterval=interval)
        return pending

    def run(self, work: Callable[[str], None], pending: Sequence[str], multiprocessing: int = 0) -> None:
        """Call ``work(id)``, which writes the id's output, for each pending id, in this process or in several."""
        if multiprocessing > 0 and pending:
            results = map_processes(work, pending, multiprocessing)
        else:
            results = ((image_id, attempt(work, image_id)) for image_id in pending)
        for image_id, problem in results:
            if problem is None:
                self.done(image_id)
            else:
                self.failed(image_id, problem)

    def done(self, image_id: str) -> None:
        """Count an image whose output was written."""
        self.written += 1
        if self._bar is not None:
            self._bar.update()

    def failed(self, image_id: str, problem: str) -> None:
        """Count an image that could not be handled, and say why; the others go on."""
        self.failures[image_id] = problem
        tqdm.write(f"{self.command}: {image_id} failed: {problem}", file=sys.stderr)
        if self._bar is not None:
            self._bar.update()

    def finish(self) -> None:
        """Close the run: counts into ``stage.json``, a summary line, and an error if any image failed."""
        if self._bar is not None:
            self._bar.close()
        self._write_description(counts=True)
        seconds = time.monotonic() - self.started
        print(
            f"{self.command}: {self.written} written, {self.skipped} already there, {len(self.failures)} failed, "
            f"in {seconds:.1f} s -> {self.folder}",
            file=sys.stderr,
        )
        if self.failures:
            total = self.written + self.skipped + len(self.failures)
            raise InputError(f"{len(self.failures)} of {total} images failed in {self.command}: see the lines above")

    def _check_folder(self, ids: list[str]) -> None:
        present = {path.name.removesuffix(self.suffix) for path in self.folder.glob(f"[!.]*{self.suffix}")}
        if not present:
            return
        description = describe(self.folder)
        if description is None:
            difference = "no stage.json tells how they were made"
        elif description.get("command") != self.command:
            difference = f"they were made by {description.get('command')}"
        else:
            difference = _difference(description["arguments"], self.arguments)
        if not difference:
            return
        where = f"{self.folder} already holds {len(present)} files, but {difference}"
        if not self.overwrite:
            raise InputError(f"{where}; choose another output folder, or redo them with --overwrite")
        others = len(present - set(ids))
        if others:
            raise InputError(f"{where}, and {others} of them are not in this run; choose another output folder")

    def _write_description(self, counts: bool = False) -> None:
        description: dict[str, Any] = {
            "command": self.command,
            "arguments": self.arguments,
            "versions": _versions(),
        }
        if counts:
            files = sum(1 for _ in self.folder.glob(f"[!.]*{self.suffix}"))
            description["counts"] = {"files": files, "failed": len(self.failures)}
        with atomic_write(self.folder / DESCRIPTION_FILE) as file:
            file.write((json.dumps(description, indent=2) + "\n").encode())


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return (
        "with " + ", ".join(f"{n}={_short(old.get(n))} instead of {_short(new.get(n))}" for n in names) if names else ""
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("torch", "timm", "numpy", "scipy", "pillow")}
    return {"spectralseg": __version__, "python": platform.python_version(), **packages}
