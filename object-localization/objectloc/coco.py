"""Boxes of COCO annotation files, and the part of train2014's that LOST's COCO20k needs."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from spectralseg.errors import InputError, OutputError
from spectralseg.files.storage import atomic_write
from spectralseg.progress import say

Annotated = dict[str, list[tuple[float, ...]] | str]  # image's name -> its boxes, or what is wrong with them

INSTANCES = Path("annotations") / "instances_train2014.json"
REDUCED = Path("annotations") / "instances_coco20k.json"
KEPT_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


def read_coco_boxes(path: Path) -> Annotated:
    """Boxes by image of a COCO instances file; see :func:`boxes_by_image`."""
    return boxes_by_image(load_coco(path), path)


def boxes_by_image(content: dict[str, Any], path: Path) -> Annotated:
    """Boxes by image of a COCO file's content: corners rounded to whole pixels, crowds left out.

    COCO's (x, y, width, height) becomes (x, y, x + width, y + height). An image without an object has an empty list.
    ``path`` is for messages.
    """
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        if not all(isinstance(name, str) for name in names.values()):
            raise TypeError
    except (KeyError, TypeError):
        raise InputError(f"{path}: an entry of 'images' has no id or no file_name") from None
    annotated: Annotated = {name: [] for name in names.values()}
    for annotation in content["annotations"]:
        key = annotation.get("image_id")
        name = names.get(key, "") if isinstance(key, int | str) else ""
        boxes = annotated.get(name, "no such image")
        if isinstance(boxes, str) or annotation.get("iscrowd"):
            continue
        try:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            corners = tuple(round(value) for value in (x, y, x + width, y + height))
        except (KeyError, TypeError, ValueError, OverflowError):
            annotated[name] = f"{path}: annotation {annotation.get('id')} of {name} has no bbox of four numbers"
        else:
            boxes.append(corners)
    return annotated


def load_coco(path: Path, outlines: bool = False, names: set[str] | None = None) -> dict[str, Any]:
    """A COCO instances file, without its outlines, which are nearly all of its size, unless they are asked for.

    With ``names`` the outlines are kept of the images of these file names alone, which COCO's files list first.

    Raises
    ------
    InputError
        The file is absent, no JSON, or has no images and annotations.
    """

    kept: set[Any] = set()

    def without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
        name, own, image = (entry.get(key) for key in ("file_name", "id", "image_id"))
        if names is not None and isinstance(name, str) and name in names and isinstance(own, int | str):
            kept.add(own)
        if not isinstance(image, int | str) or image not in kept:
            entry.pop("segmentation", None)
        return entry

    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=None if outlines else without_outlines)
    except FileNotFoundError:
        raise InputError(f"no such annotations: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    for part in ("images", "annotations"):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{path} is no COCO instances file: it has no list of '{part}'")
    return content


def coco20k_names(lines: list[str], source: Path) -> list[str]:
    """Names of train2014 images as LOST's list has them, whatever stands before the image's number in a line."""
    names = []
    for line in lines:
        match = re.search(r"(\d+)(\.\w+)?$", line)
        if match is None:
            raise InputError(f"{source}: '{line}' does not end in the number of an image")
        names.append(f"COCO_train2014_{int(match[1]):012d}.jpg")
    return names


def load_coco20k(root: Path, names: list[str]) -> tuple[dict[str, Any], Path]:
    """Train2014's annotations reduced to ``names``, and the file that they come from.

    The reduced file is written once (in seconds), and again for another list. It is a COCO file itself: images under
    ``images``, annotations under ``annotations``. Where it cannot be written, the whole file is read every time.

    Raises
    ------
    InputError
        Neither the reduced nor the whole file is there.
    """
    reduced, whole = root / REDUCED, root / INSTANCES
    made_from: dict[str, str | int] = {"list": hashlib.sha256("\n".join(names).encode()).hexdigest(), "outlines": 1}
    if whole.is_file():
        made_from["bytes"] = whole.stat().st_size
    if reduced.is_file():
        content = load_coco(reduced)
        before = content.get("made_from", {})
        if isinstance(before, dict) and all(before.get(name) == value for name, value in made_from.items()):
            return content, reduced
    if not whole.is_file():
        raise InputError(f"no such annotations: {whole} (COCO's 2014 train/val annotations, cocodataset.org/#download)")
    say(f"localize: reducing {whole} to COCO20k's images, once")
    content = reduce_coco(load_coco(whole, names=set(names)), set(names)) | {"made_from": made_from}
    try:
        with atomic_write(reduced) as file:
            file.write(json.dumps(content).encode())
    except OutputError as error:
        say(f"localize: {error}; the whole file is read every time")
        return content, whole
    return content, reduced


def reduce_coco(content: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The part of a COCO file that is about the images of these names."""
    images = [image for image in content["images"] if image.get("file_name") in names]
    kept = {image.get("id") for image in images}
    annotations = [
        {name: annotation[name] for name in KEPT_FIELDS if name in annotation}
        for annotation in content["annotations"]
        if annotation.get("image_id") in kept
    ]
    return {"images": images, "annotations": annotations, "categories": content.get("categories", [])}
