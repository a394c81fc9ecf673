"""Progress bars and lines for the user, and the details that ``--verbose`` asks for."""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import psutil
from tqdm import tqdm

from spectralseg.errors import printable

SECONDS, SECONDS_IN_FILES = 0.2, 10.0  # between redraws of a bar
MEGABYTE = 1 << 20
VERBOSE = "tell settings and where they come from, files reused, solvers, seconds and memory; bars in files too"

_since: float | None = None  # when the process of a verbose command began; None: it is not verbose
_told: dict[str, Any] = {}  # settings with their values, and lines that are told once


def progress_bar(items: Iterable[Any] | None = None, disable: bool = False, **options: Any) -> tqdm:
    """A ``tqdm`` bar where :func:`is_watched`."""
    seconds = SECONDS if sys.stderr.isatty() else SECONDS_IN_FILES
    return tqdm(items, mininterval=seconds, disable=disable or not is_watched(), **options)


def is_watched() -> bool:
    """Whether bars and headers are for somebody: stderr is a terminal, or the command is verbose."""
    return sys.stderr.isatty() or _since is not None


def say(message: object) -> None:
    """A line on stderr, above a progress bar if there is one; names of files in it are made printable here."""
    tqdm.write(printable(message), file=sys.stderr)


def verbose_since() -> float | None:
    """When a verbose command began, in seconds since 1970; None where it is not verbose."""
    return _since


def be_verbose(since: float | None = None) -> None:
    """Tell details from now on; ``since`` as of :func:`verbose_since`, by default when this process began."""
    global _since
    _since = since or psutil.Process().create_time()


@contextlib.contextmanager
def details() -> Iterator[None]:
    """Around a command: what it tells of memory at its end, after which the next one is quiet."""
    global _since
    try:
        yield
        tell_memory()
    finally:
        _since = None
        _told.clear()


def detail(message: str, once: bool = False) -> None:
    """Of a verbose command: a line, with the seconds since it began and its memory; ``once``: unless it was told."""
    if _since is not None and not (once and message in _told):
        _told[message] = None
        memory = psutil.Process().memory_info().rss / MEGABYTE
        say(f"[{time.time() - _since:.1f} s, {memory:.0f} MB] {message}")


def tell_memory(of: str = "") -> None:
    """Of a verbose command: the most memory that this process had, also on a GPU."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    torch = sys.modules.get("torch")
    on_gpu = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0
    gpu = f", {on_gpu / MEGABYTE:.0f} MB on the GPU" if on_gpu else ""
    detail(f"{of}memory: {most / MEGABYTE:.0f} MB at most{gpu}")


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Tell how long a part of a verbose command took; also a decorator."""
    started = time.perf_counter()
    yield
    detail(f"{name}: {time.perf_counter() - started:.2f} s")


def tell_settings(of: str, origin: str, settings: Mapping[str, Any]) -> None:
    """Tell settings that come from ``origin``, but for those that were told with the same value before."""
    texts = {}
    for name, value in flat(settings) if _since is not None else ():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if _told.get(key := ".".join(name.split(".")[-2:])) != text:
            _told[key] = texts[name] = text
    if texts:
        detail(f"{of}, {origin}: " + ", ".join(f"{name}={text}" for name, text in texts.items()))


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots, and values, of settings within settings."""
    for name, value in settings.items():
        yield from flat(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
