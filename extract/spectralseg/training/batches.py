"""Batches of a run: their order, which depends on the seed and the step alone, so that a run resumes; reading them."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, default_collate

from spectralseg.errors import InputError
from spectralseg.running.workers import loader


def check_batch_size(batch_size: int, world: int) -> None:
    """Raise an :class:`InputError` unless ``world`` processes can share a batch, at least two images each.

    Batch norm and losses that compare images need two.
    """
    if batch_size % world or batch_size < 2 * world:
        raise InputError(f"batch_size={batch_size} cannot be shared by {world} processes, at least 2 images each")


class Batches(Sampler[list[tuple[int, int]]]):
    """Keys (epoch, index) of one process's share of each batch, from batch number ``start`` to ``end``.

    An epoch is a random permutation of the images, cut into batches; what does not fill a batch is left out. Fewer
    images than a batch are repeated until they fill one.

    Parameters
    ----------
    images
        How many there are.
    batch_size
        Images of a batch, over all processes.
    epoch_seed
        Seed of the permutation of each epoch.
    start, end
        Numbers of the first batch, and of the one after the last.
    rank, world
        This process, and how many there are; ``batch_size`` must be a multiple of ``world``.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        epoch_seed: Callable[[int], int],
        start: int,
        end: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images, self.batch_size, self.epoch_seed = images, batch_size, epoch_seed
        self.start, self.end, self.rank, self.world = start, end, rank, world
        self.per_epoch = max(1, images // batch_size)

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled, order, share = -1, torch.empty(0), self.batch_size // self.world
        for number in range(self.start, self.end):
            epoch, position = divmod(number, self.per_epoch)
            if epoch != shuffled:
                generator = torch.Generator().manual_seed(self.epoch_seed(epoch))
                order = torch.randperm(self.images, generator=generator).repeat(-(-self.batch_size // self.images))
                shuffled = epoch
            first = position * self.batch_size + self.rank * share
            yield [(epoch, index) for index in order[first : first + share].tolist()]


def read_batches(
    dataset: Dataset[Any], batches: Batches | int, num_workers: int, pin_memory: bool = False
) -> Iterator[Any]:
    """Batches of a data set, read by up to ``num_workers`` processes, no more than there are cores for this one.

    Parameters
    ----------
    dataset
        Its items are tensors, or tuples or dicts of tensors, numbers and texts.
    batches
        Keys of the items of each batch, or a number of items: then all items in order.
    num_workers
        0: this process reads.
    pin_memory
        For copies to a GPU.

    Raises
    ------
    InputError
        An item cannot be read (its own error), or a process died.
    """
    order: dict[str, Any] = {"batch_sampler": batches} if isinstance(batches, Batches) else {"batch_size": batches}
    workers = min(num_workers, max(1, (os.cpu_count() or 1) // (batches.world if isinstance(batches, Batches) else 1)))
    order |= {"collate_fn": _collate, "pin_memory": pin_memory}
    order["generator"] = torch.Generator()  # else torch draws from its global one
    with loader(_Caught(dataset), workers, **order) as read:
        for batch in read:
            if isinstance(batch, _Problem):
                raise InputError(batch)
            yield batch


class _Problem(str):
    """Why an item cannot be read; as an exception it would leave a worker with a traceback."""


class _Caught(Dataset[Any]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except InputError as error:
            return _Problem(error)


def _collate(items: list[Any]) -> Any:
    problems = [item for item in items if isinstance(item, _Problem)]
    return problems[0] if problems else default_collate(items)
