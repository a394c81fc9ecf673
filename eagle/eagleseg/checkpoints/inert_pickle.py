"""Read a ``torch.save`` file of any content without executing anything from it.

``torch.load`` either imports and calls whatever the file names, or (``weights_only``) refuses files that name more than
tensors. Published training checkpoints hold pickled configuration objects beside their tensors. Here every class that
is no tensor's and no plain container's is replaced by a :class:`StandIn`, which only keeps what it was given.
"""

import collections
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectralseg.errors import InputError

STORAGES = {
    **{"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGES.values()}
PLAIN = {"dict": dict, "list": list, "set": set, "frozenset": frozenset, "tuple": tuple, "int": int, "float": float}
PLAIN |= {"bool": bool, "str": str, "complex": complex, "bytearray": bytearray}


class StandIn:
    """An object of a class that was not imported.

    Attributes
    ----------
    arguments
        Of its constructor.
    state
        What the file says of its attributes, or None.
    entries, members
        What was put into it as into a dict, and as into a list.
    """

    origin = ""
    arguments: tuple[Any, ...]
    entries: dict[Any, Any]
    members: list[Any]

    def __new__(cls, *arguments: Any, **_: Any) -> "StandIn":
        """Any arguments will do."""
        made = super().__new__(cls)
        made.arguments, made.state, made.entries, made.members = arguments, None, {}, []
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing more to do."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """As into a list."""
        self.members.append(value)

    def extend(self, values: Any) -> None:
        """As into a list."""
        self.members.extend(values)

    add = append


def read_inert(path: str | Path) -> Any:
    """Content of a file that ``torch.save`` wrote (the zip layout of torch 1.6 and later).

    Returns
    -------
    Any
        Tensors on the CPU, plain values, and :class:`StandIn` objects.

    Raises
    ------
    InputError
        No such file, another kind of file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                raise InputError(f"{path} is a zip file, but no checkpoint")
            root = names[0].removesuffix("data.pkl")
            _check_byte_order(archive, root, path)
            with archive.open(names[0]) as file:
                return _Reader(file, archive, root).load()
    except FileNotFoundError:
        raise InputError(f"no such checkpoint: {path}") from None
    except InputError:
        raise
    except zipfile.BadZipFile:
        raise InputError(f"{path} is no checkpoint of torch 1.6 or later, or is damaged") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path} is no readable checkpoint (damaged? {type(error).__name__})") from error


def _check_byte_order(archive: zipfile.ZipFile, root: str, path: str | Path) -> None:
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise InputError(f"{path} was written on a machine of another byte order")


class _Storage:
    """Bytes of one or more tensors, as a flat tensor."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat


class _Reader(pickle.Unpickler):
    """Finds tensors' builders and plain containers; all else is a stand-in."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.archive, self.root = archive, root
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for."""
        found: dict[tuple[str, str], Callable] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("collections", "defaultdict"): _default_dict,
            ("torch", "Size"): tuple,
            ("torch.storage", "UntypedStorage"): StandIn,
            ("copyreg", "_reconstructor"): _reconstruct,
            ("copy_reg", "_reconstructor"): _reconstruct,
        }
        if (module, name) in found:
            return found[module, name]
        if module in ("builtins", "__builtin__") and name in PLAIN:
            return PLAIN[name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return type(name, (StandIn,), {"origin": f"{module}.{name}"})

    def persistent_load(self, identity: Any) -> _Storage:
        """A tensor's bytes: a file of their own in the archive."""
        kind, storage_type, key, _, count = identity
        dtype = STORAGES.get(storage_type.origin.rpartition(".")[2])
        if kind != "storage" or dtype is None:
            raise pickle.UnpicklingError(f"unknown storage {storage_type.origin}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            if len(flat) != count:
                raise pickle.UnpicklingError(f"storage {key} has {len(flat)} numbers instead of {count}")
            self.storages[key] = _Storage(flat)
        return self.storages[key]


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage.flat, size, stride, offset).clone()  # raises beyond the storage


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _default_dict(*_: Any) -> dict:
    return {}


def _reconstruct(kind: Any, *_: Any) -> Any:
    return kind() if isinstance(kind, type) and issubclass(kind, StandIn) else StandIn()


def plain(value: Any) -> Any:
    """Plain values of what :func:`read_inert` returns: stand-ins become the dict, list or value that they carry.

    OmegaConf's containers keep theirs under ``_content`` and its leaves under ``_val``; dict subclasses (Lightning's)
    are filled entry by entry; of other objects the public attributes remain, and nothing of those without any.
    """
    return _plain(value, ())


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    if id(value) in above:
        return None  # an object that holds itself (OmegaConf's parents)
    above = (*above, id(value))
    if isinstance(value, dict):
        return {key: _plain(content, above) for key, content in value.items() if isinstance(key, str | int | float)}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(content, above) for content in value]
    if isinstance(value, type):
        return None
    if not isinstance(value, StandIn):
        return value
    state = value.state if isinstance(value.state, dict) else {}
    for name in ("_content", "_val"):
        if name in state:
            return _plain(state[name], above)
    if value.entries:
        return _plain(value.entries, above)
    if value.members:
        return _plain(value.members, above)
    public = {name: content for name, content in state.items() if isinstance(name, str) and name[:1] != "_"}
    return _plain(public, above) if public else None
