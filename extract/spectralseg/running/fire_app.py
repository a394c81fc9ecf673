"""A Fire command line that checks everything before it starts anything.

Fire alone runs a command first and complains about an unknown flag afterwards, and passes any text for a number. Here
flags are compared with the command's signature, values are converted by its type hints, and what users can mend is
one line on stderr and exit status 1.
"""

import contextlib
import functools
import inspect
import io
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import fire

from spectralseg.errors import InputError
from spectralseg.running.arguments import did_you_mean, finish, to_bool
from spectralseg.running.workers import start_server

Command = Callable[..., None]


def main(commands: Sequence[Command], argv: Sequence[str] | None = None) -> None:
    """Run one of ``commands`` with the arguments of the command line; exits with status 1 on an error."""
    table = {command.__name__: command for command in commands}
    finish(lambda: _main(table, list(sys.argv[1:] if argv is None else argv)))


def _main(table: dict[str, Command], argv: list[str]) -> None:
    if not argv or {"--help", "-h"} & set(argv):
        shown = [name for name in argv[:1] if name in table]  # and no flags: Fire would run a complete command
        with contextlib.redirect_stderr(sys.stdout):  # so that it can be paged
            fire.Fire(table, command=[*shown, "--help"], name=_name())
        return
    if argv[0] not in table:
        raise InputError(f"no command '{argv[0]}'{did_you_mean(argv[0], table)}; commands: {', '.join(table)}")
    argv[1:] = _checked_flags(table[argv[0]], argv[1:])
    for call in _parse(table, argv):
        if call.keywords.get("multiprocessing"):
            start_server()
        call()


def _name() -> str:
    return os.path.basename(sys.argv[0])


def _parse(table: dict[str, Command], argv: Sequence[str]) -> list[functools.partial[None]]:
    """What the command line asks for, ready to be called. Fire's complaints (a page each) become one line."""
    calls: list[functools.partial[None]] = []
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            fire.Fire({name: _deferred(command, calls) for name, command in table.items()}, command=argv, name=_name())
    except fire.core.FireExit as stop:
        raise InputError(f"{argv[0]}: {stop.trace.elements[-1].ErrorAsStr()}") from None
    return calls


def _checked_flags(command: Command, arguments: Sequence[str]) -> list[str]:
    """The arguments as Fire takes them (``--no-overwrite`` as ``--nooverwrite``): flags known and with their values."""
    parameters = inspect.signature(command).parameters
    arguments, flags = list(arguments), set()
    for index, argument in enumerate(arguments):
        if not _is_flag(argument):
            if argument == "-":  # would end the arguments, for Fire
                raise InputError("cannot read the argument '-'")
            continue
        match = re.match(r"--?([A-Za-z][\w-]*)(=.*)?$", argument, flags=re.DOTALL)
        if match is None:
            raise InputError(f"cannot read the argument '{argument}'")
        flag = match[1].replace("-", "_")
        alone = match[2] is None and (index + 1 == len(arguments) or _is_flag(arguments[index + 1]))
        initials = [name for name in parameters if name[0] == flag]  # Fire's short flags: -m for --multiprocessing
        negated = flag.removeprefix("no").lstrip("_") if flag.startswith("no") else ""
        if flag not in parameters and len(initials) == 1:
            flag = initials[0]
        elif flag not in parameters and negated in parameters and _is_switch(parameters[negated]):
            if not alone:
                raise InputError(f"--{flag} takes no value")
            flag, arguments[index] = negated, f"--no{negated}"
        if flag not in parameters:
            raise InputError(
                f"{command.__name__} has no flag {argument.partition('=')[0]}{did_you_mean(flag, parameters, '--')}"
            )
        if alone and not _is_switch(parameters[flag]):
            raise InputError(f"--{flag} needs a value")
        flags.add(flag)
    positional = _count_positional(arguments)
    required = [name for name, p in parameters.items() if p.default is p.empty]
    missing = [f"--{name}" for name in [n for n in required if n not in flags][positional:]]
    if missing:
        raise InputError(f"{command.__name__} needs {', '.join(missing)} (see {_name()} {command.__name__} --help)")
    return arguments


def _is_flag(argument: str) -> bool:
    """As Fire sees it: -3 is a number, and -x after a flag is another flag, not its value."""
    return re.match(r"--|-[A-Za-z]", argument) is not None


def _is_switch(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.default, bool)


def _count_positional(arguments: Sequence[str]) -> int:
    """Arguments that are neither a flag nor the value after a flag."""
    count, after_flag = 0, False
    for argument in arguments:
        count += not _is_flag(argument) and not after_flag
        after_flag = _is_flag(argument) and "=" not in argument
    return count


def _deferred(command: Command, calls: list[functools.partial[None]]) -> Command:
    """A stand-in with the same signature and help that notes the call; Fire then finds nothing left to complain of."""

    @functools.wraps(command)
    def note(*args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(command).bind(*args, **kwargs)
        hints = typing.get_type_hints(command)
        values = {name: _convert(name, value, hints[name]) for name, value in bound.arguments.items()}
        calls.append(functools.partial(command, **values))

    return fire.decorators.SetParseFn(str)(note)  # text in, so that a folder called 2012 stays '2012'


def _convert(name: str, text: Any, hint: Any) -> Any:
    """Text of the command line to the type of a parameter; several types (``int | None``) are tried in turn."""
    if not isinstance(text, str):
        return text  # a default
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    options = sorted(
        typing.get_args(hint) if union else (hint,), key=lambda option: option is not type(None)
    )  # 'None' is None before it is a text
    for option in options:
        try:
            return _CONVERTERS[option](text)
        except (ValueError, KeyError):
            continue
    wanted = " or ".join(_WORDS[option] for option in options)
    raise InputError(f"--{name} takes {wanted}, not '{text}'")


def _to_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _to_none(text: str) -> None:
    if text.strip().lower() not in ("none", "null"):
        raise ValueError(text)


def _to_list(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(convert(part.strip(" '\"")) for part in text.strip("()[] ").split(",") if part.strip())


_CONVERTERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: _to_float,
    bool: to_bool,
    type(None): _to_none,
    tuple[int, ...]: _to_list(int),
    tuple[str, ...]: _to_list(str),
}
_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    type(None): "None",
    tuple[int, ...]: "whole numbers separated by commas",
    tuple[str, ...]: "names separated by commas",
}
