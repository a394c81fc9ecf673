"""Image lists, decoding, and the views that backbones see."""

import contextlib
import io
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from spectralseg.errors import InputError, some_of
from spectralseg.files.names import check_entry
from spectralseg.progress import say

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow's names for them
if features.check("avif"):
    EXTENSIONS, FORMATS = EXTENSIONS | {".avif"}, (*FORMATS, "AVIF")
UNREAD = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf"} - EXTENSIONS

VIEW = ("resize", "center_crop", "max_size")  # what records tell of how an image was looked at

MAX_PIXELS_VARIABLE = "SPECTRALSEG_MAX_PIXELS"
MAX_PIXELS = 64_000_000
PILLOWS_MAX_PIXELS = 178_956_970  # it opens no larger ones


def read_images_list(images_list: str | Path, images_root: str | Path) -> dict[str, str]:
    """Read a list of image names, one per line, and check it before any work.

    Blank lines, white space around names (unless the file's name has it too), Windows line ends and a byte order mark
    are ignored; a name that stands twice counts once.

    Returns
    -------
    dict
        id (file stem) -> name in the list, in sorted order of the names.

    Raises
    ------
    InputError
        The list is absent or empty, an image is missing or not below the root, or two names share one stem (their files
        would collide).
    """
    path, root = Path(images_list), Path(images_root)
    lines = set(read_lines(path, "the images_list"))
    if not root.is_dir():
        raise InputError(f"no such images_root: {root}")
    meant = {line if line == line.strip() or os.path.isfile(root / line) else line.strip() for line in lines}
    names = sorted(check_entry(name, path) for name in meant)
    missing = [name for name in names if not os.path.isfile(root / name)]  # also for what cannot be a name
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} images of {path} are not in {root}: {some_of(missing)}")
    return by_id(names)


