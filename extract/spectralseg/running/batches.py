"""Work on a GPU: items of one kind together, read ahead in threads, and none lost with its batch."""

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from spectralseg.errors import InputError
from spectralseg.progress import say
from spectralseg.running.stage import Stage
from spectralseg.running.workers import read_ahead

THREADS = 8  # that read files for a GPU, and as many that write them
WAITING_BATCHES = 16  # images of so many batches may wait for others of their kind


class OfAnImage(Protocol):
    """What was read of an image."""

    @property
    def image_id(self) -> str:
        """Its id."""


Item = TypeVar("Item", bound=OfAnImage)
Result = TypeVar("Result")


def alike(
    items: Iterable[Item], kind: Callable[[Item], Hashable], at_once: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Collect items of one ``kind`` into lists of ``at_once(item)``.

    Items wait for others of their kind, at most ``WAITING_BATCHES`` batches of the present one's size: then the fullest
    group goes on as it is, as all do at the end.
    """
    waiting: dict[Hashable, list[Item]] = {}
    count = 0
    for item in items:
        size, group = at_once(item), waiting.setdefault(kind(item), [])
        group.append(item)
        count += 1
        if len(group) < size and count >= WAITING_BATCHES * size:
            group = max(waiting.values(), key=len)
        if len(group) >= size or count >= WAITING_BATCHES * size:
            count -= len(group)
            yield waiting.pop(kind(group[0]))
    yield from waiting.values()


@contextlib.contextmanager
def writing_behind(stage: Stage, threads: int) -> Iterator[Callable[[str, Callable[[], None]], None]]:
    """A function of an id and of what saves its result, which works in ``threads`` threads (0: at once).

    What a save raises is raised here, at a later call or at the end.
    """
    if threads == 0:

        def at_once(image_id: str, save: Callable[[], None]) -> None:
            save()
            stage.done(image_id)

        yield at_once
        return
    under_way: deque[tuple[str, Future[None]]] = deque()

    def collect(most: int) -> None:
        while len(under_way) > most:
            image_id, future = under_way.popleft()
            future.result()
            stage.done(image_id)

    with ThreadPoolExecutor(threads) as pool:

        def later(image_id: str, save: Callable[[], None]) -> None:
            under_way.append((image_id, pool.submit(save)))
            collect(4 * threads)

        yield later
        collect(0)


def run_in_batches(
    stage: Stage,
    pending: Sequence[str],
    read: Callable[[str], Item],
    kind: Callable[[Item], Hashable],
    at_once: Callable[[Item], int],
    work: Callable[[list[Item]], Iterable[tuple[str, Callable[[], None]]]],
) -> None:
    """Read each pending image in threads, and :func:`work_in_batches`.

    ``stage`` has begun, and ``pending`` is what it has to do; ``read``: id -> item, an :class:`InputError` being that
    image's alone.
    """

    def attempt(image_id: str) -> tuple[str, Item | InputError]:
        try:
            return image_id, read(image_id)
        except InputError as error:
            return image_id, error

    def readable() -> Iterator[Item]:
        for image_id, item in read_ahead(attempt, pending, THREADS):
            if isinstance(item, InputError):
                stage.failed(image_id, str(item))
            else:
                yield item

    with stage.working():
        work_in_batches(stage, readable(), kind, at_once, work, THREADS)


def work_in_batches(
    stage: Stage,
    items: Iterable[Item],
    kind: Callable[[Item], Hashable],
    at_once: Callable[[Item], int],
    work: Callable[[list[Item]], Iterable[tuple[str, Callable[[], None]]]],
    writers: int,
) -> None:
    """Work on items of one kind together, and save the result of each.

    Parameters
    ----------
    stage
        It has begun; failures are reported to it.
    items, kind, at_once
        As of :func:`alike`.
    writers
        Threads that save; 0 saves in this one.
    work
        Items of one kind -> for each, in their order, its id and a function that saves its result; as
        :func:`together_or_alone` takes it.
    """

    with writing_behind(stage, writers) as put:
        for together in alike(items, kind, at_once):
            for item, result in zip(together, together_or_alone(work, together), strict=True):
                if isinstance(result, Failure):
                    stage.failed(item.image_id, result.problem)
                else:
                    put(*result)


@dataclass(frozen=True)
class Failure:
    """In the place of a result: why there is none."""

    problem: str


def together_or_alone(work: Callable[[list[Item]], Iterable[Result]], items: list[Item]) -> list[Result | Failure]:
    """What ``work`` makes of items together, one result for each in their order.

    A batch that fails, or needs more memory than there is, is taken item by item; of an item alone that is its failure.
    """
    try:
        return list(work(items))
    except (InputError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:
        failure, out_of_memory = Failure(str(error).splitlines()[0]), isinstance(error, torch.OutOfMemoryError)
    if len(items) == 1:
        return [failure]
    if out_of_memory:  # here, where the error no longer holds on to what it was raised beside
        say(f"{failure.problem}: one by one now")
    return [result for item in items for result in together_or_alone(work, [item])]
