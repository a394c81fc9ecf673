"""crop_datasets.py: five crops of each image, whole or not at all, and what reads them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional

from eagle_layouts import camvid, cityscapes, scene, scenes, write_cityscapes, write_directory
from eagleseg.commands.crop import _opened, main
from eagleseg.data.crops import crop_boxes, generator_for
from eagleseg.data.dataset import EagleDataset, build_dataset
from eagleseg.data.folders import LAYOUT
from eagleseg.data.settings import DataSettings
from eagleseg.model.features import Featurizer
from running import contents, error_line
from spectralseg.commands.features import FeatureSettings, extract_features
from spectralseg.errors import InputError
from spectralseg.files.label_maps import load_labels
from spectralseg.models.backbones import load_backbone

NAME = "mine_five_crop_0.5"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_directory(tmp_path / "mine", {"train": scenes(3, width=81, height=57), "val": scenes(1, 5)})
    return tmp_path


@pytest.fixture
def crop(data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Crop the directory in this process; the folder of the crops."""
    monkeypatch.chdir(data)
    _opened.cache_clear()

    def call(*arguments: str) -> Path:
        mine = ["dataset_name=directory", "dir_dataset_name=mine", "dir_dataset_n_classes=3"]
        main([f"pytorch_data_dir={data}", *mine, *arguments])
        return data / "cropped" / NAME

    return call


@pytest.fixture
def refused(crop: Callable) -> Callable[..., str]:
    return lambda *arguments: error_line(crop, *arguments).removeprefix("error: ")


def open_crops(root: Path, split: str = "train", **settings: object) -> EagleDataset:
    mine = {"dir_dataset_name": "mine", "dir_dataset_n_classes": 3, "res": 24}
    return build_dataset(DataSettings(str(root), "directory", **{**mine, **settings}), split, True)


# --- places ---


@given(st.integers(2, 60), st.integers(2, 60), st.sampled_from([0.5, 0.7, 0.9, 1.0]))
def test_five_crops_are_torchvisions(width, height, ratio):
    pixels = np.arange(width * height, dtype=np.int32).reshape(height, width)
    boxes = crop_boxes(width, height, ratio)
    theirs = functional.five_crop(torch.from_numpy(pixels)[None], [int(height * ratio), int(width * ratio)])
    for (left, top, right, bottom), their in zip(boxes, theirs, strict=True):
        assert np.array_equal(pixels[top:bottom, left:right], their[0])


@given(st.integers(0, 1000))
def test_random_crops_lie_inside_and_are_drawn_again(seed):
    boxes = crop_boxes(40, 30, 0.7, "random", generator_for(seed, 0, 0))
    assert boxes == crop_boxes(40, 30, 0.7, "random", generator_for(seed, 0, 0))
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        assert (right - left, bottom - top) == (28, 21)
    assert len(set(boxes)) > 1


# --- files ---


def test_files_and_numbers(crop, data):
    folder = crop("splits=[train,val]")
    assert sorted(path.name for path in (folder / "img" / "val").glob("*.jpg")) == [
        f"{number}.jpg" for number in range(5)
    ]
    assert (folder / "lists" / "train.txt").read_text().split() == [f"{number}.jpg" for number in range(15)]
    for index in range(3):
        image = Image.open(data / "mine" / "imgs" / "train" / f"scene{index}.jpg")
        label = load_labels(data / "mine" / "labels" / "train" / f"scene{index}.png")
        for number, box in enumerate(crop_boxes(81, 57, 0.5)):
            left, top, right, bottom = box
            stored = load_labels(folder / "label" / "train" / f"{5 * index + number}.png")
            assert np.array_equal(stored, label[top:bottom, left:right] + 1)
            picture = np.asarray(Image.open(folder / "img" / "train" / f"{5 * index + number}.jpg"), dtype=float)
            assert picture.shape == (28, 40, 3)
            assert np.abs(picture - np.asarray(image.crop(box), dtype=float)).mean() < 20  # JPEG of noise


