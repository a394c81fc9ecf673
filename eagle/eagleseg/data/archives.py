"""Archives of data sets: unpacked whole or not at all."""

import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from spectralseg.errors import InputError, OutputError
from spectralseg.files.downloads import require_space
from spectralseg.files.storage import make_folder
from spectralseg.progress import progress_bar


def unpack(archive: Path, target: Path, expected: tuple[str, ...]) -> None:
    """Unpack a zip or tar archive as the folder ``target``, which appears when all of it is there.

    Parameters
    ----------
    archive
        Holds the folder ``target.name``, or what belongs into it.
    target
        Its folder must be there.
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


def _zip_members(content: zipfile.ZipFile, archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for entry in content.infolist():
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{archive} holds the link {entry.filename}: it is not unpacked")
        if not entry.is_dir():
            with content.open(entry) as file:  # checks the checksum at its end
                yield entry.filename, file


def _tar_members(content: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for entry in content:
        if not (entry.isfile() or entry.isdir()):
            raise InputError(f"{archive} holds the link or device {entry.name}: it is not unpacked")
        file = content.extractfile(entry)
        if file is not None:  # no folder
            yield entry.name, file


def _write(members: Iterator[tuple[str, IO[bytes]]], folder: Path, archive: Path, size: int) -> None:
    require_space(folder, size)
    options: dict[str, Any] = {
        "total": size,
        "unit": "B",
        "unit_scale": True,
        "file": sys.stderr,
        "desc": f"unpacking {archive.name}",
    }
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
