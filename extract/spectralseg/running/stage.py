"""Run a stage over image ids: this machine's share, what is already there, processes, progress, failures, summary.

A per-image stage can be killed at any moment and started again: outputs appear whole
(:mod:`spectralseg.files.storage`), and those that exist are skipped. Each stage folder explains itself in a
``stage.json``.
"""

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spectralseg import __version__
from spectralseg.errors import ImagesFailed, InputError, some_of
from spectralseg.files.names import check_id
from spectralseg.files.records import STAGE, check, check_arguments
from spectralseg.files.storage import DAMAGED, load_json, make_folder, remove, remove_leftovers, save_json, save_record
from spectralseg.progress import detail, is_watched, progress_bar, say, tell_settings
from spectralseg.running.devices import integer_variable
from spectralseg.running.workers import attempt, map_processes

DESCRIPTION_FILE = "stage.json"

# Arguments that commands gained after folders had been written without them, and what those folders were made with.
# (DINO-seg's dinoseg_mended is none of them: before it, boxes followed neither of its two rules.)
ADDED_ARGUMENTS: dict[str, Any] = {"color_grid": "cropped", "mask_format": "palette", "crf_backend": "pydensecrf"}
ADDED_ARGUMENTS |= {"local_radius": 2, "local_scale": 0.1, "foreground": "eigenvector", "soft": False}
ADDED_ARGUMENTS |= {"debias": None, "gram_bias": 0.0, "joint": False}


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and the number of processes, from the launcher's environment.

    Understood are ``torchrun`` and ``accelerate launch`` (RANK, WORLD_SIZE) and Slurm: array tasks, steps started by
    ``srun``, and steps inside array tasks. Without a launcher: (0, 1).
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return _checked_rank(integer_variable("RANK"), integer_variable("WORLD_SIZE"))
    rank, world = 0, 1
    if "SLURM_ARRAY_TASK_ID" in env:
        first, last = integer_variable("SLURM_ARRAY_TASK_MIN"), integer_variable("SLURM_ARRAY_TASK_MAX")
        world = integer_variable("SLURM_ARRAY_TASK_COUNT")
        rank = integer_variable("SLURM_ARRAY_TASK_ID") - first
        if last - first + 1 != world:
            raise InputError("a Slurm array must number its tasks without gaps (--array=0-N) to share out the images")
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:  # not SLURM_NTASKS: sbatch sets it outside srun too
        tasks = integer_variable("SLURM_STEP_NUM_TASKS")
        rank, world = rank * tasks + integer_variable("SLURM_PROCID"), world * tasks
    return _checked_rank(rank, world)


def _checked_rank(rank: int, world: int) -> tuple[int, int]:
    if not 0 <= rank < world:
        raise InputError(
            f"the launcher's environment says process {rank} of {world}: the images cannot be shared out so"
        )
    return rank, world


def describe(folder: str | Path, name: str = DESCRIPTION_FILE) -> dict[str, Any] | None:
    """The ``stage.json`` of a folder, or None where there is none."""
    path = Path(folder) / name
    description = load_json(path)
    if description is not None:
        description = check(description, STAGE, path, DAMAGED)
        check_arguments(description["arguments"], f"{path}: arguments")
    return description


def provenance(folder: str | Path) -> Any:
    """What the files in ``folder`` were made from: the arguments of its stage, else its absolute path."""
    description = describe(folder)
    return str(Path(folder).resolve()) if description is None else description["arguments"]


def describe_file(path: str | Path) -> Any:
    """What a stage's single output file was made from: its arguments, else its absolute path."""
    path = Path(path)
    description = describe(path.parent, f"{path.stem}.{DESCRIPTION_FILE}")
    return str(path.resolve()) if description is None else description["arguments"]


