"""What the stage files hold, and how they are written: whole or not at all.

Every per-image file is named after its image's id (the file stem). Records are dicts of tensors and plain Python
values, so that ``torch.load(weights_only=True)`` reads them. Files written by the published code are read too.
"""

import contextlib
import hashlib
import io
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor

from spectralseg.errors import InputError, OutputError, some_of
from spectralseg.files.inert import read_inert

LAB_GRAPH = "lab_graph"  # the model whose features are colours
TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing bytes; it appears, complete, when the block ends without an error.

    The bytes go to a hidden temporary file in the same folder (named after this host and process, see
    :func:`remove_leftovers`), which then replaces ``path``. A long name is not repeated there: it would be too long.

    Raises
    ------
    OutputError
        The file cannot be written: disk full, folder read-only or absent.
    """
    path = Path(path)
    name = path.name if len(os.fsencode(path.name)) <= 100 else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    temporary = path.with_name(f".{name}.{socket.gethostname()}-{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Delete temporary files that a killed process of this machine left in ``folder``."""
    prefix = f".{socket.gethostname()}-"
    for path in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        owner = path.name.removesuffix(TEMPORARY_SUFFIX).rpartition(prefix)[2]
        if prefix in path.name and owner.isdecimal() and not _is_running(int(owner)):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file if it exists; an :class:`OutputError` says why it cannot be."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot delete {path}: {error.strerror or error}") from error


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def make_folder(path: str | Path) -> Path:
    """Create a folder with its parents; an :class:`OutputError` says why it cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the folder {path}: {error.strerror or error}") from error
    return path


def save_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=indent) + "\n").encode())


def load_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is no file; an :class:`InputError` if it is damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it if it is damaged") from None


def save_picture(path: str | Path, picture: Image.Image, **options: Any) -> None:
    """Write a picture as JPEG or PNG, whichever the name says, atomically; ``options`` are those of the format."""
    with atomic_write(path) as file:
        picture.save(file, format="JPEG" if Path(path).suffix == ".jpg" else "PNG", **options)


def save_record(path: str | Path, record: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write a record as ``.pth``, atomically. Equal records give equal bytes."""
    buffer = io.BytesIO()  # torch.save on a path hides the reason of a failed write; on a buffer it cannot fail
    torch.save(_in_own_objects(record), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def _in_own_objects(value: Any) -> Any:
    """A copy in which no container occurs twice, and equal texts are one object.

    Pickle writes an object that it has met before as a reference: the bytes would depend on which objects are shared.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        return {_in_own_objects(key): _in_own_objects(content) for key, content in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_in_own_objects(content) for content in value)
    return value


def load_record(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth`` record without executing anything from it.

    NumPy arrays inside (the published code saves eigenvalues so) become tensors.

    Raises
    ------
    InputError
        The file is absent, damaged, holds something else than a dict, or objects that would need executing.
    """
    record = load_pth(path)
    if not isinstance(record, dict):
        raise InputError(f"{path} holds a {type(record).__name__}, not a record of a stage")
    return record


def load_pth(path: str | Path) -> Any:
    """Content of a file of ``torch.save``, of which nothing is executed; errors as :func:`load_record`."""
    return read_inert(path, "delete it and run its stage again")


def field(record: dict[str, Any], name: str, path: str | Path) -> Any:
    """``record[name]``, or an error that says which field of which file is missing."""
    if name not in record:
        raise InputError(f"{path} has no field '{name}' (it has: {some_of(sorted(map(str, record)), 8)})")
    return record[name]


def load_features(path: str | Path) -> dict[str, Any]:
    """Read a features record; ours or the published code's.

    Returns
    -------
    dict
        ``id`` (str), ``file`` (str), ``shape`` (1, 3, H, W) of the image in pixels before cropping, ``patch_size``
        (int), ``model_name`` (str), ``indices`` (int), and the features, each (1, T, D): ``k``, ...
    """
    record = load_record(path)
    record.setdefault("id", Path(path).stem)
    for name in ("shape", "patch_size"):
        field(record, name, path)
    record["shape"] = tuple(int(side) for side in record["shape"])
    record["patch_size"] = int(record["patch_size"])
    if "indices" in record:  # the published code stores a tensor with one element
        record["indices"] = int(record["indices"])
    if isinstance(record.get("file"), list | tuple):
        record["file"] = record["file"][0]
    if isinstance(record["id"], list | tuple):
        record["id"] = record["id"][0]
    return record


def load_eigs(path: str | Path) -> dict[str, Any]:
    """Read an eigenvectors record; ours or the published code's (``eigenvalues`` and ``eigenvectors`` alone).

    Returns
    -------
    dict
        ``eigenvalues`` (K,) and ``eigenvectors`` (K, T') as float32 tensors, ``id`` (str); when our stage wrote it
        also ``shape`` (1, 3, H, W), ``grid`` (rows, columns), ``step`` (pixels per cell), ``which_matrix``. For
        records without them :func:`spectralseg.files.label_maps.infer_grid` finds grid and step from the image size.
    """
    record = load_record(path)
    record.setdefault("id", Path(path).stem)
    values = torch.as_tensor(field(record, "eigenvalues", path)).float().flatten()
    vectors = torch.as_tensor(field(record, "eigenvectors", path)).float()
    if vectors.ndim != 2 or len(vectors) != len(values):
        raise InputError(
            f"{path}: eigenvectors of shape {tuple(vectors.shape)} do not fit {len(values)} eigenvalues, (K, T) does"
        )
    record["eigenvalues"], record["eigenvectors"] = values, vectors
    if "grid" in record:
        record["grid"] = tuple(int(side) for side in record["grid"])
    if "shape" in record:
        record["shape"] = tuple(int(side) for side in record["shape"])
    return record


def cell_colours(record: dict[str, Any], grid: tuple[int, int]) -> Tensor | None:
    """Colours (T, 3), CIELAB / 100, of a features record of ``lab_graph`` on ``grid``; None of other backbones."""
    if record.get("model_name") != LAB_GRAPH:
        return None
    colours = field(record, "k", record["id"])[0].float()
    if colours.shape != (grid[0] * grid[1], 3):
        raise InputError(f"colours of {len(colours)} cells do not fit a grid of {grid[0]}x{grid[1]}")
    return colours


def compact(tensor: Tensor) -> Tensor:
    """A contiguous CPU copy that shares no storage: a saved view would drag its whole parent into the file."""
    return tensor.detach().cpu().contiguous().clone()


def list_ids(folder: str | Path, suffix: str) -> list[str]:
    """Sorted ids of the files ``<id><suffix>`` in ``folder``; an error if there is no such folder or file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    ids = sorted(path.name.removesuffix(suffix) for path in folder.glob(f"[!.]*{suffix}"))
    if not ids:
        raise InputError(f"no *{suffix} file in {folder}: run the stage before this one first")
    return ids


def load_list(path: str | Path) -> list[dict[str, Any]]:
    """Read a file that holds a list of records (boxes, their features or clusters), each with an ``id``."""
    records = load_pth(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) and "id" in record for record in records):
        raise InputError(f"{path} holds no list of records with ids, as extract_bboxes writes")
    if not records:
        raise InputError(f"{path} holds an empty list")
    return records


def paired_ids(first: str | Path, second: str | Path, suffixes: tuple[str, str] = (".pth", ".pth")) -> list[str]:
    """Ids that have a file in either of two folders; see :func:`require_partner` for those that lack one."""
    return sorted({*list_ids(first, suffixes[0]), *list_ids(second, suffixes[1])})


def require_partner(*paths: Path) -> None:
    """Raise an :class:`InputError` that names the file which an image lacks."""
    for path in paths:
        if not path.is_file():
            raise InputError(f"its file {path} is missing")
