"""Augmented images with their pseudo-labels."""

import numpy as np
import pytest

from semanticseg.augment import Augmentation
from semanticseg.batches import PseudoLabelled, check_batches
from semanticseg.matches import renaming
from semanticseg.pseudolabels import pair
from spectralseg.errors import InputError

PLAIN = Augmentation(16, 16)


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
    with pytest.raises(InputError, match=f"{files[2].segments}: matching says nothing about its cluster 2"):
        _ = dataset[0, 2]


def test_void_of_label_maps_stays_void(files, voc):
    voc.write(voc.segments / "0.png", np.full((32, 40), 255))
    dataset = PseudoLabelled(files, renaming([(0, 0)]), 3, PLAIN, seed=0)
    assert (dataset[0, 0][1] == 255).all()
