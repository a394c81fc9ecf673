"""Errors that a user can mend. The command line prints them as one line and exits with status 1."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given to a command is wrong or absent; the message says what, and what to do."""


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise an :class:`InputError` that lists what is known, if ``value`` of the argument ``name`` is not among it."""
    if value not in known:
        raise InputError(f"no {name} '{value}'; known are {', '.join(known)}")


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`` (did you mean ...?)`` with the known words that hold ``word`` (in either spelling of colour), or one like it.

    The empty text where there is none.
    """
    spellings = {name.lower(): name for name in known}
    word = word.lower().replace("colour", "color")
    close = [name for name in spellings if word in name.split("_")][:3] if word not in spellings else []
    close = close or difflib.get_close_matches(word, spellings, n=1)
    return f" (did you mean {' or '.join(prefix + spellings[name] for name in close)}?)" if close else ""


def printable(text: object) -> str:
    """Text in one line, as a terminal shows it: what is no printable character (in a file's name) as an escape."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(text))


def some_of(names: list[str], count: int = 3) -> str:
    """The first of some names, and how many more there are, for a message of one line."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


class OutputError(OSError):
    """A result cannot be written (full disk, read-only folder): the whole command stops, nothing is half-written."""


class ImagesFailed(InputError):
    """Some images of a stage could not be handled; the others were. ``failures``: id -> reason."""

    def __init__(self, message: str, failures: dict[str, str]) -> None:
        super().__init__(message)
        self.failures = failures
