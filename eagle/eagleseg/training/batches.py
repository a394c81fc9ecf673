"""The order of a training run's batches, a function of the seed and the step alone, so that a run resumes exactly."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from eagleseg.data.dataset import EagleDataset, iterate


class EpochBatches(Sampler[list[int]]):
    """Indices of one epoch's batches, this process's share of each.

    An epoch is a random permutation of the data set, cut into batches; what is left over waits for a later epoch. A
    data set smaller than a batch is repeated until it fills one.

    Parameters
    ----------
    length
        Of the data set.
    batch_size
        Images of a step, over all processes.
    seed
        Of the permutations.
    rank, world
        This process, and how many there are; ``batch_size`` must be a multiple of ``world``.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch = self.first = 0

    @property
    def per_epoch(self) -> int:
        """Batches of a whole epoch."""
        return max(1, self.length // self.batch_size)

    def start_at(self, step: int) -> None:
        """Let the next iteration begin at the batch of this step (0 is the first) and end with its epoch."""
        self.epoch, self.first = divmod(step, self.per_epoch)

    def __len__(self) -> int:
        return self.per_epoch - self.first

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 24) + self.epoch)
        order = torch.randperm(self.length, generator=generator)
        order = order.repeat(-(-self.batch_size // self.length)) if self.length < self.batch_size else order
        for number in range(self.first, self.per_epoch):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[self.rank :: self.world].tolist()


def endless_batches(
    dataset: EagleDataset, sampler: EpochBatches, first_step: int, num_workers: int, pin_memory: bool
) -> Iterator[dict]:
    """Batches from the one of ``first_step`` on, epoch after epoch."""
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )
    step = first_step
    while True:
        sampler.start_at(step)
        dataset.begin_epoch(sampler.epoch)
        step += len(sampler)
        yield from iterate(loader)
