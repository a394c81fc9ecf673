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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor

from spectralseg.errors import InputError, OutputError, some_of
from spectralseg.files.inert import DEEPEST, read_inert

LAB_GRAPH = "lab_graph"  # the model whose features are colours
TEMPORARY_SUFFIX = ".tmp"
DAMAGED = "delete it if it is damaged"


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


def remove_leftovers(folder: str | Path, below: bool = False) -> None:
    """Delete temporary files that a killed process of this machine left in ``folder`` (and the folders ``below``)."""
    prefix = f".{socket.gethostname()}-"
    for path in Path(folder).glob(f"{'**/' * below}.*{TEMPORARY_SUFFIX}"):
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
        return parse_json(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); {DAMAGED}") from None


def parse_json(text: str, path: str | Path, **options: Any) -> Any:
    """The content of JSON that stands in the file ``path``; an :class:`InputError` if it is none, or nested too deep.

    ``options`` are those of :func:`json.loads`.
    """
    try:
        level = [content := json.loads(text, **options)]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); {DAMAGED}") from None
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return content
    raise InputError(f"{path} cannot be read (more than {DEEPEST} levels of brackets); {DAMAGED}")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


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


def paired_ids(first: str | Path, second: str | Path, suffixes: tuple[str, str] = (".pth", ".pth")) -> list[str]:
    """Ids that have a file in either of two folders; see :func:`require_partner` for those that lack one."""
    return sorted({*list_ids(first, suffixes[0]), *list_ids(second, suffixes[1])})


def require_partner(*paths: Path) -> None:
    """Raise an :class:`InputError` that names the file which an image lacks."""
    for path in paths:
        if not path.is_file():
            raise InputError(f"its file {path} is missing")
