"""Batches: every image once an epoch, shares of processes, going on in the middle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semanticseg.augment import Augmentation
from semanticseg.batches import Batches, PseudoLabelled, check_batches, collate, make_loader
from semanticseg.matches import renaming
from semanticseg.pseudolabels import pair
from spectralseg.errors import InputError

PLAIN = Augmentation(16, 16)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_is_a_permutation(images: int, batch_size: int, seed: int):
    if batch_size > images:
        return
    per_epoch = images // batch_size
    batches = list(Batches(images, batch_size, seed, 0, 3 * per_epoch))
    assert all(len(batch) == batch_size for batch in batches)
    for epoch in range(3):
        keys = [key for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for key in batch]
        assert {key[0] for key in keys} == {epoch}
        assert len({index for _, index in keys}) == per_epoch * batch_size


def test_epochs_and_seeds_differ():
    orders = [[index for batch in Batches(20, 4, seed, start, start + 5) for _, index in batch]
              for seed, start in ((0, 0), (0, 5), (1, 0))]  # fmt: skip
    assert len({tuple(order) for order in orders}) == 3


@given(st.integers(0, 20))
def test_going_on_in_the_middle(start: int):
    assert list(Batches(22, 4, 1, start, 20)) == list(Batches(22, 4, 1, 0, 20))[start:]


def test_processes_share_a_batch():
    whole = list(Batches(22, 6, 1, 0, 9))
    for world in (2, 3):
        shares = [list(Batches(22, 6, 1, 0, 9, rank, world)) for rank in range(world)]
        assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole


def test_batches_that_cannot_be():
    check_batches(8, 8, 4)
    with pytest.raises(InputError, match="more than the 7 images"):
        check_batches(7, 8, 1)
    for batch_size, world in ((1, 1), (6, 4), (4, 4)):
        with pytest.raises(InputError, match="multiple of the"):
            check_batches(100, batch_size, world)


@pytest.fixture
def files(voc):
    for index in range(6):
        labels = np.full((32, 40), index % 3)
        voc.add(f"{index}", labels, labels)
    names = [str(index) for index in range(6)]
    return pair(names, {name: voc.voc / "JPEGImages" / f"{name}.jpg" for name in names}, None, voc.segments)


def test_clusters_are_renamed(files):
    dataset = PseudoLabelled(files, renaming([(0, 7), (1, 0), (2, 3)]), 4, PLAIN, seed=0)
    assert len(dataset) == 6
    for index, label in enumerate((7, 0, 3)):
        image, labels = dataset[0, index]
        assert image.shape == (3, 16, 16)
        assert (labels == label).all()


def test_pseudo_labels_are_enlarged_as_asked(files, voc):
    voc.add("0", np.zeros((20, 41)), [[0, 1]])
    for enlarge, columns in (("patches", 16), ("released", 21)):
        unchanged = lambda image, labels, seed: labels  # noqa: E731
        dataset = PseudoLabelled(files, renaming([(0, 0), (1, 1)]), 2, unchanged, 0, enlarge)
        assert (dataset[0, 0][0] == 0).sum() == columns


def test_what_cannot_be_read_is_said(files, voc):
    dataset = PseudoLabelled(files, renaming([(0, 0), (1, 1)]), 3, PLAIN, seed=0)
    assert dataset[0, 2] == f"{files[2].segments}: matching says nothing about its cluster 2"
    files[1].image.write_bytes(b"no image")
    assert "1.jpg cannot be read" in dataset[0, 1]
    assert collate([dataset[0, 0], dataset[0, 1]]) == dataset[0, 1]


def test_void_of_label_maps_stays_void(files, voc):
    voc.write(voc.segments / "0.png", np.full((32, 40), 255))
    dataset = PseudoLabelled(files, renaming([(0, 0)]), 3, PLAIN, seed=0)
    assert (dataset[0, 0][1] == 255).all()


@pytest.mark.slow
def test_worker_processes_change_nothing(files):
    dataset = PseudoLabelled(files, renaming([(0, 0), (1, 1), (2, 2)]), 3, PLAIN, seed=0)
    alone, helped = (list(make_loader(dataset, Batches(6, 3, 1, 0, 4), workers)) for workers in (0, 1))
    assert len(alone) == 4
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