def check_origin(
    folder: str | Path, features_dir: str | Path | None = None, patch: int | None = None, cell: int | None = None
) -> None:
    """Raise an :class:`InputError` where the stages of ``folder`` recorded other features, or another side in pixels.

    ``folder`` holds eigenvectors, masks, segments or semantic maps; where nothing is recorded, or maps are at pixels,
    everything is accepted. Cells may be smaller than patches.
    """
    made, of_patches = provenance(folder), False
    while isinstance(made, dict) and "features" not in made:
        of_patches = of_patches or made.get("kmeans_baseline", False)
        inner = [made[name] for name in _ORIGINS if name in made]
        made = inner[0] if inner and "num_classes" not in made else None  # sharpened maps are at pixels
    recorded = made["features"] if isinstance(made, dict) else None
    if not isinstance(recorded, dict):
        return
    now = None if features_dir is None else provenance(features_dir)
    now = now.get("features", now) if isinstance(now, dict) else now  # eigenvectors, in the place of features
    if isinstance(now, dict) and (difference := differences(recorded, now)):
        raise InputError(f"{folder} was made from other features than those in {features_dir}: {difference}")
    patch_size = recorded.get("patch_size")
    cell_size = patch_size if of_patches else made.get("image_downsample_factor") or patch_size
    for given, right in ((patch, patch_size), (cell, cell_size)):
        if given is not None and right is not None and given != right:
            raise InputError(f"--downsample_factor {given}, but {folder} was made with {right}: give that number")


_ORIGINS = ("eigs", "segmentations", "bbox_clusters", "bbox_features", "bboxes")
TOLD = ("model_name", "weights", "which_matrix", "foreground", "method", "crf_backend")  # of a stage, on a terminal


