"""A Fire command line that checks everything before it starts anything.

Fire alone runs a command first and complains about an unknown flag afterwards, and passes any text for a number. Here
flags are compared with the command's signature, values are converted by its type hints, and what users can mend is
one line on stderr and exit status 1.
"""

import difflib
import functools
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import fire

from spectralseg.errors import InputError, OutputError

Command = Callable[..., None]


def main(commands: Sequence[Command], argv: Sequence[str] | None = None) -> None:
    """Run one of ``commands`` with the arguments of the command line; exits with status 1 on an error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    table = {command.__name__: command for command in commands}
    try:
        if argv and not argv[0].startswith("-"):
            _check_command(table, argv[0])
            if not {"--help", "-h"} & set(argv):
                _check_flags(table[argv[0]], argv[1:])
            else:
                fire.Fire(table, command=argv, name=_name())  # prints the help, and exits
        calls: list[Callable[[], None]] = []
        fire.Fire({name: _deferred(command, calls) for name, command in table.items()}, command=argv, name=_name())
        for call in calls:
            call()
    except (InputError, OutputError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def _name() -> str:
    return os.path.basename(sys.argv[0])


def _check_command(table: dict[str, Command], name: str) -> None:
    if name not in table:
        raise InputError(f"no command '{name}'{_guess(name, table)}; commands: {', '.join(table)}")


def _check_flags(command: Command, arguments: Sequence[str]) -> None:
    parameters = inspect.signature(command).parameters
    flags = {}
    for index, argument in enumerate(arguments):
        match = re.match(r"--?([A-Za-z][\w-]*)(=.*)?$", argument, flags=re.DOTALL)
        if match and (argument.startswith("--") or match[1] in parameters):
            flags[match[1].replace("-", "_")] = index
        elif argument.startswith("--"):
            raise InputError(f"cannot read the argument '{argument}'")
    for flag in flags:
        known = flag in parameters or (flag.startswith("no") and flag[2:].lstrip("_") in parameters)
        if not known:
            raise InputError(f"{command.__name__} has no flag --{flag}{_guess(flag, parameters, '--')}")
    positional = _count_positional(arguments)
    required = [name for name, p in parameters.items() if p.default is p.empty]
    missing = [f"--{name}" for name in [n for n in required if n not in flags][positional:]]
    if missing:
        raise InputError(f"{command.__name__} needs {', '.join(missing)} (see {_name()} {command.__name__} --help)")


def _count_positional(arguments: Sequence[str]) -> int:
    """Arguments that are neither a flag nor the value after a flag."""
    count, after_flag = 0, False
    for argument in arguments:
        is_flag = re.match(r"--?[A-Za-z]", argument) is not None
        count += not is_flag and not after_flag
        after_flag = is_flag and "=" not in argument
    return count


def _guess(name: str, known: typing.Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _deferred(command: Command, calls: list[Callable[[], None]]) -> Command:
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
    options = typing.get_args(hint) if union else (hint,)
    options = sorted(options, key=lambda option: option is not type(None))  # 'None' is None before it is a text
    for option in options:
        try:
            return _CONVERTERS[option](text)
        except (ValueError, KeyError):
            continue
    wanted = " or ".join(_WORDS[option] for option in options)
    raise InputError(f"--{name} takes {wanted}, not '{text}'")


def _to_bool(text: str) -> bool:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.strip().lower()]


def _to_none(text: str) -> None:
    if text.strip().lower() not in ("none", "null"):
        raise ValueError(text)


def _to_list(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(convert(part.strip(" '\"")) for part in text.strip("()[] ").split(",") if part.strip())


_CONVERTERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: _to_bool,
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
