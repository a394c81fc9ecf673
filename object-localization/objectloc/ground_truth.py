"""Which images, and which boxes stand in them: Pascal VOC, COCO20k, and one's own data.

Boxes are (xmin, ymin, xmax, ymax) in pixels from the image's top left corner, maxima exclusive, as (N, 4) float64.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objectloc.coco import boxes_by_image, coco20k_names, load_coco20k, read_coco_boxes
from objectloc.options import DataOptions
from objectloc.tables import SIDES, read_table
from spectralseg.errors import InputError
from spectralseg.files.images import by_id, find_image, first_words, list_images, open_picture
from spectralseg.files.names import check_entry

VOC_FOLDERS = {"VOC07": ("VOC2007", "VOCdevkit", "VOC2007"), "VOC12": ("VOC2012", "VOCdevkit", "VOC2012")}
OUTSIDE = 1.0  # pixels that a box may reach beyond its image: rounding, and counting from 1 or from 0
EXIF_ORIENTATION, EXIF_TURNED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class DataSet:
    """Images and, where there are any, their annotated boxes.

    Attributes
    ----------
    name
        Of the folder of results.
    root, files
        Folder of the images; id -> name below it.
    find_boxes
        id -> boxes (N, 4), N may be 0; raises an InputError that names the file to mend. None: nothing is annotated.
    annotation
        The file that a box of an image comes from, ``{id}`` standing for its id.
    coco
        The annotations' file where it is COCO's, which may hold outlines.
    """

    name: str
    root: Path
    files: dict[str, str]
    find_boxes: Callable[[str], np.ndarray] | None
    annotation: str = ""
    coco: Path | None = None

    def path(self, image_id: str) -> Path:
        """Where an image lies."""
        return self.root / self.files[image_id]


def open_data_set(options: DataOptions) -> DataSet:
    """Find the images of a data set; annotations are read image by image, on request.

    Raises
    ------
    InputError
        A folder, list or annotation file that is absent or damaged.
    """
    if options.image_path is not None:
        return _single_image(Path(options.image_path))
    if options.dataset == "folder":
        return _own_folder(options)
    if options.dataset == "COCO20k":
        return _coco20k(Path(options.data_root) / "COCO")
    return _voc(options)


def _voc(options: DataOptions) -> DataSet:
    root = Path(options.data_root).joinpath(*VOC_FOLDERS[options.dataset])
    path = root / "ImageSets" / "Main" / f"{options.set}.txt"
    what = f"{options.dataset}'s list of images (--data_root is the folder that holds VOC2007, VOC2012):"
    ids = first_words(path, what)

    def find_boxes(image_id: str) -> np.ndarray:
        return voc_boxes(root / "Annotations" / f"{image_id}.xml", options.no_hard)

    files = {image_id: f"{image_id}.jpg" for image_id in ids}
    return DataSet(
        f"{options.dataset}_{options.set}",
        root / "JPEGImages",
        files,
        find_boxes,
        str(root / "Annotations" / "{id}.xml"),
    )


def voc_boxes(path: Path, no_hard: bool = False) -> np.ndarray:
    """Boxes of a VOC annotation.

    VOC counts pixels from 1 and includes the last one; as coordinates of a plane this is (xmin - 1, ymin - 1, xmax,
    ymax). ``no_hard`` drops objects marked as truncated or difficult (an absent mark means no, as in VOC's own
    development kit). Boxes of an object's parts are not its box.

    Raises
    ------
    InputError
        The file is absent, no XML, or an object lacks a coordinate.
    """
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except FileNotFoundError:
        raise InputError(f"no such annotation: {path}") from None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as XML: {error}") from None
    boxes = []
    for number, element in enumerate(objects, 1):
        if no_hard and "1" in (element.findtext(mark, "0").strip() for mark in ("truncated", "difficult")):
            continue
        corners = [element.findtext(f"bndbox/{side}") for side in SIDES]
        try:
            xmin, ymin, xmax, ymax = (float(corner or "") for corner in corners)
        except ValueError:  # also where the field is missing
            bad = next(side for side, corner in zip(SIDES, corners, strict=True) if not _is_number(corner))
            raise InputError(f"{path}: object {number} has no number in bndbox/{bad}") from None
        boxes.append((xmin - 1, ymin - 1, xmax, ymax))
    return as_boxes(boxes)


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True


def as_boxes(boxes: Sequence[tuple[float, ...]] | str) -> np.ndarray:
    """A list of boxes, which may be empty, as (N, 4) float64; a text says what is wrong with them, and is raised."""
    if isinstance(boxes, str):
        raise InputError(boxes)
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _coco20k(root: Path) -> DataSet:
    """The images of LOST's list; the annotations are reduced to them once, and the result is kept."""
    list_file = root / "coco_20k_filenames.txt"
    what = "COCO20k's list of images, datasets/coco_20k_filenames.txt of github.com/valeoai/LOST:"
    names = coco20k_names(first_words(list_file, what), list_file)
    content, source = load_coco20k(root, names)
    annotated = boxes_by_image(content, source)
    files = by_id(sorted(set(names)))

    def find_boxes(image_id: str) -> np.ndarray:
        if files[image_id] not in annotated:
            raise InputError(f"{source} has no image {files[image_id]}, which {list_file} names")
        return as_boxes(annotated[files[image_id]])

    return DataSet("COCO20k_train", root / "images" / "train2014", files, find_boxes, f"{source}, image {{id}}", source)