def test_crops_are_read_in_the_order_of_their_numbers(crop, data):
    crop()
    dataset = open_crops(data)
    assert dataset.ids == [str(number) for number in range(15)]
    assert dataset[12]["id"] == "12"
    whole = build_dataset(
        DataSettings(str(data), "directory", dir_dataset_name="mine", dir_dataset_n_classes=3), "train", False
    )
    assert whole.ids == ["scene0", "scene1", "scene2"]  # validation sees whole images
    expected = whole.source.label(2)[0:28, 41:81]  # its top right
    assert np.array_equal(dataset.source.label(11), expected)
    assert dataset.class_names == whole.class_names


def test_void_and_cityscapes(tmp_path):
    image, ids = cityscapes()
    write_cityscapes(tmp_path, {"train": [(image, ids)]})
    main([f"pytorch_data_dir={tmp_path}", "dataset_name=cityscapes"])
    stored = load_labels(tmp_path / "cropped" / "cityscapes_five_crop_0.5" / "label" / "train" / "4.png")
    centre = ids[32:96, 64:192].astype(int)
    assert np.array_equal(stored, np.where(centre < 7, 0, centre - 6))
    item = build_dataset(DataSettings(str(tmp_path), "cityscapes", res=64), "train", True)[4]
    assert item["label"].min() == -1
    assert set(np.unique(item["label"])) <= set(np.unique(np.where(centre < 7, -1, centre - 7)))


def test_without_labels(crop, data):
    shutil.rmtree(data / "mine" / "labels")
    assert not (crop() / "label").exists()
    assert not open_crops(data).has_labels


def test_camvid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_directory(tmp_path / "mine", {"train": camvid("train", 3)})
    mine = ["--dataset_name", "directory", "dir_dataset_name=mine", "dir_dataset_n_classes=11", "dir_dataset_void=11"]
    main([f"pytorch_data_dir={tmp_path}", *mine])
    assert "3 written, 0 already there, 0 failed" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cropped", "mine"]
    dataset = open_crops(tmp_path, dir_dataset_n_classes=11)
    assert len(dataset) == 15
    assert dataset.photograph(0).size == (240, 180)


def test_resumed_and_in_several_processes_the_files_are_the_same(crop, data):
    folder = crop("crop_type=five")
    images, labels = contents(folder / "img" / "train"), contents(folder / "label" / "train")
    for name in ("7", "8", "9", "14"):  # as a run leaves it that was killed
        (folder / "img" / "train" / f"{name}.jpg").unlink()
    (folder / "label" / "train" / "14.png").unlink()
    with pytest.raises(InputError, match=r"lacks the crop 7\.jpg: run crop_datasets\.py again, it goes on there"):
        open_crops(data)
    crop("multiprocessing=2")
    assert contents(folder / "img" / "train") == images
    assert contents(folder / "label" / "train") == labels


def test_other_settings_are_refused_or_redone(crop, refused, data):
    folder = crop()
    before = contents(folder / "img" / "train", ".jpg")
    assert "with quality=75 instead of 90; choose another output folder, or redo" in refused("quality=90")
    assert contents(folder / "img" / "train", ".jpg") == before
    crop("quality=90", "--overwrite")
    after = contents(folder / "img" / "train", ".jpg")
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
    write_directory(data / "mine", {"train": scenes(2)})  # 3 images are there still
    (data / "mine" / "imgs" / "train" / "scene2.jpg").unlink()
    assert "with images=3 instead of 2" in refused("quality=90")
    crop("quality=90", "overwrite=true")
    assert len(open_crops(data)) == 10


def test_a_folder_of_others_is_left_alone(crop, refused, data):
    folder = data / "cropped" / NAME / "img" / "train"
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(b"mine")
    for arguments in ([], ["--overwrite"]):
        assert "files that no stage made; choose another output folder" in refused(*arguments)
    assert (folder / "0.jpg").read_bytes() == b"mine"


