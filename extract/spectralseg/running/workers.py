"""Worker processes of one thread each. One that dies neither hangs nor ends the run; none outlives it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, TypeVar

from spectralseg.errors import InputError, OutputError
from spectralseg.progress import be_verbose, tell_memory, verbose_since

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PRELOADED = ["spectralseg.commands.eigs", "spectralseg.commands.masks", "spectralseg.commands.semantic"]  # and so torch
SERVER_ATTEMPTS = 50  # a tenth of a second apart
NO_SERVER = "no worker process can be started (do without --multiprocessing)"
DIED = "its worker process died (often: out of memory; try fewer processes)"

Item = TypeVar("Item")
Result = TypeVar("Result")


def attempt(work: Callable[[str], None], image_id: str) -> str | None:
    """Call ``work(image_id)``; return None, or the reason why this one image failed.

    Only a result that cannot be written (:class:`OutputError`) is raised: it would fail for every image.
    """
    try:
        work(image_id)
    except OutputError:
        raise
    except InputError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def map_processes(work: Callable[[str], None], ids: Sequence[str], processes: int) -> Iterator[tuple[str, str | None]]:
    """Call ``work(id)`` for all ids in ``processes`` processes; yield (id, problem or None) as they end.

    ``work`` must be picklable (a module's function, or ``functools.partial`` of one). When a process dies, the ids
    that were under way are tried again one by one, which tells the culprit from its neighbours.
    """
    waiting = list(reversed(ids))
    while waiting:
        under_way: dict[Future, str] = {}
        try:
            with _pool(processes) as pool:
                while waiting or under_way:
                    while waiting and len(under_way) < 2 * processes:
                        image_id = waiting[-1]
                        under_way[_submit(pool, attempt, work, image_id)] = image_id
                        waiting.pop()
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        problem = future.result()
                        yield under_way.pop(future), problem
        except (BrokenProcessPool, ConnectionError) as error:
            again = list(under_way.values())
            if isinstance(error, ConnectionError):  # the server is gone: no process could be started for the next id
                again.append(waiting.pop())
            for image_id in again:
                yield image_id, _alone(work, image_id)


def _alone(work: Callable[[str], None], image_id: str) -> str | None:
    for _ in range(SERVER_ATTEMPTS):
        try:
            with _pool(1) as pool:
                return _submit(pool, attempt, work, image_id).result()
        except BrokenProcessPool:
            return DIED
        except ConnectionError:  # a server that was killed a moment ago is not known to be dead yet
            time.sleep(0.1)
    return NO_SERVER


def stream(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """Yield ``work(item)`` for all items, in their order, made in ``processes`` processes (0: in this one).

    Items are taken as the results are, at most ``2 * processes`` of them ahead, so that they may be large arrays.
    ``work``, items and results must be picklable. What ``work`` or ``items`` raises is raised here.

    Raises
    ------
    InputError
        A process died.
    """
    if processes == 0:
        yield from map(work, items)
        return
    finished = 0
    try:
        with _pool(processes) as pool:
            for result in _in_order(lambda item: _submit(pool, work, item), items, 2 * processes):
                yield result
                finished += 1
    except BrokenProcessPool:
        raise InputError(f"item {finished + 1}: {DIED}") from None


def read_ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """As :func:`stream`, in ``threads`` threads (0: in this one): for reading files, which needs no process."""
    if threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order(lambda item: pool.submit(function, item), items, 2 * threads)


def _in_order(submit: Callable[[Item], "Future[Result]"], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Results in the order of their items, of which at most ``ahead`` are under way; on an early end none is begun."""
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(submit(item))
            if len(under_way) == ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


@contextlib.contextmanager
def loader(dataset: "Dataset[Any]", num_workers: int, **options: Any) -> Iterator["DataLoader[Any]"]:
    """A ``DataLoader`` with these options.

    Its processes are forked from this one where the system can do it: torch watches that a parent lives by its process
    number, and shares memory with a fork without further threads. They compute in one thread, and not on a GPU.

    A process that dies ends the work in one line. Torch raises then wherever the main process is, or the pipe between
    the two breaks.
    """
    from torch.utils.data import DataLoader

    if num_workers:
        options["multiprocessing_context"] = "fork" if sys.platform == "linux" else "spawn"
        options["worker_init_fn"] = _watch_parent  # torch itself looks for it every five seconds
    try:
        yield DataLoader(dataset, num_workers=num_workers, **options)
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        ours = isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)
        if ours or not num_workers:
            raise
        with contextlib.suppress(ValueError, AttributeError):  # in the main thread on Unix, torch has a handler that
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # would raise again when the other processes are ended
        raise InputError(
            "a process that loads images died (often: out of memory; try fewer num_workers); the same command goes on "
            "where it stopped"
        ) from error


def start_server() -> None:
    """Start the process that workers are forked from, where it is not running yet.

    It imports torch, which takes seconds: a command that is going to need workers starts it before its own imports.
    """
    if _context().get_start_method() == "forkserver":
        resource_tracker.ensure_running()  # or the server's start would do it, and unblock Ctrl-C
        with _environment(ONE_THREAD), _ctrl_c_blocked():
            forkserver.set_forkserver_preload(PRELOADED)
            forkserver.ensure_running()


def _context() -> BaseContext:
    """How processes are started: forked from a server that has imported torch and done nothing else.

    To import it in each would take seconds, and to fork this process, whose torch may have started threads, may
    deadlock. On macOS, whose system libraries are not made for forking, each process starts from nothing.
    """
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Result], *arguments: object) -> "Future[Result]":
    """Hand ``function(*arguments)`` to a pool, which may start a process for it."""
    with _ctrl_c_blocked():
        return pool.submit(function, *arguments)


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which this process handles; they would print a traceback each."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes of one thread each."""
    start_server()
    with _environment(ONE_THREAD):
        pool = ProcessPoolExecutor(
            processes, mp_context=_context(), initializer=_initialize, initargs=(verbose_since(),)
        )
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _initialize(since: float | None) -> None:
    import torch

    from spectralseg.running.devices import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    if since is not None:
        be_verbose(since)
        util.Finalize(None, tell_memory, args=("worker process, ",), exitpriority=0)
    _watch_parent()


def _watch_parent(number: int = 0) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent dies: ProcessPoolExecutor leaves the workers of a killed parent waiting."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
