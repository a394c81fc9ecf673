"""Batches: every image once an epoch, shares of processes, going on in the middle; and how they are read."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from spectralseg.errors import InputError
from spectralseg.training.batches import Batches, check_batch_size, read_batches


def keys(images: int, batch_size: int, start: int, end: int, seed: int = 0, rank: int = 0, world: int = 1) -> list:
    return list(Batches(images, batch_size, lambda epoch: 1000 * seed + epoch, start, end, rank, world))


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_shows_every_image_once(images: int, batch_size: int, seed: int):
    per_epoch = max(1, images // batch_size)
    batches = keys(images, batch_size, 0, 3 * per_epoch, seed)
    assert all(len(batch) == batch_size for batch in batches)
    for epoch in range(3):
        shown = [key for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for key in batch]
        assert {number for number, _ in shown} == {epoch}
        assert len({index for _, index in shown}) == min(images, per_epoch * batch_size)


def test_epochs_and_seeds_differ():
    orders = [keys(20, 4, start, start + 5, seed) for seed, start in ((0, 0), (0, 5), (1, 0))]
    assert len({tuple(index for batch in order for _, index in batch) for order in orders}) == 3


@given(st.integers(0, 20))
def test_going_on_in_the_middle(start: int):
    assert keys(22, 4, start, 20) == keys(22, 4, 0, 20)[start:]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(world: int):
    shares = [keys(22, 6, 0, 9, rank=rank, world=world) for rank in range(world)]
    for batch, *parts in zip(keys(22, 6, 0, 9), *shares, strict=True):
        assert sorted(sum(parts, [])) == sorted(batch)
        assert len({len(part) for part in parts}) == 1


def test_batch_sizes_that_cannot_be_shared():
    check_batch_size(8, 4)
    for batch_size, world in ((1, 1), (6, 4), (4, 4)):
        with pytest.raises(InputError, match="cannot be shared by"):
            check_batch_size(batch_size, world)


class Items(Dataset):
    """Number i by its index, or by (epoch, index); what is to go wrong at some of them."""

    def __init__(self, **faults: int) -> None:
        self.faults = faults

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        if index == self.faults.get("unreadable"):
            raise InputError(f"number {index} cannot be read")
        if index == self.faults.get("deadly"):
            os._exit(1)
        if index == self.faults.get("ours"):
            raise RuntimeError("a fault of ours")
        return {"id": str(index), "number": torch.tensor([index])}


def numbers(batches: Iterator[Any]) -> list[list[int]]:
    return [batch["number"].flatten().tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_items_are_read_in_order(workers: int):
    assert numbers(read_batches(Items(), 4, workers)) == [[0, 1, 2, 3], [4, 5]]
    order = Batches(6, 3, lambda epoch: epoch, 1, 4)
    assert numbers(read_batches(Items(), order, workers)) == [[index for _, index in batch] for batch in order]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_cannot_be_read_is_said_in_one_line(workers: int):
    with pytest.raises(InputError) as stop:
        numbers(read_batches(Items(unreadable=4), 3, workers))
    assert str(stop.value) == "number 4 cannot be read"


@pytest.mark.slow
def test_a_process_that_dies():
    with pytest.raises(InputError, match="a process that loads images died"):
        numbers(read_batches(Items(deadly=2), 2, 1))


def test_other_faults_pass():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        numbers(read_batches(Items(ours=0), 2, 0))
