"""Fire's command line, with everything checked before anything starts.

Fire itself, which shows the help, runs a command first and complains about an unknown flag afterwards, and passes any
text for a number. Here flags are compared with the command's signature, values are converted by its type hints, and
what users can mend is one line on stderr and exit status 1.
"""

import contextlib
import functools
import inspect
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from spectralseg.errors import InputError, did_you_mean
from spectralseg.progress import VERBOSE
from spectralseg.running.arguments import finish, tell_flags, to_bool
from spectralseg.running.workers import start_server

Command = Callable[..., None]


def with_verbose(command: Command) -> Command:
    """The command with a flag ``verbose`` more, in its signature and its documentation."""
    signature, flag = inspect.signature(command), inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*signature.parameters.values(), flag.replace(default=False, annotation=bool)]

    @functools.wraps(command)
    def wrapped(*, verbose: bool = False, **given: Any) -> None:
        defaults = {name: one.default for name, one in signature.parameters.items() if one.default is not one.empty}
        tell_flags(command.__name__, defaults | given | {"verbose": verbose}, {"verbose", *given})
        command(**given)

    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = command.__annotations__ | {"verbose": bool}
    wrapped.__doc__ = f"{(command.__doc__ or '').rstrip()}\n        verbose: {VERBOSE.capitalize()}.\n    "
    return wrapped


def main(commands: Sequence[Command], argv: Sequence[str] | None = None) -> None:
    """Run one of ``commands`` with the arguments of the command line; exits with status 1 on an error."""
    table = {command.__name__: command for command in commands}
    finish(lambda: _main(table, list(sys.argv[1:] if argv is None else argv)))


def _main(table: dict[str, Command], argv: list[str]) -> None:
    if not argv or {"--help", "-h"} & set(argv):
        shown = [name for name in argv[:1] if name in table]  # and no flags: Fire would run a complete command
        import fire

        with contextlib.redirect_stderr(sys.stdout):  # so that it can be paged
            fire.Fire(table, command=[*shown, "--help"], name=_name())
        return
    if argv[0] not in table:
        raise InputError(f"no command '{argv[0]}'{did_you_mean(argv[0], table)}; commands: {', '.join(table)}")
    call = _call(table[argv[0]], argv[1:])
    if call.keywords.get("multiprocessing"):
        start_server()
    call()


def _name() -> str:
    return os.path.basename(sys.argv[0])


def _call(command: Command, arguments: Sequence[str]) -> functools.partial[None]:
    """The command with the arguments of a command line, each of its parameter's type, ready to be called."""
    parameters = inspect.signature(command).parameters
    flags, positional = _flags_and_positional(command, arguments)
    unset = [name for name in parameters if name not in flags]
    if len(positional) > len(unset):
        raise InputError(f"{command.__name__}: cannot make use of '{positional[len(unset)]}'")
    flags |= dict(zip(unset, positional, strict=False))
    missing = [f"--{name}" for name, p in parameters.items() if p.default is p.empty and name not in flags]
    if missing:
        raise InputError(f"{command.__name__} needs {', '.join(missing)} (see {_name()} {command.__name__} --help)")
    hints = typing.get_type_hints(command)
    return functools.partial(command, **{name: _convert(name, text, hints[name]) for name, text in flags.items()})


def _flags_and_positional(command: Command, arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Texts of the flags by parameter, and those that belong to none; flags are known and have their values."""
    parameters = inspect.signature(command).parameters
    rest, flags, positional = list(arguments), {}, []
    while rest:
        argument = rest.pop(0)
        if not _is_flag(argument) and argument != "-":
            positional.append(argument)
            continue
        match = re.match(r"--?([A-Za-z][\w-]*)(=.*)?$", argument, flags=re.DOTALL)
        if match is None:
            raise InputError(f"cannot read the argument '{argument}'")
        flag, value = match[1].replace("-", "_"), match[2] and match[2][1:]
        alone = value is None and (not rest or _is_flag(rest[0]))
        initials = [name for name in parameters if name[0] == flag]  # Fire's short flags: -m for --multiprocessing
        negated = flag.removeprefix("no").lstrip("_") if flag.startswith("no") else ""
        if flag not in parameters and len(initials) == 1:
            flag = initials[0]
        elif flag not in parameters and negated in parameters and _is_switch(parameters[negated]):
            if not alone:
                raise InputError(f"--{flag} takes no value")
            flag, value = negated, "False"
        if flag not in parameters:
            raise InputError(
                f"{command.__name__} has no flag {argument.partition('=')[0]}{did_you_mean(flag, parameters, '--')}"
            )
        if alone and value is None:
            value = "True" if _is_switch(parameters[flag]) else ""
        flags[flag] = rest.pop(0) if value is None else value
        if not flags[flag]:  # an empty path would be the current folder
            raise InputError(f"--{flag} needs a value")
    return flags, positional


def _is_flag(argument: str) -> bool:
    """As Fire sees it: -3 is a number, and -x after a flag is another flag, not its value."""
    return re.match(r"--|-[A-Za-z]", argument) is not None


def _is_switch(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.default, bool)


def _convert(name: str, text: str, hint: Any) -> Any:
    """Text of the command line to the type of a parameter; several types (``int | None``) are tried in turn."""
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
    def convert_all(text: str) -> tuple[Any, ...]:
        values = tuple(convert(part.strip(" '\"")) for part in text.strip("()[] ").split(",") if part.strip())
        if not values:
            raise ValueError(text)
        return values

    return convert_all


_CONVERTERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: _to_float,
    bool: to_bool,
    type(None): _to_none,
    tuple[int, ...]: _to_list(int),
    tuple[float, ...]: _to_list(_to_float),
    tuple[str, ...]: _to_list(str),
}
_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    type(None): "None",
    tuple[int, ...]: "whole numbers separated by commas",
    tuple[float, ...]: "numbers separated by commas",
    tuple[str, ...]: "names separated by commas",
}
