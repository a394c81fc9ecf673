"""From shards of images to tables of what was found in each, in one pass, on Ray Data.

Parts of a shard go read -> decode -> backbone and eigenvectors -> masks, segments, boxes, and each is a file of its own
until its shard is whole. What a part holds depends on the shard alone: a task that is tried again writes the same file
again, and a run that starts again leaves out the parts that are there. So no image is lost or double.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import pickle
import re
import signal
import socket
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectralseg.commands import bboxes, eigs, features, masks, rows
from spectralseg.commands.choices import StageChoices, StageSettings
from spectralseg.errors import ImagesFailed, InputError, check_choice, some_of
from spectralseg.files.images import load_image, view_of
from spectralseg.files.shards import Entry, Shard, TableFolder, entries_of, find_shards, pyarrow
from spectralseg.files.storage import LAB_GRAPH, remove_leftovers
from spectralseg.models.tokens import TokenExtractor
from spectralseg.progress import progress_bar, say
from spectralseg.running.batches import Failure, alike, together_or_alone
from spectralseg.running.devices import pick_device
from spectralseg.running.stage import FailureLines, differences
from spectralseg.settings import check_range, setting

try:
    import ray
    from ray.exceptions import RayError
except ImportError:
    raise InputError(
        "stream needs Ray: pip install 'spectralseg[scale]' (in a checkout: pip install -e '.[scale]')"
    ) from None

PARTS = "parts"  # folder of what is not a whole shard yet
COUNT = -1  # in the place of a part's number: how many parts the shard has
BLOCK_BYTES = 8 * 2**20  # of encoded images that one task decodes
PARTS_ON_GPU = 8  # parts that go through it together, so that photographs of mixed sizes fill batches
# Cores of an actor and of a task. Actors that took all of them would starve the readers, and all would wait for ever.
# Tasks of equal shares become one, which is right beside a CPU; for a GPU decoding is a task of its own.
ON_CPU, ON_GPU, SMALL, DECODE_FOR_GPU = 0.75, 0.5, 0.1, 0.5


@dataclass(frozen=True)
class StreamSettings(StageChoices):
    """What ``stream`` decides beside the features; see ``stream`` in ``extract.py``."""

    eigenvectors: str = setting("none", choices=("none", *rows.FLOATS))
    image_column: str = "image"
    batch_size: int = setting(64, least=1)


@dataclass(frozen=True)
class Plan:
    """All that a task needs to know; ``told``: JSON of what ``stream.json`` tells of it."""

    features: features.FeatureSettings
    stages: StageSettings
    boxes: bboxes.BoxSettings
    settings: StreamSettings
    patch_size: int
    output_dir: str
    told: str

    def schema(self) -> pyarrow.Schema:
        """Of the tables."""
        return rows.schema_of(self.settings.eigenvectors, self.told.encode())


def stream(
    shards: str,
    output_dir: str,
    feature_settings: features.FeatureSettings,
    settings: StreamSettings,
    images_root: str | None = None,
    actors: int | None = None,
    device: str = "auto",
    ray_address: str | None = None,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    check_range("actors", actors, least=1)
    check_choice("device", device.partition(":")[0], ("auto", "cpu", "cuda"))
    found = find_shards(shards, images_root)
    extractor = features.load_extractor("stream", feature_settings, torch.device("cpu"))  # its errors, before any work
    plan = _plan(extractor, feature_settings, settings, output_dir)
    folder = TableFolder(output_dir)
    _check_folder(folder, json.loads(plan.told))
    whole = {name.removesuffix(".parquet") for name in folder.names()}
    parts = _parts(folder)
    folder.remove([_part(stem, number) for stem in whole & parts.keys() for number in parts[stem]])
    pending = [shard for shard in found if shard.stem not in whole]
    say(f"stream: {len(pending)} of {len(found)} shards to do, {sum(map(len, parts.values()))} parts there already")
    lines, images = FailureLines("stream"), 0
    if pending:
        with _engine(ray_address), progress_bar(desc="stream", unit="image") as bar:
            for count, failures in _run(pending, parts, plan, folder, actors, device):
                images += count
                bar.update(count)
                for image_id, problem in failures:
                    lines.add(image_id, problem)
    say(f"stream: {images} images now, {len(lines.failures)} of them failed -> {output_dir}")
    if lines.failures:
        raise ImagesFailed(f"{len(lines.failures)} of {images} failed: column 'error' says why", lines.failures)


def _plan(
    extractor: TokenExtractor, feature_settings: features.FeatureSettings, settings: StreamSettings, output_dir: str
) -> Plan:
    backbone, boxes = extractor.backbone, bboxes.BoxSettings()
    stages = settings.stages(settings.preset(backbone.name))
    told = {
        "eigs": asdict(stages.eigs) | {"features": features.made_by(feature_settings, extractor)},
        "single": asdict(stages.single),
        "multi": asdict(stages.multi),
        "boxes": asdict(boxes),
        **{name: getattr(settings, name) for name in ("eigenvectors", "image_column", "batch_size")},
    }
    place = output_dir if "://" in output_dir else str(Path(output_dir).absolute())
    own = (feature_settings, stages, boxes, settings, backbone.patch_size, place)
    return Plan(*own, json.dumps(told, default=str))


def _check_folder(folder: TableFolder, arguments: dict[str, Any]) -> None:
    before = rows.made_by(folder)
    if before is None:
        if any(name.endswith(".parquet") for name in folder.names()):  # shards, say, which would be taken for done
            raise InputError(f"{folder.path} holds Parquet files that are not of stream; choose another output folder")
        content = json.dumps({"command": "stream", "arguments": arguments}, indent=2)
        folder.write_bytes(rows.DESCRIPTION, content.encode() + b"\n")
        return
    if folder.is_local:
        remove_leftovers(folder.path, below=True)
    difference = differences(before, arguments)
    if difference:
        raise InputError(f"{folder.path} holds tables made {difference}; choose another output folder")


# --- the engine -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _engine(address: str | None) -> Iterator[None]:
    """Ray, on this machine alone or joined at an address; an error of it is told in a line."""
    environment, on_sigterm = dict(os.environ), signal.getsignal(signal.SIGTERM)  # Ray changes both
    try:
        _start(address)
        signal.signal(signal.SIGTERM, on_sigterm)
        yield
    except RayError as error:
        cause = getattr(error, "cause", error)  # of a task: what it raised
        reason = (str(cause).strip() or repr(cause)).splitlines()[0]
        raise InputError(f"stream stopped ({reason}); the same command goes on where it stopped") from None
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(environment)


def _start(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    package = Path(__file__).resolve().parents[1]
    options: dict[str, Any] = {"runtime_env": {"py_modules": [str(package)]}}  # machines get the package from this one
    if address is None:
        path = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        options = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "include_dashboard": False}
    try:
        if address is not None and ":" in address and "://" not in address:  # Ray itself would wait for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        with _nothing_said():  # it would tell of the level of its own messages
            ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"Ray cannot be reached at {address} ({str(error).splitlines()[0]})") from None
    warnings.filterwarnings("ignore", module=r"ray\.data")  # of a shard alone: that its reading cannot be shared
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what stops it is told in a line


@contextlib.contextmanager
def _nothing_said() -> Iterator[None]:
    """What compiled code writes to the standard error meanwhile is lost."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _run(
    pending: list[Shard],
    parts: dict[str, set[int]],
    plan: Plan,
    folder: TableFolder,
    actors: int | None,
    device: str,
) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Images, and those that failed, of each part as it is written; shards become whole on the way."""
    resources = ray.cluster_resources()
    on_gpu = device != "cpu" and resources.get("GPU", 0) > 0
    if device.startswith("cuda") and not on_gpu:
        raise InputError(f"device={device}, but Ray knows of no GPU")
    cores = max(1, int(resources.get("CPU", 1)))
    actors = actors or (int(resources["GPU"]) if on_gpu else cores)
    tasks = [{"payload": pickle.dumps((shard, parts.get(shard.stem, set())))} for shard in pending]
    each: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # As many processes as cores read, and as many finish: each holds torch, and Ray would start ten a core.
    small = each | {"num_cpus": SMALL, "compute": ray.data.TaskPoolStrategy(size=cores)}
    data: ray.data.Dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    data = data.map_batches(functools.partial(_read, plan), **small)
    data = data.map_batches(
        functools.partial(_decode, plan), **small | {"num_cpus": DECODE_FOR_GPU if on_gpu else SMALL}
    )
    data = data.map_batches(
        Eigenvectors,
        fn_constructor_args=(plan, "cuda" if on_gpu else "cpu"),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        num_cpus=ON_GPU if on_gpu else ON_CPU,
        num_gpus=1 if on_gpu else 0,
        **each | {"batch_size": PARTS_ON_GPU if on_gpu else 1},
    )
    data = data.map_batches(functools.partial(_finish, plan), **small)
    expected: dict[str, int] = {}
    written = defaultdict(set, {shard.stem: set(parts.get(shard.stem, ())) for shard in pending})
    for table in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        for stem, number, payload in _rows(table):
            if number == COUNT:
                expected[stem] = payload
            else:
                written[stem].add(number)
                yield payload
            if stem in expected and written[stem].issuperset(range(expected[stem])):
                _join(folder, stem, expected.pop(stem), plan.schema())
                folder.remove([_part(stem, number) for number in written.pop(stem)])
    if written:
        raise InputError(f"shards without a table: {some_of(sorted(written))}; run the same command again")


def _join(folder: TableFolder, stem: str, count: int, schema: pyarrow.Schema) -> None:
    """The parts of a shard become one table."""
    try:
        tables = [folder.read(_part(stem, number)) for number in range(count)]
    except InputError:
        if f"{stem}.parquet" in folder.names():  # another run of this command was faster
            return
        raise
    folder.write(f"{stem}.parquet", pyarrow.concat_tables(tables) if tables else schema.empty_table())


def _part(stem: str, number: int) -> str:
    return f"{PARTS}/{stem}-{number:06d}.parquet"


def _parts(folder: TableFolder) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for name in folder.names(PARTS):
        if matched := re.fullmatch(r"(.+)-(\d{6,})\.parquet", name):
            found[matched[1]].add(int(matched[2]))
    return found


# --- the tasks ------------------------------------------------------------------------------------------------------


def _table(stem: str, number: int, payload: object) -> pyarrow.Table:
    """A row: shard, number of the part, and anything."""
    content = pyarrow.array([pickle.dumps(payload, protocol=5)], pyarrow.large_binary())
    return pyarrow.table({"stem": [stem], "number": [number], "payload": content})


def _rows(table: pyarrow.Table) -> Iterator[tuple[str, int, Any]]:
    for stem, number, payload in zip(*(table[name] for name in ("stem", "number", "payload")), strict=True):
        yield stem.as_py(), number.as_py(), pickle.loads(payload.as_buffer())


def _each_part(table: pyarrow.Table, work: Callable[[str, int, list[Any]], object]) -> Iterator[pyarrow.Table]:
    """What ``work`` makes of the parts in a table; how many a shard has goes on as it is."""
    for stem, number, part in _rows(table):
        yield _table(stem, number, part if number == COUNT else work(stem, number, part))


def _read(plan: Plan, table: pyarrow.Table) -> Iterator[pyarrow.Table]:
    """Shards -> their parts that are not there yet, lists of :class:`Entry`; and how many there are."""
    for given in table["payload"]:
        shard, there = pickle.loads(given.as_buffer())
        number, part = 0, list[Entry]()
        for entry in entries_of(shard, plan.settings.image_column):
            part.append(entry)
            if len(part) == plan.settings.batch_size:
                if number not in there:
                    yield _table(shard.stem, number, part)
                number, part = number + 1, []
        if part and number not in there:
            yield _table(shard.stem, number, part)
        yield _table(shard.stem, COUNT, number + bool(part))


def _decode(plan: Plan, table: pyarrow.Table) -> Iterator[pyarrow.Table]:
    """Entries -> (id, name, pixels, shape, colour affinity), or (id, name, problem)."""
    view, colour = view_of(asdict(plan.features)), eigs.colouring(plan.stages.eigs)

    def decoded(entry: Entry) -> tuple[Any, ...]:
        try:
            if entry.problem is not None:
                raise InputError(entry.problem)
            image = load_image(entry.name, content=entry.content, **view)
            item = features.loaded(entry.id, image, plan.patch_size, colour)
        except InputError as error:
            return entry.id, entry.name, str(error)
        return entry.id, entry.name, item.pixels.numpy(), item.shape, item.colour

    yield from _each_part(table, lambda stem, number, part: list(map(decoded, part)))


@dataclass(frozen=True)
class Waiting:
    """A decoded image, and its place among those that came with it."""

    place: int
    name: str
    item: features.Loaded

    @property
    def image_id(self) -> str:
        """As of the item."""
        return self.item.image_id


class Eigenvectors:
    """An actor that has the backbone: what was decoded -> (id, name, eigenvectors record, colours or None)."""

    def __init__(self, plan: Plan, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(1)
        self.plan, self.device = plan, pick_device(device)
        self.extractor = features.load_extractor("stream", plan.features, self.device)

    def __call__(self, table: pyarrow.Table) -> Iterator[pyarrow.Table]:
        """Parts -> parts; images of one kind go together, whichever part they are of."""
        parts = list(_rows(table))
        solved = iter(self._solved([one for _, number, part in parts if number != COUNT for one in part]))
        for stem, number, part in parts:
            yield _table(stem, number, part if number == COUNT else list(itertools.islice(solved, len(part))))

    def _solved(self, given: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        solved, waiting = dict[int, tuple[Any, ...]](), list[Waiting]()
        for place, (image_id, name, *found) in enumerate(given):
            if len(found) == 1:
                solved[place] = given[place]
            else:
                pixels, shape, colour = found
                item = features.Loaded(image_id, torch.from_numpy(pixels.copy()), shape, colour)
                waiting.append(Waiting(place, name, item))
        at_once = 1 if self.device.type == "cpu" else features.GPU_BATCH
        for group in alike(waiting, lambda each: features.kind_of(each.item), lambda _: at_once):
            for each, outcome in zip(group, together_or_alone(self._together, group), strict=True):
                result = (outcome.problem,) if isinstance(outcome, Failure) else outcome
                solved[each.place] = (each.image_id, each.name, *result)
        return [solved[place] for place in range(len(given))]

    def _together(self, group: list[Waiting]) -> Iterator[tuple[dict[str, Any], np.ndarray | None]]:
        """Eigenvectors records of images of one kind, and the colours of their cells where these are the features."""
        views = [{"file": each.name} | view_of(asdict(self.plan.features)) for each in group]
        items, settings = [each.item for each in group], self.plan.stages.eigs
        for problem, *found in eigs.eigenvectors_of(self.extractor, items, views, settings, self.device):
            has_colours = self.extractor.backbone.name == LAB_GRAPH
            yield eigs.record_of(problem.about, *found), problem.features.cpu().numpy() if has_colours else None


def _finish(plan: Plan, table: pyarrow.Table) -> Iterator[pyarrow.Table]:
    """Eigenvectors -> a file of rows; how many there are, and which failed."""
    folder = TableFolder(plan.output_dir)

    def written(stem: str, number: int, part: list[Any]) -> tuple[int, list[tuple[str, str]]]:
        found = [
            {"id": image_id, "shard": stem, "name": name, **_found(plan, image_id, *rest)}
            for image_id, name, *rest in part
        ]
        folder.write(_part(stem, number), pyarrow.Table.from_pylist(found, plan.schema()))
        return len(found), [(f"{stem}/{row['id']}", row["error"]) for row in found if "error" in row]

    yield from _each_part(table, written)


def _found(
    plan: Plan, image_id: str, record: dict[str, Any] | str, colours: np.ndarray | None = None
) -> dict[str, Any]:
    """What a row tells of an image by its eigenvectors record, or in the place of one by its problem."""
    if isinstance(record, str):
        return {"error": record}
    try:
        mask = masks.object_of(record, record["grid"], colours, plan.stages.single)
        segments = masks.segments_of(record, record["grid"], plan.stages.multi)
        boxes = bboxes.boxes_of(image_id, segments, record["shape"], record["step"], record, plan.boxes)
    except InputError as error:
        return {"error": str(error)}
    return rows.row_of(record, mask, segments, boxes, plan.settings.eigenvectors)