class FailureLines:
    """Images that could not be handled, and a line for each, but one for all whose reasons differ in numbers alone."""

    def __init__(self, command: str) -> None:
        self.command, self.failures, self.unsaid = command, dict[str, str](), 0
        self._said: set[str] = set()

    def add(self, image_id: str, problem: str) -> None:
        """Keep the reason, and say it."""
        self.failures[image_id] = problem
        kind = re.sub(r"\d+", "0", problem)
        if kind in self._said and image_id not in problem:
            self.unsaid += 1  # like one that was said
        else:
            self._said.add(kind)
            say(f"{self.command}: {image_id} failed: {problem}")


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
        self._lines = FailureLines(command)
        self.failures = self._lines.failures
        self.written = self.skipped = 0
        self.started = time.monotonic()
        self._bar: tqdm | None = None

    def output(self, image_id: str) -> Path:
        """Where the result of an image belongs."""
        return self.folder / f"{image_id}{self.suffix}"

    def begin(self, ids: Iterable[str], device: object = None) -> list[str]:
        """Check the folder, take this process's share of the ids, and return those whose output is still to be made.

        An image whose id is no plain name fails at once. On a terminal a line tells the counts, the ``device`` where
        it matters, and what the stage is about.
        """
        ids = sorted(ids)
        rank, world = rank_and_world_size()
        share = ids[rank::world]
        remove_leftovers(self.folder)
        present = self._check_folder(ids)
        share = [image_id for image_id in share if self._is_plain(image_id)]
        if self.overwrite:  # outputs go first: whoever resumes a killed --overwrite must not take old files for new
            for image_id in share:
                remove(self.output(image_id))
            present -= set(share)
        _save_description(self.folder / DESCRIPTION_FILE, self.command, self.arguments)
        pending = [image_id for image_id in share if image_id not in present]
        self.skipped = len(share) - len(pending)
        if world > 1:
            say(f"{self.command}: process {rank} of {world} takes {len(share)} of {len(ids)} images")
        if is_watched():
            about = {"device": device} | {name: self.arguments.get(name) for name in TOLD}
            facts = "".join(f", {name} {value}" for name, value in about.items() if value is not None)
            say(f"{self.command}: {len(pending)} of {len(share)} images to do{facts}")
        _tell_arguments(self.command, self.arguments)
        reused = sorted(set(share).difference(pending, self.failures))
        if reused:
            detail(f"{self.command}: {len(reused)} reused from {self.folder}: {some_of(reused)}")
        self._bar = progress_bar(total=len(pending), desc=self.command, unit="image", disable=not pending)
        return pending

    def _is_plain(self, image_id: str) -> bool:
        try:
            check_id(image_id)
        except InputError as error:
            self.failed(image_id, str(error))
        return image_id not in self.failures

    def run(self, work: Callable[[str], None], pending: Sequence[str], multiprocessing: int = 0) -> None:
        """Call ``work(id)``, which writes the id's output, for each pending id, in this process or in several."""
        if multiprocessing > 0 and pending:
            results = map_processes(work, pending, multiprocessing)
        else:
            results = ((image_id, attempt(work, image_id)) for image_id in pending)
        with self.working():
            for image_id, problem in results:
                if problem is None:
                    self.done(image_id)
                else:
                    self.failed(image_id, problem)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """End the progress bar when the work ends, however it ends: an error gets a line of its own."""
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()

    def done(self, image_id: str) -> None:
        """Count an image whose output was written."""
        self.written += 1
        if self._bar is not None:
            self._bar.update()

    def failed(self, image_id: str, problem: str) -> None:
        """Count an image that could not be handled, and say why, as :class:`FailureLines` does."""
        self._lines.add(image_id, problem)
        if self._bar is not None:
            self._bar.update()

    def finish(self) -> None:
        """Close the run: counts into ``stage.json``, a summary line, and an error if any image failed."""
        files = sum(1 for _ in self.folder.glob(f"[!.]*{self.suffix}"))
        counts = {"files": files, "failed": len(self.failures)}
        _save_description(self.folder / DESCRIPTION_FILE, self.command, self.arguments, counts, self.failures)
        if self._lines.unsaid:
            path = self.folder / DESCRIPTION_FILE
            say(f"{self.command}: {self._lines.unsaid} more failed likewise; {path} names them")
        remove_leftovers(self.folder)  # of workers that outlived the run before by a moment
        seconds = time.monotonic() - self.started
        say(
            f"{self.command}: {self.written} written, {self.skipped} already there, {len(self.failures)} failed, "
            f"in {seconds:.1f} s -> {self.folder}"
        )
        if self.failures:
            total = self.written + self.skipped + len(self.failures)
            message = f"{len(self.failures)} of {total} images failed in {self.command}: see the lines above"
            raise ImagesFailed(message, self.failures)

    def _check_folder(self, ids: list[str]) -> set[str]:
        """The ids whose outputs are there; an error where they are not this stage's with these arguments."""
        present = set()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(self.suffix) and not entry.name.startswith("."):
                    present.add(entry.name.removesuffix(self.suffix))
                    if entry.is_dir():
                        raise InputError(f"{entry.path} is a folder, where a result belongs; move it away")
        if not present:
            return present
        holds = f"{self.folder} already holds {len(present)} *{self.suffix} files"
        description = describe(self.folder)
        if description is None or description.get("command") != self.command:  # never to be deleted, not on request
            made = "that no stage made" if description is None else f"that {description.get('command')} made"
            raise InputError(f"{holds} {made}; choose another output folder")
        difference = differences(description["arguments"], self.arguments)
        if not difference:
            return present
        where = f"{holds}, but {difference}"
        if not self.overwrite:
            raise InputError(f"{where}; choose another output folder, or redo them with --overwrite")
        others = len(present - set(ids))
        if others:
            raise InputError(f"{where}, and {others} of them are not in this run; choose another output folder")
        return present


