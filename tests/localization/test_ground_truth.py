"""Annotations: VOC's XML, COCO20k, tables and COCO files of one's own; what is wrong with them is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from localization_data import link_coco20k, voc_annotation, voc_object, write_table
from objectloc.coco import REDUCED, coco20k_names, read_coco_boxes
from objectloc.ground_truth import check_boxes, open_data_set, upright_size, voc_boxes
from objectloc.options import DataOptions
from objectloc.tables import read_table
from running import write_pictures
from shared_data import shared
from spectralseg.errors import InputError

# --- VOC ---


def test_voc_boxes_count_from_zero(tmp_path):
    part = "<bndbox><xmin>7</xmin><ymin>7</ymin><xmax>8</xmax><ymax>8</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(voc_annotation(voc_object(part=part), voc_object("45.7", 3, 50.25, 9)))
    assert voc_boxes(tmp_path / "a.xml").tolist() == [[0, 0, 80, 64], [44.7, 2, 50.25, 9]]


def test_no_hard_drops_truncated_and_difficult_objects(tmp_path):
    marks = ({"truncated": 1}, {"difficult": 1}, {"truncated": 0, "difficult": 0}, {})
    objects = [voc_object(number, **mark) for number, mark in enumerate(marks, 1)]
    (tmp_path / "a.xml").write_text(voc_annotation(*objects))
    assert len(voc_boxes(tmp_path / "a.xml")) == 4
    assert voc_boxes(tmp_path / "a.xml", no_hard=True)[:, 0].tolist() == [2, 3]


def test_all_of_voc2007():
    data = open_data_set(DataOptions("VOC07", "test", str(shared() / "data")))
    assert data.name == "VOC07_test"
    assert len(data.files) == 300
    hard = easy = 0
    for image_id in data.files:
        boxes = data.find_boxes(image_id)
        check_boxes(boxes, upright_size(data.path(image_id)), image_id)
        hard += len(boxes)
        easy += len(voc_boxes(Path(data.annotation.replace("{id}", image_id)), no_hard=True))
    assert 0 < easy < hard


def test_a_data_root_without_voc(tmp_path):
    with pytest.raises(InputError, match="VOC12's list of images .*--data_root.*ImageSets/Main/val.txt"):
        open_data_set(DataOptions("VOC12", "val", str(tmp_path)))


# --- boxes and images ---


def test_a_box_lies_in_its_image_and_is_not_empty():
    outside = r"the box \(.*\) of a.xml lies outside of the image, which has 80x64 pixels"
    for message, boxes in {
        outside: [(-3, 0, 10, 10), (0, 0, 82, 10), (0, 0, 10, 66), (100, 100, 120, 120)],
        "of a.xml is empty": [(5, 5, 5, 10), (5, 9, 10, 5), (0, 0, np.nan, 4)],
    }.items():
        for box in boxes:
            with pytest.raises(InputError, match=message):
                check_boxes(np.array([(0, 0, 80, 64), box], dtype=float), (64, 80), "a.xml")
    check_boxes(np.array([(-1, -1, 81, 65)], dtype=float), (64, 80), "a.xml")  # up to rounding


def test_size_of_a_photograph_that_was_taken_upright(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.jpg")
    assert upright_size(tmp_path / "turned.jpg") == (40, 20)
    assert upright_size(tmp_path / "plain.jpg") == (20, 40)


# --- COCO ---


def coco(images: dict[int, str], boxes: list[tuple[int, list[float], int]]) -> dict:
    return {
        "images": [{"id": number, "file_name": name} for number, name in images.items()],
        "annotations": [
            {"id": index, "image_id": number, "bbox": box, "iscrowd": crowd, "category_id": 1, "segmentation": [[1, 2]]}
            for index, (number, box, crowd) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }


def test_coco_boxes_are_rounded_and_without_crowds(tmp_path):
    path = tmp_path / "boxes.json"
    boxes = [(1, [10.4, 20.6, 5.2, 5.1], 0), (1, [0, 0, 1, 1], 1), (3, [0, 0, 9, 9], 0), (2, [1, 2, 3], 0)]
    path.write_text(json.dumps(coco({1: "a.jpg", 2: "b.jpg", 4: "c.jpg"}, boxes)))
    annotated = read_coco_boxes(path)
    assert annotated["a.jpg"] == [(10, 21, 16, 26)]  # 10.4 + 5.2 = 15.6, 20.6 + 5.1 = 25.7
    assert annotated["b.jpg"] == f"{path}: annotation 3 of b.jpg has no bbox of four numbers"
    assert annotated["c.jpg"] == []


@pytest.fixture
def coco20k(tmp_path: Path) -> Path:
    return link_coco20k(tmp_path / "data")


def open_coco20k(root: Path):
    return open_data_set(DataOptions("COCO20k", "trainval", str(root)))


def test_coco20k_of_real_photographs(coco20k):
    data = open_coco20k(coco20k)
    whole = json.loads((coco20k / "COCO/annotations/instances_train2014.json").read_text())
    reduced = json.loads((coco20k / "COCO" / REDUCED).read_text())
    assert data.name == "COCO20k_train"
    assert len(data.files) == 60
    assert [image for image in whole["images"] if Path(image["file_name"]).stem in data.files] == reduced["images"]
    kept = {image["id"] for image in reduced["images"]}
    assert {a["id"] for a in reduced["annotations"]} == {a["id"] for a in whole["annotations"] if a["image_id"] in kept}
    for image in reduced["images"]:
        own = [a for a in whole["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        corners = [(a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]) for a in own]
        boxes = data.find_boxes(Path(image["file_name"]).stem)
        np.testing.assert_array_equal(boxes, np.array([[round(c) for c in box] for box in corners]).reshape(-1, 4))
        assert upright_size(data.path(Path(image["file_name"]).stem)) == (image["height"], image["width"])
        check_boxes(boxes, (image["height"], image["width"]), image["file_name"])


def test_coco20k_is_reduced_once_and_anew_for_another_list(coco20k, capsys):
    first = open_coco20k(coco20k)
    assert "reducing" in capsys.readouterr().err
    reduced = coco20k / "COCO" / REDUCED
    before = reduced.stat().st_mtime_ns
    again = open_coco20k(coco20k)
    assert "reducing" not in capsys.readouterr().err
    assert reduced.stat().st_mtime_ns == before
    assert again.files == first.files
    list_file = coco20k / "COCO" / "coco_20k_filenames.txt"
    list_file.write_text("\n".join(list_file.read_text().splitlines()[:7]))
    assert len(open_coco20k(coco20k).files) == 7
    assert len(json.loads(reduced.read_text())["images"]) == 7
    (coco20k / "COCO/annotations/instances_train2014.json").unlink()  # the reduced file is enough
    assert len(open_coco20k(coco20k).files) == 7
    assert not list(reduced.parent.glob(".*"))


def test_what_coco20k_needs_is_named(coco20k):
    (coco20k / "COCO/annotations/instances_train2014.json").unlink()
    with pytest.raises(InputError, match="no such annotations: .*instances_train2014.json .*cocodataset.org"):
        open_coco20k(coco20k)
    (coco20k / "COCO/coco_20k_filenames.txt").unlink()
    with pytest.raises(InputError, match="coco_20k_filenames.txt of github.com/valeoai/LOST"):
        open_coco20k(coco20k)


def test_coco20k_in_a_folder_that_cannot_be_written(coco20k, capsys):
    (coco20k / "COCO" / REDUCED).mkdir()  # root may write into any folder, but nobody replaces one by a file
    assert len(open_coco20k(coco20k).files) == 60
    assert "the whole file is read every time" in capsys.readouterr().err


def test_lines_of_the_list():
    lines = ["COCO_train2014_000000000025.jpg", "images/COCO_train2014_000000000030", "36.jpg"]
    names = [f"COCO_train2014_{number:012d}.jpg" for number in (25, 30, 36)]
    assert coco20k_names(lines, Path("list.txt")) == names
    with pytest.raises(InputError, match="list.txt: 'cat.jpg' does not end in the number"):
        coco20k_names(["cat.jpg"], Path("list.txt"))


# --- tables, and folders of one's own ---


def test_a_table(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(
        "\ufefffile,label,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3.5,4\na.jpg,dog,5,6,7,8\nb.jpg,,,,,\n\nc.jpg,x,1,2,3,\n"
    )
    annotated = read_table(path)
    assert annotated["a.jpg"] == [(1, 2, 3.5, 4), (5, 6, 7, 8)]
    assert annotated["b.jpg"] == []
    assert annotated["c.jpg"] == f"{path}, line 6: a box needs four numbers, not '1,2,3,'"


BAD = {  # format: (reader, [(content, complaint)])
    "xml": (
        voc_boxes,
        [
            (None, "no such annotation"),
            ("<annotation><object>", "cannot be read as XML"),
            ("", "cannot be read as XML"),
            (f"<annotation>{voc_object(xmax=None)}</annotation>", "object 1 has no number in bndbox/xmax"),
            (f"<annotation>{voc_object(ymin='x')}</annotation>", "object 1 has no number in bndbox/ymin"),
            ("<annotation><object><name>cat</name></object></annotation>", "object 1 has no number in bndbox/xmin"),
        ],
    ),
    "json": (
        read_coco_boxes,
        [
            (None, "no such annotations"),
            ("{", "cannot be read as JSON"),
            ("[]", "no list of 'images'"),
            ('{"images": []}', "no list of 'annotations'"),
            ('{"images": [{"id": 1}], "annotations": []}', "no id or no file_name"),
        ],
    ),
    "csv": (
        read_table,
        [
            (None, "no such annotations"),
            ("", "has no column file, xmin, ymin, xmax, ymax"),
            ("file,xmin,ymin,xmax\n", "has no column ymax"),
            ("file,xmin,ymin,xmax,ymax\n,1,2,3,4\n", "line 2: no file is named"),
            ("\xff\xfe\x00", "cannot be read as CSV"),
        ],
    ),
}


@pytest.mark.parametrize(
    ("suffix", "content", "message"), [(suffix, *case) for suffix, (_, cases) in BAD.items() for case in cases]
)
def test_bad_files_are_named(tmp_path, suffix, content, message):
    path = tmp_path / f"boxes.{suffix}"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message) as error:
        BAD[suffix][0](path)
    assert str(path) in str(error.value)


def own(images: Path, annotations: Path | None):
    return open_data_set(
        DataOptions("folder", images_root=str(images), annotations=None if annotations is None else str(annotations))
    )


def test_a_folder_with_a_table(tmp_path):
    images = write_pictures(tmp_path / "cats", 3)
    (images / "notes.txt").write_text("no image")
    box = [(1, 2, 3, 4)]
    table = write_table(tmp_path / "boxes.csv", {"image0.png": box, "image1": [(5, 6, 7, 8)], "absent.png": box})
    data = own(images, table)
    assert data.name == "folder_cats"
    assert data.files == {f"image{i}": f"image{i}.png" for i in range(3)} | {"absent": "absent.png"}
    assert data.find_boxes("image0").tolist() == [[1, 2, 3, 4]]
    assert data.find_boxes("image1").tolist() == [[5, 6, 7, 8]]  # named by its id
    assert data.find_boxes("image2").shape == (0, 4)


def test_a_folder_with_a_coco_file(tmp_path):
    images = write_pictures(tmp_path / "cats", 2)
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(coco({7: "image0.png", 8: "image1.png"}, [(7, [1, 2, 3, 4], 0), (8, [1], 0)])))
    data = own(images, path)
    assert data.find_boxes("image0").tolist() == [[1, 2, 4, 6]]
    with pytest.raises(InputError, match="annotation 1 of image1.png has no bbox"):
        data.find_boxes("image1")


def test_a_folder_without_annotations(tmp_path):
    assert own(write_pictures(tmp_path / "cats", 2), None).find_boxes is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in .*empty"):
        own(tmp_path / "empty", None)
    with pytest.raises(InputError, match="no such folder: .*nowhere"):
        own(tmp_path / "nowhere", None)
    with pytest.raises(InputError, match="needs --images_root"):
        open_data_set(DataOptions("folder"))
