"""Which names images may have: results are named after them, and nothing is written or read elsewhere."""

import os
import unicodedata
from pathlib import PurePath

from spectralseg.errors import InputError

LONGEST = 235  # bytes of an id: what follows it in the names of results has up to 20, and a file name 255
REFUSED = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are no UTF-8, breaks of lines and paragraphs


def check_id(image_id: object) -> str:
    """The id of an image, to which suffixes are added for the names of its results; an error if it is no plain name.

    Raises
    ------
    InputError
        It is no text, empty, hidden (as temporary files are), too long, or holds a slash, a control character, a break
        of lines, or bytes that are no UTF-8.
    """
    if not isinstance(image_id, str) or not image_id or "/" in image_id or os.sep in image_id:
        raise InputError(f"{image_id!r} is no plain name, as results need one: without folders, and not empty")
    if image_id.startswith("."):
        raise InputError(f"the name {image_id!r} begins with a dot, as those of hidden files do; rename it")
    if any(unicodedata.category(character) in REFUSED for character in image_id):
        raise InputError("its name has a control character, a break of lines, or bytes that are no UTF-8; rename it")
    if (length := len(image_id.encode())) > LONGEST:
        raise InputError(f"its name has {length} bytes, and results need names of at most {LONGEST}; rename it")
    return image_id


def check_entry(name: str, where: object) -> str:
    """A name in a list or table of images: a path that stays below its root, sub-folders included.

    Raises
    ------
    InputError
        It is absolute, leads upwards (``..``), or has a null character; ``where`` names the list.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise InputError(f"{where} names '{name}': it must be a path below the folder of the images, without '..'")
    return name
