"""Work on a GPU: items of one kind together, read ahead in threads, and none lost with its batch."""

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

from spectralseg.errors import InputError
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
    """Read each pending image, work on those of one kind together, and save each.

    Parameters
    ----------
    stage, pending
        The stage that has begun, and what it has to do.
    read
        Id -> item; an :class:`InputError` is that image's alone.
    kind, at_once
        As of :func:`alike`.
    work
        Items of one kind -> for each its id and a function that saves its result. A batch that fails, or needs more
        memory than there is, is taken image by image.
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

    def handle(items: list[Item]) -> None:
        try:
            results = list(work(items))
        except (InputError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:
            if len(items) == 1:
                stage.failed(items[0].image_id, str(error).splitlines()[0])
                return
            for item in items:
                handle([item])
            return
        for image_id, save in results:
            put(image_id, save)

    with stage.working(), writing_behind(stage, THREADS) as put:
        for items in alike(readable(), kind, at_once):
            handle(items)
