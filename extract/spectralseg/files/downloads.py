"""Large files from an address: resumed where they broke off, and never kept by halves."""

import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.response import addinfourl

from spectralseg.errors import InputError, OutputError
from spectralseg.files.storage import atomic_write, make_folder, remove
from spectralseg.progress import progress_bar

TIMEOUT_SECONDS = 20
PART, VALIDATOR = ".part", ".part.json"  # what has arrived, and how the server can tell that the rest belongs to it
Response = http.client.HTTPResponse | addinfourl  # the latter from file://


def fetch(url: str, target: Path, resume: bool = True) -> Path:
    """Download ``url`` (http, https or file) to ``target``, or return it if it is there.

    With ``resume``, what has arrived stays in ``<target>.part``; the next call asks for the rest, if the server can say
    that the file is still the same one (ETag or Last-Modified), else for all of it.

    Raises
    ------
    InputError
        The address leads nowhere, or the connection broke off; the message names ``url``, and says whether the same
        command goes on there.
    OutputError
        The file cannot be written, or there is not enough room.
    """
    if target.is_file():
        return target
    make_folder(target.parent)
    part, validator = (target.with_name(target.name + suffix) for suffix in (PART, VALIDATOR))
    try:
        with _open(url, part, validator) as response:
            start = part.stat().st_size if part.exists() and response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            length = response.headers.get("Content-Length")  # None where the server does not tell
            rest = None if length is None else int(length)
            require_space(target.parent, rest or 0)
            _note_validator(validator, url, response)
            _receive(response, part, start, rest, target)
    except OutputError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # OSError: urllib's and the network's
        arrived = part.stat().st_size if resume and part.exists() else 0
        kept = f"; {_size(arrived)} are kept, the same command goes on there" if arrived else ""
        raise InputError(f"cannot download {url}: {getattr(error, 'reason', None) or error}{kept}") from None
    finally:
        if target.exists() or not resume:
            remove(part)
            remove(validator)
    return target


def _open(url: str, part: Path, validator: Path) -> Response:
    """The response, to a request for the rest where a part of the same file is there."""
    request = urllib.request.Request(url)
    known = _read_validator(validator, url)
    if known and part.exists():
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", known)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        remove(part)  # it is not a beginning of that file
        return urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)


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


def _receive(response: Response, part: Path, start: int, rest: int | None, target: Path) -> None:
    """Write to ``part``, from byte ``start`` on, the ``rest`` of the file (None: of unknown length), and move it."""
    total = None if rest is None else start + rest
    options: dict[str, Any] = {"total": total, "initial": start, "unit": "B", "unit_scale": True, "file": sys.stderr}
    try:
        with (
            open(part, "ab" if start else "wb") as file,
            progress_bar(desc=f"downloading {target.name}", **options) as bar,
        ):
            for chunk in _chunks(response, rest):
                file.write(chunk)
                bar.update(len(chunk))
        os.replace(part, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def _chunks(response: Response, total: int | None) -> Iterator[bytes]:
    """The ``total`` bytes of a response (None: unknown), a megabyte at a time.

    Where it breaks off, an HTTPException is raised: an OSError would look like a full disk.
    """
    received = 0
    try:
        while chunk := response.read(1 << 20):
            received += len(chunk)
            yield chunk
    except OSError as error:
        raise http.client.HTTPException(f"the connection broke off after {received} bytes ({error})") from error
    if total is not None and received != total:
        raise http.client.HTTPException(f"the connection broke off after {received} of {total} bytes")


def require_space(folder: Path, needed: int) -> None:
    """Raise an :class:`OutputError` where ``folder`` has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(f"{folder} has {_size(free)} of free space, {_size(needed)} are needed")


def _size(count: int) -> str:
    """Bytes for people: 1.2 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
