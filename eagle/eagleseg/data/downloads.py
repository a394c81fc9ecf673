"""Large files from an address: resumed where they broke off, checked, unpacked whole or not at all."""

import http.client
import json
import os
import shutil
import stat
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from spectralseg.errors import InputError, OutputError
from spectralseg.files.storage import atomic_write, make_folder, remove
from spectralseg.models.weights import TIMEOUT_SECONDS, chunks
from spectralseg.running.progress import progress_bar

PART, VALIDATOR = ".part", ".part.json"  # what has arrived, and how the server can tell that the rest belongs to it


def fetch(url: str, target: Path) -> Path:
    """Download ``url`` (http, https or file) to ``target``, or return it if it is there.

    What has arrived stays in ``<target>.part``; the next call asks for the rest, if the server can say that the file is
    still the same one (ETag or Last-Modified), else for all of it.

    Raises
    ------
    InputError
        The address leads nowhere, or the connection broke off; the message says that the same command goes on there.
    OutputError
        The file cannot be written, or there is not enough room.
    """
    if target.is_file():
        return target
    make_folder(target.parent)
    part = target.with_name(target.name + PART)
    validator = target.with_name(target.name + VALIDATOR)
    try:
        with _open(url, part, validator) as response:
            start = part.stat().st_size if part.exists() and response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            total = _total(response, start)
            if total is not None:
                require_space(target.parent, total - start)
            _note_validator(validator, url, response)
            _receive(response, part, start, total, target.name)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        arrived = part.stat().st_size if part.exists() else 0
        rest = f"; {_size(arrived)} are kept, the same command goes on there" if arrived else ""
        raise InputError(f"cannot download {url}: {getattr(error, 'reason', None) or error}{rest}") from None
    try:
        os.replace(part, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    remove(validator)
    return target


def _open(url: str, part: Path, validator: Path) -> "Response":
    """The response, to a request for the rest where a part of the same file is there."""
    request = urllib.request.Request(url)
    known = _read_validator(validator, url)
    if known and part.exists():
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", known)
    try:
        return Response(urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS))
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        remove(part)  # it is not a beginning of that file
        return Response(urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS))


class Response:
    """An answer of a server; one to file:// has no status."""

    def __init__(self, answer: BinaryIO) -> None:
        self.answer, self.headers = answer, answer.headers
        self.status = getattr(answer, "status", None)

    def __enter__(self) -> "Response":
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()


def _total(response: Response, start: int) -> int | None:
    """Bytes of the whole file, or None where the server does not tell."""
    length = response.headers.get("Content-Length")
    return None if length is None else start + int(length)


def _note_validator(path: Path, url: str, response: Response) -> None:
    etag = response.headers.get("ETag", "")
    value = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    with atomic_write(path) as file:
        file.write(json.dumps({"url": url, "validator": value}).encode())


def _read_validator(path: Path, url: str) -> str:
    try:
        noted = json.loads(path.read_text())
        return noted["validator"] if noted["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _receive(response: Response, part: Path, start: int, total: int | None, name: str) -> None:
    options = {"total": total, "initial": start, "unit": "B", "unit_scale": True, "file": sys.stderr}
    try:
        with (
            open(part, "ab" if start else "wb") as file,
            progress_bar(desc=f"downloading {name}", **options) as bar,
        ):
            for chunk in chunks(response.answer, None if total is None else total - start):
                file.write(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise OutputError(f"cannot write {part}: {error.strerror or error}") from error


def require_space(folder: Path, needed: int) -> None:
    """Raise an :class:`OutputError` where ``folder`` has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(f"{folder} has {_size(free)} of free space, {_size(needed)} are needed")


def unpack(archive: Path, target: Path, expected: tuple[str, ...]) -> None:
    """Unpack a zip or tar archive as the folder ``target``, which appears when all of it is there.

    Parameters
    ----------
    archive
        Holds the folder ``target.name``, or what belongs into it.
    expected
        Folders that must be in it.

    Raises
    ------
    InputError
        No archive, a damaged one, one with names that lead outside or with links, or without the expected folders.
    OutputError
        ``target`` exists, cannot be written, or there is not enough room.
    """
    if target.exists():
        raise OutputError(f"{target} exists already")
    incoming = target.with_name(f".{target.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)  # of a run that was killed
    make_folder(incoming)
    try:
        _extract(archive, incoming)
        found = incoming / target.name if (incoming / target.name).is_dir() else incoming
        missing = [name for name in expected if not (found / name).is_dir()]
        if missing:
            there = ", ".join(sorted(path.name for path in found.iterdir())[:5]) or "nothing"
            raise InputError(f"{archive} is no {target.name}: it lacks {', '.join(missing)} (it holds {there})")
        os.replace(found, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{archive} is damaged ({error}); delete it and download it again") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
        raise InputError(f"{archive} cannot be unpacked: {error}") from None
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot unpack {archive} to {target.parent}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            size = sum(entry.file_size for entry in content.infolist())
            _write(_zip_members(content, archive), folder, archive, size)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as content:
            _write(_tar_members(content, archive), folder, archive, sum(entry.size for entry in content))
    else:
        raise InputError(f"{archive} is no zip or tar archive (a web page instead of the file?); delete it")


def _zip_members(content: zipfile.ZipFile, archive: Path) -> Iterator[tuple[str, BinaryIO]]:
    for entry in content.infolist():
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{archive} holds the link {entry.filename}: it is not unpacked")
        if not entry.is_dir():
            with content.open(entry) as file:  # checks the checksum at its end
                yield entry.filename, file


def _tar_members(content: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, BinaryIO]]:
    for entry in content:
        if not (entry.isfile() or entry.isdir()):
            raise InputError(f"{archive} holds the link or device {entry.name}: it is not unpacked")
        if entry.isfile():
            yield entry.name, content.extractfile(entry)


def _write(members: Iterator[tuple[str, BinaryIO]], folder: Path, archive: Path, size: int) -> None:
    require_space(folder, size)
    options = {"total": size, "unit": "B", "unit_scale": True, "file": sys.stderr, "desc": f"unpacking {archive.name}"}
    root = folder.resolve()
    with progress_bar(**options) as bar:
        for name, source in members:
            path = (root / name.replace("\\", "/")).resolve()
            if root not in path.parents:
                raise InputError(f"{archive} holds the name {name}, which leads outside: it is not unpacked")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                shutil.copyfileobj(source, file)
            bar.update(path.stat().st_size)


def _size(count: int) -> str:
    """Bytes for people: 1.2 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