def read_lines(path: str | Path, what: str) -> list[str]:
    """Lines of a text file as they are; blank ones, Windows line ends and a byte order mark are left out.

    ``what`` names the file in messages: "the images_list". Bytes that are no UTF-8 come out as file names have them.

    Raises
    ------
    InputError
        The file is absent, no text, or has blank lines alone.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror or error}") from None
    if "\0" in text:
        raise InputError(f"cannot read {what} {path}: it is no text in UTF-8")
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # no other character ends a line: names may have it
    if not any(map(str.strip, lines)):
        raise InputError(f"{what} {path} names no image")
    return [line for line in lines if line.strip()]


def first_words(path: str | Path, what: str) -> list[str]:
    """What stands before white space in each line of a text file, such as the ids in VOC's lists.

    Errors as of :func:`read_lines`.
    """
    return [line.split()[0] for line in read_lines(path, what)]


def by_id(names: list[str]) -> dict[str, str]:
    """Map file stems to names, refusing two names with one stem."""
    files: dict[str, str] = {}
    for name in names:
        other = files.setdefault(Path(name).stem, name)
        if other != name:
            raise InputError(f"'{other}' and '{name}' have the same stem, so their results would overwrite each other")
    return files


def list_images(folder: str | Path, depth: int | None = None, suffixes: Collection[str] = EXTENSIONS) -> list[str]:
    """Names of the images in a folder and the folders below it, relative to it, sorted.

    Files and folders whose names begin with a dot are hidden: macOS puts a file ``._a.jpg`` beside ``a.jpg``.
    Photographs of formats that are not read (HEIC, raw ones) are left out, and named on stderr.

    Parameters
    ----------
    folder
        Where to look.
    depth
        Levels of folders below it to look into: 0 none, 1 one (class folders), None all.
    suffixes
        What images end in, in lower case.

    Raises
    ------
    InputError
        There is no such folder.
    """
    root = Path(folder)
    names: list[str] = []
    unread: list[str] = []
    if not root.is_dir():
        raise InputError(f"no such folder: {root}")
    for place, folders, files in os.walk(root, followlinks=depth is not None):
        below = Path(place).relative_to(root)
        is_last = depth is not None and len(below.parts) == depth
        folders[:] = [] if is_last else [name for name in folders if name[0] != "."]
        for kept, wanted in ((names, suffixes), (unread, UNREAD)):
            images = [name for name in files if name[0] != "." and Path(name).suffix.lower() in wanted]
            kept += [(below / name).as_posix() for name in images]
    if unread and suffixes is EXTENSIONS:
        which = f"{len(unread)} photographs of {root} are left out: {some_of(sorted(unread))}"
        say(f"{which}; their formats are not read: save them as JPEG or PNG")
    return sorted(names)


def find_images(
    folder: str | Path, depth: int | None = None, suffixes: Collection[str] = EXTENSIONS
) -> dict[str, Path]:
    """Id (file stem) -> path of the images that :func:`list_images` finds, sorted by id.

    Raises
    ------
    InputError
        There is no such folder or no image in it, or two images have one stem.
    """
    names = list_images(folder, depth, suffixes)
    if not names:
        raise InputError(f"no {'image' if suffixes is EXTENSIONS else ' or '.join(suffixes) + ' file'} in {folder}")
    try:
        return {image_id: Path(folder) / name for image_id, name in sorted(by_id(names).items())}
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def find_image(images_root: str | Path, name: str) -> Path:
    """Path of an image given by its name with extension, or by its id alone (any known extension).

    Raises
    ------
    InputError
        There is no such image, or several.
    """
    root = Path(images_root)
    if (root / name).is_file():
        return root / name
    asked = Path(name)
    image_id = asked.stem if asked.suffix.lower() in EXTENSIONS else asked.name
    candidates: list[Path] = []
    for folder in ((root / name).parent, root):  # a list may name images by sub-folders that images_root includes
        candidates = candidates or sorted(
            path
            for path in folder.glob(f"{_escape(image_id)}.*")
            if path.stem == image_id and path.suffix.lower() in EXTENSIONS
        )
    if not candidates:
        raise InputError(f"no image '{name}' in {root}")
    if len(candidates) > 1:
        raise InputError(f"several images for '{name}' in {root}: {some_of([c.name for c in candidates])}")
    return candidates[0]


def _escape(stem: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in stem)


def view_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`load_image` beside the path, as a record of a stage, or its settings, tell them."""
    return {name: record[name] for name in VIEW if record.get(name) is not None}


@contextlib.contextmanager
def open_picture(path: str | Path, what: str = "an image", content: bytes | None = None) -> Iterator[Image.Image]:
    """A picture whose header alone is read; errors of the block that decodes it are those of the file.

    ``what`` it should be stands in messages; ``content``: the file's bytes, which is then only called ``path``.

    Raises
    ------
    InputError
        The file is absent, of none of ``FORMATS``, damaged or truncated, or has more pixels than are decoded: 64
        million, or what the environment variable ``SPECTRALSEG_MAX_PIXELS`` says.
    """
    most = os.environ.get(MAX_PIXELS_VARIABLE, str(MAX_PIXELS))
    if not (most.isdecimal() and len(most) < 10 and 1 <= int(most) <= PILLOWS_MAX_PIXELS):
        raise InputError(f"{MAX_PIXELS_VARIABLE}={most!r}: give a whole number from 1 to {PILLOWS_MAX_PIXELS}")
    too_many = f"it has more than {most} pixels; make it smaller, or set {MAX_PIXELS_VARIABLE}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            source = path if content is None else io.BytesIO(content)
            file = Image.open(source, formats=FORMATS)  # others would start programs: PostScript starts Ghostscript
        with file:
            if file.width * file.height > int(most):
                raise Image.DecompressionBombError
            yield file
    except FileNotFoundError:
        raise InputError(f"no such {what.partition(' ')[2]}: {path}") from None
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many types (OSError, SyntaxError, ValueError, struct.error)
        reasons = {
            Image.DecompressionBombError: too_many,
            UnidentifiedImageError: f"it must be one of {', '.join(FORMATS)}",
        }
        raise InputError(f"{path} cannot be read as {what}: {reasons.get(type(error), error)}") from None