class FileStage:
    """One run of one command over image ids, writing one file for all of them (boxes, their features, clusters).

    Beside ``<name>.pth`` it leaves ``<name>.stage.json``. Parameters as for :class:`Stage`.
    """

    def __init__(self, command: str, output_file: str | Path, arguments: dict[str, Any], overwrite: bool) -> None:
        self.command, self.path, self.overwrite = command, Path(output_file), overwrite
        self.arguments = json.loads(json.dumps(arguments, default=str))
        self.failures: dict[str, str] = {}
        if self.path.is_dir() or not self.path.suffix:
            raise InputError(f"--output_file {output_file} must be a file name such as bboxes.pth")
        _tell_arguments(command, self.arguments)
        make_folder(self.path.parent)
        remove_leftovers(self.path.parent)

    def is_done(self) -> bool:
        """Whether the file is there, made with these arguments; an error if with others."""
        if not self.path.exists() or self.overwrite:
            return False
        description = describe(self.path.parent, self._description_name())
        if description is None or description.get("command") != self.command:
            difference = "nothing tells how it was made"
        else:
            difference = differences(description["arguments"], self.arguments)
        if difference:
            raise InputError(f"{self.path} exists, but {difference}; choose another file, or --overwrite it")
        say(f"{self.command}: {self.path} is there already")
        return True

    def track(self, ids: Iterable[str]) -> Iterator[str]:
        """The ids, sorted, with a progress bar."""
        yield from progress_bar(sorted(ids), desc=self.command, unit="image")

    @contextlib.contextmanager
    def reporting(self, image_id: str) -> Iterator[None]:
        """Report and count an image that cannot be handled; the others go on."""
        try:
            yield
        except InputError as error:
            self.failures[image_id] = str(error)
            say(f"{self.command}: {image_id} failed: {error}")

    def finish(self, records: list[dict[str, Any]]) -> None:
        """Write the file and its description, print a summary, and raise an error if any image failed."""
        remove(self.path)  # killed between the two, it leaves a description without a file: redone
        counts = {"images": len(records), "failed": len(self.failures)}
        _save_description(self.path.parent / self._description_name(), self.command, self.arguments, counts)
        save_record(self.path, records)
        say(f"{self.command}: {len(records)} images, {len(self.failures)} failed -> {self.path}")
        if self.failures:
            message = f"{len(self.failures)} images failed in {self.command}: see the lines above"
            raise ImagesFailed(message, self.failures)

    def _description_name(self) -> str:
        return f"{self.path.stem}.{DESCRIPTION_FILE}"


def _tell_arguments(command: str, arguments: dict[str, Any]) -> None:
    """Those that the command line has not told: what was recorded of the stages before, and what was found out."""
    recorded = {name: value for name, value in arguments.items() if isinstance(value, dict)}
    tell_settings(command, "recorded of the input", recorded)
    tell_settings(command, "chosen", {name: value for name, value in arguments.items() if name not in recorded})


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two sets of arguments, in words (``with K=5 instead of 6``); empty where nothing does."""
    pairs = _differing(old, new)
    texts = [f"{name}={_short(before)} instead of {_short(after)}" for name, before, after in pairs]
    return "with " + some_of(texts) if texts else ""


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names and values that differ; ``features.dtype`` for an argument of the stage before.

    An argument that one side lacks has its default there if it is one of ``ADDED_ARGUMENTS``.
    """
    for name in sorted(old.keys() | new.keys()):
        before, after = (side.get(name, ADDED_ARGUMENTS.get(name)) for side in (old, new))
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differing(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name, before, after


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _save_description(
    path: Path,
    command: str,
    arguments: dict[str, Any],
    counts: dict[str, int] | None = None,
    failures: dict[str, str] | None = None,
) -> None:
    packages = {name: metadata.version(name) for name in ("torch", "timm", "numpy", "scipy", "pillow")}
    versions = {"spectralseg": __version__, "python": platform.python_version(), **packages}
    description = {"command": command, "arguments": arguments, "versions": versions}
    description |= {} if counts is None else {"counts": counts}
    save_json(path, description | ({"failures": failures} if failures else {}))
