"""Command lines: what a user can mend is one line on stderr and exit status 1."""

import argparse
import contextlib
import re
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from spectralseg.errors import InputError, OutputError, did_you_mean, printable
from spectralseg.progress import VERBOSE, be_verbose, details, tell_settings

INTERRUPTED = 130  # exit status, as shells have it


def finish(work: Callable[[], None]) -> None:
    """Do the work of a command; its errors and Ctrl-C end it with one line."""
    try:
        with _ctrl_c_counted() as pressed, details():
            work()
    except (InputError, OutputError) as error:
        sys.exit(f"error: {printable(error)}")
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, Exception) and not pressed:
            raise
        print("\ninterrupted: the same command goes on where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextlib.contextmanager
def _ctrl_c_counted() -> Iterator[list[int]]:
    """One entry for each Ctrl-C: an import of numpy that it interrupts may end in an error of another kind."""
    pressed: list[int] = []

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()  # not so in Streamlit
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored by nohup
        yield pressed
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def tell_flags(command: str, values: Mapping[str, Any], given: Collection[str]) -> None:
    """Tell the settings of a command whose ``verbose`` says so: those that were given, then the others."""
    if values.get("verbose"):
        be_verbose()
        tell_settings(command, "given", {name: value for name, value in values.items() if name in given})
        tell_settings(command, "default", {name: value for name, value in values.items() if name not in given})


def to_bool(text: str) -> bool:
    """``true``, ``1``, ``yes``, ``false``, ``0``, ``no`` in upper or lower case; a KeyError for anything else."""
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.strip().lower()]


class Parser(argparse.ArgumentParser):
    """An argument parser that shows the script's documentation and complains in one line."""

    def __init__(self, documentation: str | None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=documentation, formatter_class=form, allow_abbrev=False)
        self.add_argument("--verbose", action="store_true", help=VERBOSE)

    def error(self, message: str) -> NoReturn:
        """End with the message."""
        sys.exit(f"error: {message}")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """As ``parse_args``, but an unknown flag is answered with the one that was probably meant."""
        argv = sys.argv[1:] if argv is None else list(argv)
        for before, argument in zip(["a flag", *argv], argv, strict=False):
            if not argument or re.fullmatch(r"--\w+=", argument):  # an empty path would be the current folder
                self.error(f"{argument or before} needs a value".replace("=", ""))
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"no flag {unknown[0]}{did_you_mean(unknown[0].partition('=')[0], known)}")
        actions = [self._option_string_actions.get(argument.partition("=")[0]) for argument in argv]
        tell_flags(self.prog, vars(namespace), {action.dest for action in actions if action is not None})
        return namespace


def add_settings(group: argparse._ActionsContainer, kind: type, texts: dict[str, str]) -> None:
    """A flag for each of some fields of a dataclass of settings, with their help; type and default are the field's."""
    declared, hints = {one.name: one for one in fields(kind)}, typing.get_type_hints(kind)
    for name, text in texts.items():
        default, hint = declared[name].default, hints[name]
        options: dict[str, Any] = {"default": default, "help": text}
        if hint is bool:
            options |= {"action": "store_true"} if default is False else {"nargs": "?", "const": True, "type": _truth}
        else:
            kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            if typing.get_origin(hint) is tuple:
                kinds = (_several(typing.get_args(hint)[0]),)
            options |= {"type": kinds[0], "choices": declared[name].metadata.get("choices")}
        group.add_argument(f"--{name}", **options)


def _several(kind: type) -> Callable[[str], tuple[Any, ...]]:
    def values(text: str) -> tuple[Any, ...]:
        return tuple(kind(one) for one in text.split(","))

    values.__name__ = f"list of {kind.__name__}"  # what argparse calls it
    return values


def _truth(text: str) -> bool:
    try:
        return to_bool(text)
    except KeyError:
        raise argparse.ArgumentTypeError(f"takes True or False, not '{text}'") from None
