"""Pairing by id, sizes of label maps, augmented images with their pseudo-labels."""

from pathlib import Path

import numpy as np
import pytest

from semanticseg.augment import Augmentation
from semanticseg.matches import renaming
from semanticseg.pseudolabels import PseudoLabelled, at_pixels, pair, patch_step, read_ids, read_segments, train_ids
from semanticseg.settings import Data, Loader, Transform
from spectralseg.errors import InputError
from spectralseg.files.images import find_images
from spectralseg.files.label_maps import upscale_labels

PLAIN = Augmentation(16, 16)


@pytest.mark.parametrize(
    ("height", "width", "shape", "step"),
    [
        (375, 500, (23, 31), 16),
        (375, 500, (46, 62), 8),
        (366, 500, (44, 62), 16),  # a grid twice as fine: 2 * (366 // 16), where 366 // 8 is 45
        (366, 500, (45, 62), 8),
        (375, 500, (26, 35), 14),
    ],
)
def test_label_maps_of_patches(height: int, width: int, shape: tuple[int, int], step: int):
    assert patch_step(shape, height, width, Path("a.png")) == step
    labels = np.random.default_rng(0).integers(0, 21, shape).astype(np.uint8)
    full = at_pixels(labels, height, width, Path("a.png"))
    np.testing.assert_array_equal(full, upscale_labels(labels, height, width, step))
    assert full[0, 0] == labels[0, 0]
    cell = step * (height // step) // shape[0]
    assert (full[cell : 2 * cell, :cell] == labels[1, 0]).all()


@pytest.mark.parametrize(("enlarge", "columns"), [("patches", [0] * 16 + [1] * 25), ("released", [0] * 21 + [1] * 20)])
def test_the_published_data_set_stretches_label_maps(enlarge: str, columns: list[int]):
    """20 x 41 pixels have 1 x 2 patches of 16; the last 9 columns belong to none, and take of the stretched map."""
    full = at_pixels(np.uint8([[0, 1]]), 20, 41, Path("a.png"), enlarge)
    assert full.tolist() == [columns] * 16 + [[0] * 21 + [1] * 20] * 4


def test_a_label_map_of_pixels_stays_as_it_is():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert at_pixels(labels, 3, 4, Path("a.png")) is labels


@pytest.mark.parametrize("shape", [(500, 375), (23, 30), (375, 499), (1, 1)])
def test_label_maps_of_another_size(shape: tuple[int, int]):
    with pytest.raises(InputError, match=f"a.png has {shape[1]}x{shape[0]} cells, which fits no image of 500x375"):
        at_pixels(np.zeros(shape, np.uint8), 375, 500, Path("a.png"))


def test_numbers_beyond_the_clusters(voc):
    voc.write(voc.segments / "a.png", np.array([[0, 20], [255, 1]]))
    assert read_segments(voc.segments / "a.png", 2, 2, 21).max() == 255  # void
    with pytest.raises(InputError, match=r"a.png holds the cluster number 20, but they end at 19"):
        read_segments(voc.segments / "a.png", 2, 2, 20)


def test_lists_of_ids(tmp_path: Path):
    path = tmp_path / "val.txt"
    path.write_text("b 1\r\n\na  -1\nb\n", encoding="utf-8-sig")
    assert read_ids(path) == ["a", "b"]
    path.write_text("\n")
    with pytest.raises(InputError, match="val.txt names no image"):
        read_ids(path)
    path.write_bytes(b"\xff\xd8\x00")
    for unreadable in (path, tmp_path / "none.txt"):
        with pytest.raises(InputError, match=f"cannot read the list of ids {unreadable}"):
            read_ids(unreadable)


def test_pairing_is_by_id(voc):
    for name in ("a", "b", "c"):
        voc.add(name, [[0]], [[0]])
    (voc.segments / "0_other.png").write_bytes(b"")  # an id of no list changes nothing
    images = find_images(voc.voc / "JPEGImages", depth=0)
    files = pair(["c", "a"], images, voc.voc / "SegmentationClass", voc.segments)
    assert [(f.id, f.image.stem, f.truth.stem, f.segments.stem) for f in files] == [("c",) * 4, ("a",) * 4]


def test_files_that_are_missing_are_named(voc):
    for name in ("a", "b", "c"):
        voc.add(name, [[0]], [[0]])
    images, masks = find_images(voc.voc / "JPEGImages", depth=0), voc.voc / "SegmentationClass"
    (voc.segments / "b.png").unlink()
    (voc.segments / "c.png").unlink()
    with pytest.raises(InputError, match=r"label map .*segmaps/b.png is missing, and so are 1 more of 3"):
        pair(["a", "b", "c"], images, masks, voc.segments)
    (masks / "a.png").unlink()
    with pytest.raises(InputError, match=r"true mask .*SegmentationClass/a.png is missing$"):
        pair(["a"], images, masks, voc.segments)
    with pytest.raises(InputError, match="x has no image"):
        pair(["x"], images)
    with pytest.raises(InputError, match="segments_dir: no such folder"):
        pair(["a"], None, None, voc.root / "none")


def test_all_that_is_not_held_out_trains(voc, tmp_path: Path):
    for name in ("a", "b", "c"):
        voc.add(name, [[0]], val=name == "b")
    images = find_images(voc.voc / "JPEGImages", depth=0)
    val_list = voc.voc / "ImageSets" / "Segmentation" / "val.txt"
    data = Data("", "images", "", str(val_list), Loader(1, 0), Transform(8, 8), 20, 20)
    assert train_ids(data, images) == ["a", "c"]
    (tmp_path / "train.txt").write_text("c\n")
    data.train_list = str(tmp_path / "train.txt")
    assert train_ids(data, images) == ["c"]
    data.train_list = None
    with pytest.raises(InputError, match="none is left to train on"):
        train_ids(data, {"b": images["b"]})


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
