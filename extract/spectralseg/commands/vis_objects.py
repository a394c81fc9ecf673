"""``vis_objects``: look at the objects of ``extract_objects``. One page: outlines, numbers, scores, cut-outs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from spectralseg.drawing.page import Card, write_page
from spectralseg.drawing.pictures import draw_outlines
from spectralseg.errors import InputError
from spectralseg.files.images import find_image, load_image
from spectralseg.files.records import OBJECTS_FILE, check
from spectralseg.files.storage import load_json, make_folder
from spectralseg.progress import progress_bar
from spectralseg.settings import check_range

THUMBNAIL_HEIGHT = 180
MAX_CARDS = 1000


def vis_objects(objects_file: str, images_root: str, output_dir: str, limit: int = MAX_CARDS) -> None:
    """The command ``vis_objects``; see its documentation in ``extract.py``. Prints the path of the page."""
    check_range("limit", limit, least=1)
    content = load_json(Path(objects_file))
    if content is None:
        raise InputError(f"no such objects_file: {objects_file}")
    content = check(content, OBJECTS_FILE, objects_file, "name the objects.json of extract_objects")
    if not Path(images_root).is_dir():
        raise InputError(f"no such images_root: {images_root}")
    own: dict[int, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        own.setdefault(entry["image_id"], []).append(entry)
    images = content["images"][:limit]
    path = make_folder(output_dir) / "index.html"
    description = "Each image, its objects outlined and numbered, and each object cut out, with its score."
    if len(images) < len(content["images"]):
        description += f" Here are the first {limit} of {len(content['images'])} images."
    cards = (_card(image, own.get(image["id"], []), Path(images_root)) for image in _bar(images))
    write_page(path, "Objects", cards, description, THUMBNAIL_HEIGHT, count=len(images))
    print(path)


def _bar(images: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from progress_bar(images, desc="index.html", unit="image")


def _card(image: dict[str, Any], entries: list[dict[str, Any]], images_root: Path) -> Card:
    photograph = load_image(find_image(images_root, image["file_name"]))
    entries = sorted(entries, key=lambda entry: -entry["score"])
    if any(entry["segmentation"]["size"] != [photograph.height, photograph.width] for entry in entries):
        raise InputError(f"{image['file_name']} in {images_root} has another size than the masks of its objects")
    panels = [("image", photograph), *object_panels(photograph, entries, image["file_name"])]
    notes = {"size": f"{photograph.width} × {photograph.height}", "objects": len(entries) or "none"}
    scores = {"score": entries[0]["score"] if entries else 0.0, "objects": len(entries)}
    return Card(Path(image["file_name"]).stem, panels, notes, scores=scores)


def object_panels(photograph: Image.Image, entries: list[dict[str, Any]], name: str) -> list[tuple[str, Image.Image]]:
    """Captions and pictures of objects, COCO's entries: outlined and numbered in their order, and each cut out."""
    masks = [object_mask(entry, name) for entry in entries]
    panels = [("objects" if entries else "objects: none", draw_outlines(photograph, masks))]
    for number, (entry, mask) in enumerate(zip(entries, masks, strict=True), 1):
        cutout = photograph.copy()
        cutout.putalpha(Image.fromarray(mask * np.uint8(255)))
        panels.append((f"{number}: score {entry['score']:.2f}", cutout.crop(cutout.getbbox())))
    return panels


def object_mask(entry: dict[str, Any], name: str) -> np.ndarray:
    """Mask (H, W) bool of one of COCO's entries; the error of a damaged one names the image."""
    try:
        return rle.decode(entry["segmentation"]).astype(bool)
    except ValueError:
        raise InputError(f"the masks of {name} are damaged: run extract_objects again") from None
