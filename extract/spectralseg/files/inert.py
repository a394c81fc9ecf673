"""Read what ``torch.save`` wrote without executing anything from it, and with no more time and memory than it needs.

``torch.load(weights_only=True)`` calls only what builds tensors and plain data. That is not enough: a few bytes can ask
for gigabytes, or for hours of hashing. So the pickle is followed first, symbolically, and only what tensors, plain
values and NumPy arrays of numbers need passes. Objects of other classes (the configuration in a training checkpoint)
are refused, or read as the plain values that they hold, without importing their classes.
"""

import math
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from spectralseg.errors import InputError

STORAGES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1}
ITEM_SIZES = {f"torch.{kind}Storage": size for kind, size in {**STORAGES, "Bool": 1}.items()}
REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETER = "torch.nn.parameter.Parameter"
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
KNOWN = {*ITEM_SIZES, *REBUILD, PARAMETER, *(f"torch.{dtype}" for dtype in DTYPES)}
KNOWN |= {"torch._utils._rebuild_parameter", "torch.Size", "torch.device", "_codecs.encode", "builtins.set"}
KNOWN |= {"collections.OrderedDict", "collections.Counter"}
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "long": "int", "unicode": "str", "xrange": "range"}
NUMPY_KINDS = ("f8", "f4", "i8", "i4", "u1", "b1")

# What torch reads, and torch.save writes.
TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
ATOMS = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
ATOMS |= {"BINUNICODE", "SHORT_BINSTRING"}
FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
OTHERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "GLOBAL", "REDUCE", "NEWOBJ", "BINPERSID"}
TAKING = TUPLES | ATOMS | FILLING | OTHERS

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the five pickles of a file of torch before 1.6
LEGACY_PICKLES = 5
MOST_SHARING = 20  # times that a value may be met again through the tuples it lies in, on the average
DEEPEST = 100  # containers within containers


class Refused(ValueError):
    """Content that a file of ours, or a published one, never has; the message completes "cannot be read"."""


def read_inert(path: str | Path, advice: str, stand_ins: Collection[str] | None = ()) -> Any:
    """Content of a file of ``torch.save``, in the layout of torch 1.6 (zip) or the one before.

    Parameters
    ----------
    path
        Of the file.
    advice
        What the user may do if it cannot be read: the end of the message.
    stand_ins
        Full names of classes whose objects are read as the plain values they hold; None: all classes (zip layout).

    Returns
    -------
    Any
        Tensors on the CPU without gradients, also those that were NumPy arrays; plain values, dicts, lists (sets too)
        and tuples. Objects become the dict or value that they carry, or None: OmegaConf's containers keep theirs under
        ``_content`` and its leaves under ``_val``, dict subclasses are filled entry by entry, of others the public
        attributes remain. Whatever holds itself, and classes, are None.

    Raises
    ------
    InputError
        No such file, damaged, or with content that would need executing, or that grows without bounds.
    """
    try:
        found = _check_file(Path(path))
        unknown = found.names - KNOWN - _NUMPY.keys()
        if stand_ins is None and unknown:
            stand_ins = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if refused := unknown.difference(stand_ins or ()):
            raise Refused(f"it needs {min(refused)}, which is neither tensor nor plain data")
        allowed: list[Any] = [(type("StandIn", (_StandIn,), {}), name) for name in sorted(unknown)]
        allowed += [(builder, name) for name, builder in _NUMPY.items()]
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return _Plain(found.steps * MOST_SHARING)(content)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a file") from None
    except Exception as error:  # torch and zipfile raise a different type for each kind of damage
        reason = str(error) if isinstance(error, Refused) else type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); {advice}") from error


# --- before loading -------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """What a file's pickles name, the (key, bytes) of their storages, and how many instructions they have."""

    names: set[str] = field(default_factory=set)
    storages: set[tuple[str, int]] = field(default_factory=set)
    steps: int = 0


def _check_file(path: Path) -> _Found:
    found = _Found()
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(4) == b"PK\3\4":
            _check_zip(file, size, found)
            return found
        file.seek(0)
        if _follow(file, found) != LEGACY_MAGIC:
            raise Refused("it is no file of torch.save")
        for _ in range(LEGACY_PICKLES - 1):
            _follow(file, found)
    if sum(count for _, count in found.storages) > size:
        raise Refused("it is shorter than its tensors")
    return found


def _check_zip(file: BinaryIO, size: int, found: _Found) -> None:
    """torch.save stores its entries as they are, in one folder, each once."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.lower(): entry for entry in archive.infolist()}  # torch looks for them so
        root = archive.namelist()[0].partition("/")[0] + "/" if entries else ""
        is_stored = all(not entry.compress_type and entry.filename.startswith(root) for entry in entries.values())
        length = sum(entry.file_size for entry in entries.values())
        if not is_stored or length > size or len(entries) < len(archive.infolist()) or archive.comment:
            raise Refused("it is a zip file such as torch.save never writes")
        _follow(archive.read(f"{root}data.pkl"), found)
    for key, count in found.storages:
        entry = entries.get(f"{root}data/{key}".lower())
        if entry is None or entry.file_size != count:
            raise Refused(f"its tensor data/{key} is missing or has another length")


class _Name(str):
    """Full name of a class or function."""


@dataclass(frozen=True)
class _Made:
    """What calling ``_Name`` gives; a storage has ``count`` numbers."""

    name: str
    count: int = 0


@dataclass(frozen=True, eq=False)
class _Tuple:
    items: list[Any]
    weight: int  # items, with those of tuples within


def _follow(file: Any, found: _Found) -> Any:
    """Follow one pickle without making its objects; return what it ends with: an atom, a tuple, ..., or None.

    Dicts and sets hash tuples through and through. A pickle can put a tuple twice into the next, and that twice into
    the next, ...: so the tuples' items are counted wherever they are met.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    first, met = found.steps, 0
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        found.steps += 1
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in TAKING:
            is_marked = pickletools.markobject in opcode.stack_before
            start = marks.pop() if is_marked else len(stack) - len(opcode.stack_before)
            if start < (marks[-1] if marks else 0):
                raise Refused("its pickle is damaged")
            taken = stack[start:]
            del stack[start:]
            weight = sum(item.weight if isinstance(item, _Tuple) else 1 for item in taken)
            met += weight
            if met > MOST_SHARING * (found.steps - first):
                raise Refused("its tuples lie in one another without end")
            if not (is_marked and name in FILLING):  # there, what is filled stays on the stack
                stack.append(_Tuple(taken, weight + 1) if name in TUPLES else _made(name, argument, taken, found))
        elif name != "PROTO":
            raise Refused(f"its pickle has the instruction {name}, which torch.save never writes")
    return None