def test_images_that_cannot_be_cropped_are_named(refused, data, capsys):
    scene(0, 1, 9, classes=1)[0].save(data / "mine" / "imgs" / "train" / "scene1.jpg")
    Image.new("L", (1, 9)).save(data / "mine" / "labels" / "train" / "scene1.png")
    (data / "mine" / "imgs" / "train" / "scene2.jpg").write_bytes(b"no image")
    assert refused() == "2 of 3 images failed in crop_datasets: see the lines above"
    assert "an image of 1x9 pixels is too small for crops of ratio 0.5" in capsys.readouterr().err
    assert sorted(path.name for path in (data / "cropped" / NAME / "img" / "train").glob("*.jpg"))[-1] == "4.jpg"
    with pytest.raises(InputError, match=r"lacks the crop 5\.jpg"):
        open_crops(data)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("crop_type=seven", "no crop_type 'seven'; known are five, random"),
        ("crop_ratio=0", "crop_ratio=0.0: must be above 0 and at most 1"),
        ("splits=[]", "splits: there is no split to crop"),
        ("splits=[train,test]", "no such folder: {data}/mine/imgs/test " + LAYOUT),
        ("quality=100", "quality=100: must be from 1 to 95"),
        ("multiprocessing=-1", "multiprocessing=-1: must be at least 0"),
        ("dir_dataset_name=null", "dataset_name=directory needs dir_dataset_name, its folder in pytorch_data_dir"),
        ("crop_ration=1", "there is no setting 'crop_ration' (did you mean crop_ratio?)"),
    ],
)
def test_settings_that_cannot_be(refused, data, argument, expected):
    assert refused(argument) == expected.format(data=data)
    assert not (data / "cropped").exists()


# --- reading crops that are not all there ---


def test_crops_that_are_missing_or_do_not_fit(crop, data):
    """With the description of the crops, and, as of the published ones, without."""
    with pytest.raises(
        InputError, match=r"no such folder: .*; make the crops with crop_datasets\.py, or set crop_type=null"
    ):
        open_crops(data)
    folder = crop()
    (folder / "label" / "train" / "3.png").unlink()
    with pytest.raises(InputError, match=r"lacks 3\.png, and 0 more label maps of its crops"):
        open_crops(data)
    Image.fromarray(np.full((28, 40), 4, np.uint8)).save(folder / "label" / "train" / "3.png")
    with pytest.raises(InputError, match=r"3\.png holds the label 4, beyond those of"):
        _ = open_crops(data)[3]
    (folder / "img" / "train" / "stage.json").unlink()
    assert len(open_crops(data)) == 15
    (folder / "img" / "train" / "14.jpg").unlink()
    with pytest.raises(InputError, match=r"lacks the crop 14\.jpg"):
        open_crops(data)


# --- from the crops through the extract stage ---


def test_features_of_the_crops_are_what_the_backbone_gives(crop, data):
    """extract_features on the crops with the loader's view, and the backbone on the loader's images."""
    folder = crop()
    backbone = load_backbone("test_vit", "random")
    torch.save(backbone.model.state_dict(), data / "vit.pth")
    settings = FeatureSettings("test_vit", (-3, -2, -1), weights=str(data / "vit.pth"), resize=48, center_crop=48)
    images = (str(folder / "lists" / "train.txt"), str(folder / "img" / "train"))
    extract_features(*images, str(data / "features"), settings, batch_size=5, device="cpu")
    dataset = open_crops(data, res=48, patch_size=16, features_dir=str(data / "features"))
    featurizer = Featurizer(load_backbone("test_vit", str(data / "vit.pth")))
    for index in (0, 7, 14):
        item = dataset[index]
        expected = featurizer(item["img"][None])[0]
        assert torch.linalg.norm(item["features"] - expected) < 1e-5 * torch.linalg.norm(expected)
