"""Shards of images (WebDataset tars, Parquet, lists of files), local or ``s3://``, and tables written beside them.

A shard that is damaged gives what can be read of it, and an entry that says what is wrong.
"""

import contextlib
import glob
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from spectralseg.errors import InputError, OutputError, some_of
from spectralseg.files.images import EXTENSIONS
from spectralseg.files.names import check_entry, check_id
from spectralseg.files.storage import atomic_write, make_folder

try:
    import pyarrow
    from pyarrow import fs, parquet
except ImportError:
    raise InputError("tables need pyarrow: pip install 'spectralseg[scale]' (in a checkout: '.[scale]')") from None

TARS, TABLES, LISTS = (".tar", ".tar.gz", ".tgz"), (".parquet",), (".txt",)
MOST_BYTES = 2**30  # of an image's file
ROWS_AT_ONCE = 64  # of a Parquet file
LIST_SHARD = 1000  # names of a list that make a shard
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
TRUNCATED = "the shard ends in the middle, or is damaged: what stands behind is lost"
READ_ERRORS = (tarfile.TarError, zlib.error, EOFError, OSError, pyarrow.ArrowException, ValueError)


@dataclass(frozen=True)
class Entry:
    """An image of a shard: its bytes, or why there are none."""

    id: str
    name: str
    content: bytes = field(repr=False, default=b"")
    problem: str | None = None


@dataclass(frozen=True)
class Shard:
    """Images that are read together; ``names``: those of a list that this shard is made of."""

    stem: str
    path: str
    names: tuple[str, ...] = ()


def find_shards(pattern: str, images_root: str | None = None) -> list[Shard]:
    """Shards by a pattern: paths or addresses with commas between, numbers as ``{000..999}``, or local ``*``.

    ``images_root``: folder or address that the names in lists (``.txt``) are relative to.

    Raises
    ------
    InputError
        Nothing is there, of another kind, two shards of one name, or a list without the folder ``images_root``.
    """
    paths = [path for part in pattern.split(",") for path in _expanded(part.strip())]
    shards: list[Shard] = []
    for path in paths:
        name = PurePosixPath(path.partition("?")[0]).name
        suffix = next((suffix for suffix in (*TARS, *TABLES, *LISTS) if name.endswith(suffix)), None)
        if suffix is None:
            raise InputError(f"{path} is no shard: give {', '.join((*TARS, *TABLES, *LISTS))}")
        if not is_file(path):
            raise InputError(f"no such shard: {path}")
        stem = check_id(name.removesuffix(suffix))
        if suffix not in LISTS:
            shards.append(Shard(stem, path))
            continue
        if images_root is None:
            raise InputError(f"{path} is a list of files: give the folder they lie in as --images_root")
        if "://" not in images_root and not Path(images_root).is_dir():
            raise InputError(f"no such folder: {images_root}")
        with opened(path) as file:
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        names = [check_entry(line.strip(), path) for line in lines if line.strip()]
        for number, start in enumerate(range(0, len(names), LIST_SHARD)):
            part = tuple(names[start : start + LIST_SHARD])
            shards.append(Shard(f"{stem}-{number:05d}", images_root, part))
    if not shards:
        raise InputError(f"no shard matches {pattern}")
    stems = [shard.stem for shard in shards]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1}) if len(set(stems)) < len(stems) else []
    if twice:
        raise InputError(f"shards need names of their own, after which results are called; twice: {some_of(twice)}")
    return shards


def _expanded(part: str) -> list[str]:
    found = BRACES.search(part)
    if found is None:
        return sorted(glob.glob(part)) if "*" in part and "://" not in part else [part]
    first, last = found.groups()
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [path for number in numbers for path in _expanded(part.replace(found.group(), number, 1))]


def entries_of(shard: Shard, image_column: str = "image") -> Iterator[Entry]:
    """The images of a shard, in order; what is wrong with an image, or with the rest of the shard, is an entry too.

    Of a tar these are the members with the suffix of an image, called after their path up to the first dot of their
    name, folders joined by ``__``. Of a Parquet file, the rows: ``image_column`` holds bytes, or a struct of ``bytes``
    and ``path`` as Hugging Face has it; called after column ``id`` or ``__key__``, else ``<shard>-<row>``.
    """
    seen: set[str] = set()
    try:
        for entry in _read(shard, image_column):
            name = entry.name.encode(errors="backslashreplace").decode()  # as tables can hold it
            try:
                check_id(entry.id)
                twice = "its name stands twice in the shard" if entry.id in seen else entry.problem
                yield Entry(entry.id, name, b"" if twice else entry.content, twice)
                seen.add(entry.id)
            except InputError as error:
                yield Entry(f"{shard.stem}: {entry.name!r}", name, problem=str(error))
    except InputError:  # a place that cannot be reached
        raise
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Entry(f"{shard.stem}: end", "", problem=f"{TRUNCATED} ({reason[:200]})")


def _read(shard: Shard, image_column: str) -> Iterator[Entry]:
    name = shard.path.partition("?")[0]
    if shard.names:
        yield from _read_names(shard)
    elif name.endswith(TABLES):
        yield from _read_table(shard, image_column)
    else:
        with opened(shard.path) as file:
            yield from _read_tar(file if name.endswith(".tar") else gzip.GzipFile(fileobj=file))