def _single_image(path: Path) -> DataSet:
    if not path.is_file():
        raise InputError(f"no such image: {path}")
    return DataSet(f"image_{path.stem}", path.parent, {path.stem: path.name}, None)


def _own_folder(options: DataOptions) -> DataSet:
    if options.images_root is None:
        raise InputError("--dataset folder needs --images_root (and --annotations, a CSV or COCO JSON, to evaluate)")
    root = Path(options.images_root)
    present = list_images(root)
    name = f"folder_{root.resolve().name}"
    if options.annotations is None:
        if not present:
            raise InputError(f"no image in {root}")
        return DataSet(name, root, by_id(present), None)
    source = Path(options.annotations)
    read = read_coco_boxes if source.suffix.lower() == ".json" else read_table
    annotated = {check_entry(name, source): boxes for name, boxes in read(source).items()}
    annotated = _with_extensions(annotated, root, present)
    files = by_id(sorted({*present, *annotated}))

    def find_boxes(image_id: str) -> np.ndarray:
        return as_boxes(annotated.get(files[image_id], []))

    coco = source if source.suffix.lower() == ".json" else None
    return DataSet(name, root, files, find_boxes, f"{source}, image {{id}}", coco)


def _with_extensions(annotated: dict, root: Path, present: list[str]) -> dict:
    """Annotations under their images' names; a table may give ids (names without extension) instead."""
    known = set(present)
    return {
        name if name in known or Path(name).suffix else find_image(root, name).relative_to(root).as_posix(): boxes
        for name, boxes in annotated.items()
    }


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as :func:`spectralseg.files.images.load_image` turns it, read from its header alone.

    Raises
    ------
    InputError
        The file is absent or no image.
    """
    with open_picture(path) as file:
        width, height = file.size
        turned = file.getexif().get(EXIF_ORIENTATION) in EXIF_TURNED
    return (width, height) if turned else (height, width)


def check_boxes(boxes: np.ndarray, size: tuple[int, int], where: str) -> None:
    """Raise an InputError for a box (N, 4) that is empty or lies partly outside of an image of (height, width)."""
    height, width = size
    for box in boxes:
        xmin, ymin, xmax, ymax = box
        text = f"the box ({', '.join(f'{side:g}' for side in box)}) of {where}"
        if not (math.isfinite(box.sum()) and xmin < xmax and ymin < ymax):
            raise InputError(f"{text} is empty")
        if min(xmin, ymin) < -OUTSIDE or xmax > width + OUTSIDE or ymax > height + OUTSIDE:
            raise InputError(f"{text} lies outside of the image, which has {width}x{height} pixels")
