"""Each data set in its layout: which images, which labels; and one line for what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes

from eagle_layouts import (
    camvid,
    cityscapes,
    potsdam,
    scene,
    scenes,
    write_cityscapes,
    write_cocostuff,
    write_directory,
    write_list,
    write_mat,
    write_potsdam,
    write_potsdam_raw,
)
from eagleseg.data import folders as eagle_folders
from eagleseg.data.dataset import DataSettings, EagleDataset, build_dataset, image_folder
from eagleseg.data.folders import COCO_STUFF_COARSE, open_source
from eagleseg.data.sources import VOID, Source
from running import error_line
from shared_data import reference
from spectralseg.errors import InputError
from spectralseg.files.label_maps import COCO_STUFF_27_CLASSES


def open_set(root: Path, name: str, split: str = "train", **settings: object) -> Source:
    return open_source(DataSettings(str(root), name, **settings), split)


def message(root: Path, name: str = "directory", split: str = "train", item: int | None = None, **settings) -> str:
    """The one line of a data set that cannot be opened or, with ``item``, of an item that cannot be read."""
    if name == "directory":
        settings = {"dir_dataset_name": "mine", "dir_dataset_n_classes": 3} | settings
    settings["dataset_name"] = name

    def read() -> None:
        dataset = build_dataset(DataSettings(str(root), **{"crop_type": None, "res": 16} | settings), split, True)
        if item is not None:
            _ = dataset[item]

    return error_line(read)


# --- COCO-Stuff ---


def test_the_table_of_coco_stuff_is_the_recorded_one():

    recorded = json.loads(reference("cocostuff27.json").read_text())
    assert list(COCO_STUFF_COARSE) == recorded["fine_to_coarse"]
    assert list(COCO_STUFF_27_CLASSES) == recorded["classes"]
    three = {name: COCO_STUFF_27_CLASSES.index(name) for name in eagle_folders.COCO_STUFF_3_CLASSES}
    assert three == recorded["three_classes"]


def test_cocostuff27(tmp_path):
    pairs = scenes(3)
    pairs[0][1][:] = 255
    pairs[0][1][0, :4] = [0, 90, 91, 181]  # fine labels: person, the last thing, the first stuff, the last one
    write_cocostuff(tmp_path, {"train": pairs, "val": scenes(2, 9)})
    train = open_set(tmp_path, "cocostuff27")
    assert [train.id(index) for index in range(len(train))] == ["000000000000", "000000000001", "000000000002"]
    assert train.class_names == COCO_STUFF_27_CLASSES
    label = train.label(0)
    assert label[0, :4].tolist() == [9, 4, 17, 24]
    assert (label[1:] == VOID).all()
    assert len(open_set(tmp_path, "cocostuff27", "val")) == 2
    assert open_set(tmp_path, "cocostuff27", "train+val").id(4) == "000000001001"


def test_cocostuff3_keeps_sky_plant_ground(tmp_path):
    picture, label = scene(0)
    label[:] = 255
    fine = [COCO_STUFF_COARSE.index(COCO_STUFF_27_CLASSES.index(name)) for name in ("sky", "plant", "ground", "wall")]
    label[0, :4] = fine
    write_cocostuff(tmp_path, {"train": [(picture, label)]}, few=True)
    source = open_set(tmp_path, "cocostuff3")
    assert source.class_names == ("sky", "plant", "ground")
    assert source.label(0)[0, :5].tolist() == [0, 1, 2, VOID, VOID]


def test_a_list_chooses_the_images(tmp_path):
    write_cocostuff(tmp_path, {"train": scenes(3)})
    curated = tmp_path / "cocostuff" / "curated" / "train2017" / "Coco164kFull_Stuff_Coarse.txt"
    write_list(curated, ["000000000002", "", "000000000000  "])
    source = open_set(tmp_path, "cocostuff27")
    assert [source.id(0), source.id(1)] == ["000000000002", "000000000000"]


# --- Cityscapes ---


def test_cityscapes_is_what_torchvision_reads(tmp_path):
    pairs = [(picture, label + 6) for picture, label in scenes(4, classes=5)]
    write_cityscapes(tmp_path, {"train": pairs})
    source = open_set(tmp_path, "cityscapes")
    theirs = Cityscapes(tmp_path / "cityscapes", "train", mode="fine", target_type="semantic")
    order = {path: number for number, path in enumerate(theirs.images)}
    assert sorted(order) == list(source.images)
    for index, path in enumerate(source.images):
        image, target = theirs[order[path]]
        assert source.photograph(index).tobytes() == image.tobytes()
        ids = np.array(target).astype(int) - 7
        assert np.array_equal(source.label(index), np.where(ids < 0, VOID, ids))
    assert {source.class_names[number] for number in np.unique(source.label(0)) if number != VOID} <= {
        *("road", "sidewalk", "parking", "rail track")
    }


def test_the_real_cityscapes_image(tmp_path):
    image, ids = cityscapes()
    write_cityscapes(tmp_path, {"val": [(image, ids)]}, ["frankfurt"])
    source = open_set(tmp_path, "cityscapes", "val")
    label = source.label(0)
    assert (label == VOID).sum() == (ids < 7).sum() > 0
    counts = {source.class_names[number]: int((label == number).sum()) for number in np.unique(label[label != VOID])}
    assert counts["road"] == (ids == 7).sum()
    assert counts["person"] == (ids == 24).sum()
    assert "car" in counts


# --- Potsdam ---


@pytest.fixture
def tiles():
    """Labels 0..5 in columns, so that the grouping can be read off."""
    label = np.repeat(np.array([0, 1, 2, 3, 4, 5, 255, 255], dtype=np.uint8)[None], 8, axis=0)
    random = np.random.default_rng(0)
    return [(Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)), label) for _ in range(4)]


def test_potsdam(tmp_path, tiles):
    write_potsdam(tmp_path, {"train": tiles[:2], "val": tiles[2:3]}, unlabelled=tiles[3:])
    train = open_set(tmp_path, "potsdam")
    assert [train.id(0), train.id(1)] == ["train0", "train1"]
    assert train.photograph(1).tobytes() == tiles[1][0].tobytes()  # the first three channels
    assert train.label(0)[0].tolist() == [0, 1, 2, 2, 0, 1, VOID, VOID]
    splits = ("val", "train+val", "unlabelled_train", "all")
    sizes = {split: len(open_set(tmp_path, "potsdam", split)) for split in splits}
    assert sizes == {"val": 1, "train+val": 3, "unlabelled_train": 1, "all": 4}
    assert not open_set(tmp_path, "potsdam", "all").has_labels


def test_potsdamraw(tmp_path, tiles, monkeypatch):
    monkeypatch.setattr(eagle_folders, "POTSDAM_RAW", (1, 2, 2))
    write_potsdam_raw(tmp_path, tiles, (1, 2, 2))
    source = open_set(tmp_path, "potsdamraw")
    assert [source.id(index) for index in range(4)] == ["0_0_0", "0_0_1", "0_1_0", "0_1_1"]
    assert source.photograph(3).tobytes() == tiles[3][0].tobytes()
    assert source.label(3)[0].tolist() == [0, 1, 2, 2, 0, 1, VOID, VOID]
    (tmp_path / "potsdamraw" / "processed" / "0_1_0.mat").unlink()
    assert message(tmp_path, "potsdamraw") == (
        f"1 of 4 files are missing in {tmp_path}/potsdamraw/processed, the first is 0_1_0.mat"
    )


def test_a_real_aerial_tile(tmp_path):
    pairs = potsdam(256)
    write_potsdam(tmp_path, {"train": pairs})
    source = open_set(tmp_path, "potsdam")
    for index, (picture, numbers) in enumerate(pairs):
        assert source.photograph(index).tobytes() == picture.tobytes()
        assert np.array_equal(source.label(index) == 2, (numbers == 2) | (numbers == 3))
        assert np.array_equal(source.label(index) == 0, (numbers == 0) | (numbers == 4))


# --- folders of one's own ---


def test_directory(tmp_path):
    pairs = {"train": scenes(2), "val": scenes(1, 5)}
    write_directory(tmp_path / "mine", pairs)
    for name in ("mine", str(tmp_path / "mine")):
        source = open_set(tmp_path, "directory", dir_dataset_name=name, dir_dataset_n_classes=3)
        assert source.class_names == ("class 0", "class 1", "class 2")
        assert np.array_equal(source.label(1), pairs["train"][1][1])
    names = ["ground", "car", "tree"]
    settings = {"dir_dataset_name": "mine", "dir_dataset_n_classes": 3, "dir_dataset_class_names": names}
    assert open_set(tmp_path, "directory", "val", **settings).class_names == tuple(names)


def test_directory_of_camvid(tmp_path):
    pairs = camvid("train", 2)
    write_directory(tmp_path / "CamVid", {"train": pairs})
    settings = {"dir_dataset_name": "CamVid", "dir_dataset_n_classes": 11, "dir_dataset_void": 11}
    source = open_set(tmp_path, "directory", **settings)
    for index, (_, numbers) in enumerate(pairs):
        assert np.array_equal(source.label(index), np.where(numbers == 11, VOID, numbers))


def test_directory_without_labels(tmp_path):
    write_directory(tmp_path / "mine", {"train": scenes(2)}, labels=False)
    settings = DataSettings(
        str(tmp_path), "directory", dir_dataset_name="mine", dir_dataset_n_classes=3, crop_type=None, res=16
    )
    dataset = build_dataset(settings, "train", True)
    assert not dataset.has_labels
    assert set(dataset[0]) == {"id", "index", "img", "img_blur"}


def test_a_folder_of_photographs(tmp_path):
    for name in ("a/one.png", "b/two.jpg", "three.PNG", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if not name.endswith("txt"):
            scene(1)[0].save(tmp_path / name, format="PNG")
    dataset = image_folder(tmp_path, 32)
    assert dataset.ids == ["one", "two", "three"]
    assert set(dataset[1]) == {"id", "index", "img"}
    assert dataset[1]["img"].shape == (3, 32, 32)
    assert dataset.path(1) == tmp_path / "b" / "two.jpg"
    assert dataset.photograph(1).size == (64, 48)
    assert isinstance(dataset, EagleDataset)
    assert dataset.n_classes == 0
    for folder, expected in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "no image in")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=expected):
            image_folder(folder, 32)
    scene(1)[0].save(tmp_path / "a" / "two.png")
    with pytest.raises(InputError, match="same stem"):
        image_folder(tmp_path, 32)


# --- what does not fit ---


def test_labels_beyond_the_classes(tmp_path):
    write_directory(tmp_path / "mine", {"train": scenes(1, classes=5)})
    path = tmp_path / "mine" / "labels" / "train" / "scene0.png"
    expected = (
        f"{path} holds the label 3, 4, beyond those of {tmp_path}/mine (dir_dataset_n_classes=3: 0 to 2, and 255 for "
        "void; another number for void: dir_dataset_void)"
    )
    assert message(tmp_path, item=0) == expected
    assert "holds the label 4, beyond" in message(tmp_path, item=0, dir_dataset_void=3)
    write_cocostuff(tmp_path, {"train": [(scene(0)[0], np.full((48, 64), 190, np.uint8))]})
    assert "holds the label 190, beyond those of cocostuff27" in message(tmp_path, "cocostuff27", item=0)
    write_cityscapes(tmp_path, {"train": [(scene(0)[0], np.full((48, 64), 34, np.uint8))]})
    assert "holds the label 34, beyond those of cityscapes" in message(tmp_path, "cityscapes", item=0)
    write_potsdam(tmp_path, {"train": [(scene(0)[0], np.full((48, 64), 6, np.uint8))]})
    assert "holds the label 6, beyond those of potsdam" in message(tmp_path, "potsdam", item=0)


def test_what_is_missing_is_named_before_the_work(tmp_path):
    assert message(tmp_path / "none") == f"no such pytorch_data_dir: {tmp_path}/none"
    layout = "(set pytorch_data_dir to the folder of the data sets; data/README.md shows the layout)"
    assert message(tmp_path) == f"no such folder: {tmp_path}/mine/imgs/train {layout}"
    assert message(tmp_path, "cityscapes") == f"no such folder: {tmp_path}/cityscapes/leftImg8bit/train {layout}"
    path = tmp_path / "cocostuff" / "curated" / "train2017" / "Coco164kFull_Stuff_Coarse.txt"
    assert message(tmp_path, "cocostuff27") == f"no such list of images: {path} {layout}"
    assert message(tmp_path, "potsdam").startswith(f"no such list of images: {tmp_path}/potsdam/labelled_train.txt")
    write_cocostuff(tmp_path, {"train": scenes(2)})
    (tmp_path / "cocostuff" / "annotations" / "train2017" / "000000000001.png").unlink()
    assert message(tmp_path, "cocostuff27") == (
        f"1 of 2 files are missing in {tmp_path}/cocostuff/annotations/train2017, the first is 000000000001.png"
    )
    write_directory(tmp_path / "mine", {"train": scenes(2)})
    (tmp_path / "mine" / "labels" / "train" / "scene0.png").unlink()
    assert "the first is scene0.png" in message(tmp_path)


def test_empty_splits(tmp_path):
    (tmp_path / "mine" / "imgs" / "train").mkdir(parents=True)
    assert message(tmp_path) == f"no image in {tmp_path}/mine/imgs/train"
    (tmp_path / "cityscapes" / "leftImg8bit" / "train" / "bonn").mkdir(parents=True)
    (tmp_path / "cityscapes" / "gtFine" / "train" / "bonn").mkdir(parents=True)
    assert message(tmp_path, "cityscapes").endswith("holds no image for this split")
    write_list(tmp_path / "potsdam" / "labelled_train.txt", ["", " "])
    assert message(tmp_path, "potsdam") == f"the list {tmp_path}/potsdam/labelled_train.txt names no image"


def test_mat_files_that_do_not_fit(tmp_path):
    write_potsdam(tmp_path, {"train": scenes(1)})
    image, truth = (tmp_path / "potsdam" / name / "train0.mat" for name in ("imgs", "gt"))
    write_mat(truth, labels=np.zeros((2, 2)))
    assert message(tmp_path, "potsdam", item=0) == f"{truth} has no key 'gt' (it holds labels)"
    write_mat(truth, gt=np.full((48, 64), 0.5))
    assert message(tmp_path, "potsdam", item=0) == f"{truth}: 'gt' is no map (H, W) of whole numbers from 0 to 255"
    write_mat(truth, gt=np.zeros((3, 2)))
    assert message(tmp_path, "potsdam", item=0) == f"{image} has 64x48 pixels, but {truth} has 2x3"
    write_mat(image, img=np.zeros((8, 8), np.uint8))
    assert "'img' is uint8 of shape (8, 8), not uint8 of (H, W, 3 or more)" in message(tmp_path, "potsdam", item=0)
    image.write_bytes(b"no mat")
    assert message(tmp_path, "potsdam", item=0).startswith(f"{image} cannot be read as a MATLAB file: ")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dir_dataset_name": None}, "dataset_name=directory needs dir_dataset_name, its folder in pytorch_data_dir"),
        ({"dir_dataset_n_classes": None}, "dataset_name=directory needs dir_dataset_n_classes, the number of classes"),
        ({"dir_dataset_n_classes": 0}, "dir_dataset_n_classes=0: must be from 1 to 254"),
        ({"dir_dataset_class_names": ["a"]}, "dir_dataset_class_names has 1 names, but dir_dataset_n_classes is 3"),
        ({"dir_dataset_void": 2}, "dir_dataset_void=2: must lie from dir_dataset_n_classes=3 to 255"),
        ({"loader_crop_type": "five"}, "no loader_crop_type 'five'; known are center, random"),
        ({"crop_ratio": 1.5}, "crop_ratio=1.5: must be above 0 and at most 1"),
        ({"patch_size": 0}, "patch_size=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, expected):
    write_directory(tmp_path / "mine", {"train": scenes(1)})
    assert message(tmp_path, **settings) == expected


def test_unknown_names(tmp_path):
    assert message(tmp_path, "voc") == (
        "no dataset_name 'voc'; known are cocostuff27, cocostuff3, cityscapes, potsdam, potsdamraw, directory"
    )
    assert message(tmp_path, "cityscapes", "training") == "cityscapes has no split 'training'; it has train, val, test"