def load_image(
    path: str | Path,
    resize: int | None = None,
    center_crop: int | None = None,
    max_size: int | None = None,
    content: bytes | None = None,
) -> Image.Image:
    """Decode an image as 8-bit RGB, upright (EXIF orientation applied).

    Grey, palette, CMYK and 16-bit images are converted (16-bit by its high byte), transparency is dropped.

    Parameters
    ----------
    path
        Of the file.
    resize, center_crop
        The view of EAGLE's loader: shorter side to ``resize`` pixels (nearest neighbour), then a centred square of
        ``center_crop`` pixels. Off when None.
    max_size
        Longer side to at most that many pixels (Lanczos filter), before all else. Off when None.
    content
        The file's bytes, if they are at hand.

    Raises
    ------
    InputError
        As of :func:`open_picture`.
    """
    with open_picture(path, content=content) as file:
        image = upright_rgb(file)
    if max_size is not None:
        reduce_to(image, max_size)
    return view(image, resize, center_crop)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB with its EXIF orientation applied; see :func:`load_image`."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_high_byte(np.asarray(image)))
    return image.convert("RGB")


def as_picture(image: object) -> Image.Image:
    """8-bit RGB of a Pillow image, the path of a file, or an array of uint8: (H, W) grey, (H, W, 3) RGB or RGBA.

    An :class:`InputError` says if it is none of these, or cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return load_image(Path(image))
    is_bytes = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size > 0
    if isinstance(image, np.ndarray) and is_bytes and image.ndim > 1 and image.shape[2:] in ((), (3,), (4,)):
        return Image.fromarray(image).convert("RGB")
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    kind = f"{type(image).__name__}" + (f" of {image.dtype}, {image.shape}" if isinstance(image, np.ndarray) else "")
    raise InputError(
        f"no picture: {kind}; give a Pillow image, a path, or an array of uint8 of shape (H, W) or (H, W, 3), one at a "
        "time"
    )


def reduce_to(image: Image.Image, max_size: int) -> None:
    """Reduce an image in place to a longer side of at most ``max_size`` pixels (Lanczos filter)."""
    image.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)


def _high_byte(pixels: np.ndarray) -> np.ndarray:
    """16-bit (or wider, as Pillow stores it) grey values to 8 bits; Pillow's own conversion clips them instead."""
    return (np.clip(pixels, 0, 65535) // 256).astype(np.uint8)


def view(image: Image.Image, resize: int | None, center_crop: int | None) -> Image.Image:
    """Resize the shorter side (nearest neighbour) and crop the centre, as torchvision's transforms do."""
    if any(side is not None and side < 1 for side in (resize, center_crop)):
        raise InputError(f"resize={resize}, center_crop={center_crop}: must be at least one pixel")
    if resize is not None:
        width, height = image.size
        if width <= height:
            size = (resize, int(resize * height / width))
        else:
            size = (int(resize * width / height), resize)
        image = image.resize(size, Image.Resampling.NEAREST)
    if center_crop is not None:
        width, height = image.size
        if min(width, height) < center_crop:
            raise InputError(f"an image of {width}x{height} pixels is smaller than center_crop={center_crop}")
        left, top = round((width - center_crop) / 2), round((height - center_crop) / 2)
        image = image.crop((left, top, left + center_crop, top + center_crop))
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of whole patches in an image of ``height`` x ``width`` pixels.

    Raises
    ------
    InputError
        The image is smaller than one patch.
    """
    rows, columns = height // patch_size, width // patch_size
    if rows == 0 or columns == 0:
        raise InputError(f"an image of {width}x{height} pixels is smaller than one patch of {patch_size} pixels")
    return rows, columns


def crop_to_patches(images: Tensor, patch_size: int) -> Tensor:
    """Crop (..., H, W) images at the right and bottom to whole patches."""
    rows, columns = patch_grid(images.shape[-2], images.shape[-1], patch_size)
    return images[..., : rows * patch_size, : columns * patch_size]
