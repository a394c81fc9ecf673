"""Annotations and data sets that the tests of localization share."""

import json
from pathlib import Path

from shared_data import shared


def voc_object(xmin: object = 1, ymin: object = 1, xmax: object = 80, ymax: object = 64, **more: object) -> str:
    """An object of VOC's XML; a side of None is left out, ``truncated=1`` and the like are put in."""
    sides = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    texts = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items() if value is not None)
    elements = {"name": "cat", **more, "bndbox": texts}
    return f"<object>{''.join(f'<{name}>{value}</{name}>' for name, value in elements.items())}</object>"


def voc_annotation(*objects: str) -> str:
    return f"<annotation><size><width>80</width></size>{''.join(objects)}</annotation>"


def folder_flags(images: Path, annotations: Path | None = None) -> list[object]:
    flags: list[object] = ["--dataset", "folder", "--images_root", images]
    return flags if annotations is None else [*flags, "--annotations", annotations]


def write_table(path: Path, rows: dict[str, list[tuple[float, ...]]]) -> Path:
    lines = [f"{file},{','.join(map(str, box))}" for file, boxes in rows.items() for box in boxes]
    path.write_text("\n".join(["file,xmin,ymin,xmax,ymax", *lines, ""]))
    return path


def link_coco20k(folder: Path) -> Path:
    """64 real photographs as if they were of train2014, in a folder ``COCO``; the list names 60 of them."""
    source, root = shared() / "data" / "COCO", folder / "COCO"
    (root / "images" / "train2014").mkdir(parents=True)
    (root / "annotations").mkdir()
    content = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    for image in content["images"]:
        name = f"COCO_train2014_{image['id']:012d}.jpg"
        (root / "images" / "train2014" / name).symlink_to(source / "images" / "train2017" / image["file_name"])
        image["file_name"] = name
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    names = sorted(image["file_name"] for image in content["images"])
    (root / "coco_20k_filenames.txt").write_text("".join(f"train2014/{name}\n" for name in names[:60]))
    return folder