def _made(opcode: str, argument: Any, taken: list[Any], found: _Found) -> Any:
    """What an instruction makes of the values it takes, as far as :func:`_follow` must know."""
    if opcode in ATOMS:
        return argument
    if opcode == "GLOBAL":
        module, _, name = argument.partition(" ")
        full = _Name(f"{PYTHON_2.get(module, module)}.{PYTHON_2.get(name, name)}")  # torch.save writes the old names
        found.names.add(str(full))
        return full
    if opcode == "BINPERSID":
        return _storage(taken[0], found)
    if opcode in ("REDUCE", "NEWOBJ"):
        name, arguments = taken
        if not isinstance(name, _Name) or not isinstance(arguments, _Tuple):
            raise Refused("it calls what is no function")
        _check_call(name, arguments.items)
        return _Made(name)
    target = taken[0] if taken else None
    if opcode == "BUILD" and isinstance(target, _Made) and target.name.startswith("torch."):
        # The first releases of torch made parameters so: of the tensor and four values of its history.
        is_parameter = target.name == PARAMETER and len(taken[1].items) == 5
        if not is_parameter:
            raise Refused("it changes a tensor")
    return target


def _storage(identity: Any, found: _Found) -> _Made:
    items = identity.items if isinstance(identity, _Tuple) else []
    is_count = len(items) in (5, 6) and type(items[4]) is int and items[4] >= 0
    if not is_count or items[0] != "storage" or items[1] not in ITEM_SIZES:
        raise Refused("it has tensors of an unknown type")
    found.storages.add((str(items[2]), ITEM_SIZES[items[1]] * items[4]))
    return _Made("storage", items[4])


def _check_call(name: str, arguments: list[Any]) -> None:
    if name in REBUILD:
        storage, offset, size, stride = arguments[:4]
        numbers = [offset, *size.items, *stride.items]
        if storage.name != "storage" or any(type(number) is not int or number < 0 for number in numbers):
            raise Refused("its tensors are damaged")
        last = offset + sum((side - 1) * step for side, step in zip(size.items, stride.items, strict=True))
        count = math.prod(size.items)
        if count and max(count, last + 1) > storage.count:
            raise Refused("its tensors are larger than what it holds of them")
    if name == "_codecs.encode" and arguments[1:] != ["latin1"]:  # other encodings take hours for some texts
        raise Refused("its bytes are damaged")


# --- while loading --------------------------------------------------------------------------------------------------


class _StandIn:
    """Whatever its arguments, an ordered dict that any attributes, and any entries, can be given to."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        made: OrderedDict[Any, Any] = OrderedDict()
        vars(made)["_stands_in"] = True
        return made


class _DType:
    """Stands for ``numpy.dtype``: numbers in this machine's byte order."""

    def __init__(self, kind: str, *_: Any) -> None:
        if kind not in NUMPY_KINDS:
            raise Refused(f"it has a NumPy array of type {kind}")
        self.kind = kind

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in "<|" or state[2:5] != (None, None, None):
            raise Refused("it has a NumPy array of another byte order")


class _Array:
    """Stands for ``numpy.ndarray``."""

    tensor: Tensor | None = None

    def __init__(self, *_: Any) -> None:
        """Empty, as ``_reconstruct`` begins."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        values = np.frombuffer(data, dtype.kind).reshape(shape, order="F" if is_fortran else "C")
        self.tensor = torch.from_numpy(values.copy())


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.kind).item()


_NUMPY: dict[str, Any] = {"numpy.ndarray": _Array, "numpy.dtype": _DType}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _NUMPY |= {f"{_module}._reconstruct": _Array, f"{_module}.scalar": _scalar}


# --- after loading --------------------------------------------------------------------------------------------------


class _Plain:
    """Copies of what was loaded, of exact types; at most ``most`` values."""

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, value: Any, above: tuple[int, ...] = ()) -> Any:
        """``above``: identities of the containers that the value lies in."""
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, _Array):
            return value.tensor
        if id(value) in above or not isinstance(value, dict | list | set | tuple):
            return None
        self.left -= 1 + len(value)
        if self.left < 0 or len(above) > DEEPEST:
            raise Refused("its values lie in one another without end")
        above = (*above, id(value))
        if not isinstance(value, dict):
            items = [self(item, above) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        entries = dict.items(value)  # an attribute may hide its own
        attributes = vars(value) if isinstance(value, OrderedDict) else {}
        if "_stands_in" in attributes:
            carried = [attributes[name] for name in ("_content", "_val") if name in attributes]
            if carried:
                return self(carried[0], above)
            entries = entries or {name: item for name, item in attributes.items() if str(name)[:1] != "_"}.items()
            if not entries:
                return None
        return {key: self(item, above) for key, item in entries if isinstance(key, str | int | float)}