def _read_names(shard: Shard) -> Iterator[Entry]:
    for name in shard.names:
        image_id = id_of(name)
        try:
            root, mark, query = shard.path.partition("?")  # s3://bucket/folder?region=...
            with opened(f"{root.rstrip('/')}/{name}{mark}{query}") as file:
                content = file.read(MOST_BYTES + 1)
            yield _entry(image_id, name, content)
        except OSError as error:
            yield Entry(image_id, name, problem=f"{name} cannot be read ({error.strerror or error})")


def _read_table(shard: Shard, image_column: str) -> Iterator[Entry]:
    with opened(shard.path) as file:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if image_column not in names:
            raise pyarrow.ArrowInvalid(f"it has no column '{image_column}', but {some_of(names, 8)}")
        key = next((name for name in ("id", "__key__") if name in names), None)
        row = 0
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=[image_column, *([key] if key else [])]):
            for value in batch.to_pylist():
                content = value[image_column]
                name = content.get("path") if isinstance(content, dict) else None
                content = content.get("bytes") if isinstance(content, dict) else content
                own = value.get(key, f"{shard.stem}-{row:08d}")
                image_id = "" if own is None else str(own)
                name = str(name or image_id or f"row {row}")
                row += 1
                if isinstance(content, bytes):
                    yield _entry(image_id, name, content)
                else:
                    yield Entry(image_id, name, problem=f"column '{image_column}' holds no bytes")


def _read_tar(file: Any) -> Iterator[Entry]:
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            name = member.name
            if not name.lower().endswith(tuple(EXTENSIONS)) or not (member.isreg() or member.islnk() or member.issym()):
                continue
            try:
                image_id = id_of(check_entry(name, "the tar"))
            except InputError as error:
                yield Entry(name, name, problem=str(error))
                continue
            content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None:
                yield Entry(image_id, name, problem="it is a link or a sparse file")
            else:
                yield _entry(image_id, name, content.read(MOST_BYTES + 1))
        # Behind the block that ended the loop: tarfile takes a damaged header for the end.
        rest: Any = tar.fileobj
        if rest.tell() < tar.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the blocks that end a tar are missing")
        while block := rest.read(2**20):
            if block.strip(b"\0"):
                raise tarfile.ReadError("a header in the middle is damaged, or another tar is appended")


def _entry(image_id: str, name: str, content: bytes) -> Entry:
    if len(content) > MOST_BYTES:
        return Entry(image_id, name, problem="its file has more than a gigabyte")
    return Entry(image_id, name, content)


def id_of(name: str) -> str:
    """The id of a name with folders: ``a/b.left.jpg`` is ``a__b``, as WebDataset has it."""
    path = PurePosixPath(name)
    first = path.name.partition(".")[0]
    return "__".join([*path.parent.parts, first])


# --- files and tables, local or elsewhere ---------------------------------------------------------------------------


def located(path: str) -> tuple["fs.FileSystem", str]:
    """File system and path of an address; an :class:`InputError` says if there is no such kind of address."""
    if "://" not in path:
        return fs.LocalFileSystem(), str(Path(path).absolute())
    try:
        return fs.FileSystem.from_uri(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be reached ({str(error).splitlines()[0]})") from None


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """A file to read; OSError where it cannot be."""
    system, below = located(path)
    with system.open_input_file(below) as file:
        yield file


def is_file(path: str) -> bool:
    """Whether there is such a file."""
    system, below = located(path)
    try:
        return system.get_file_info(below).type == fs.FileType.File
    except OSError as error:
        raise InputError(f"{path} cannot be reached ({str(error).splitlines()[0]})") from None


class TableFolder:
    """A folder of Parquet files, local or ``s3://``, which appear whole."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")
        self.system, self.below = located(self.path)
        self.is_local = "://" not in path

    def names(self, folder: str = "") -> set[str]:
        """Names of the files in it, or in a ``folder`` of it; hidden ones left out."""
        below = f"{self.below}/{folder}".rstrip("/")
        try:
            found = self.system.get_file_info(fs.FileSelector(below, allow_not_found=True))
        except OSError as error:
            raise InputError(f"{self.path} cannot be reached ({str(error).splitlines()[0]})") from None
        return {info.base_name for info in found if info.type == fs.FileType.File and info.base_name[0] != "."}

    def read(self, name: str, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """A table; an :class:`InputError` says which is damaged."""
        try:
            with self.system.open_input_file(f"{self.below}/{name}") as file:
                return parquet.read_table(file, columns=columns, page_checksum_verification=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{self.path}/{name} cannot be read ({str(error).splitlines()[0]}); delete it") from None

    def write(self, name: str, table: "pyarrow.Table") -> None:
        """Write a table, whole or not at all."""
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        self.write_bytes(name, buffer.getvalue())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        path = f"{self.below}/{name}"
        if self.is_local:
            make_folder(Path(path).parent)
            with atomic_write(path) as file:
                file.write(content)
            return
        try:
            with self.system.open_output_stream(path) as file:  # an object appears when it is complete
                file.write(content)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}/{name}: {str(error).splitlines()[0]}") from None

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        if name not in self.names(str(PurePosixPath(name).parent).strip(".")):
            return None
        try:
            with self.system.open_input_file(f"{self.below}/{name}") as file:
                return file.read()
        except OSError as error:
            raise InputError(f"{self.path}/{name} cannot be read ({str(error).splitlines()[0]})") from None

    def remove(self, names: Sequence[str]) -> None:
        """Delete files."""
        for name in names:
            try:
                self.system.delete_file(f"{self.below}/{name}")
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    raise OutputError(f"cannot delete {self.path}/{name}: {str(error).splitlines()[0]}") from None
