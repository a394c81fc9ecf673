"""Errors that a user can mend. The command line prints them as one line and exits with status 1."""

from collections.abc import Iterable


class InputError(ValueError):
    """Something given to a command is wrong or absent; the message says what, and what to do."""


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise an :class:`InputError` that lists what is known, if ``value`` of the argument ``name`` is not among it."""
    if value not in known:
        raise InputError(f"no {name} '{value}'; known are {', '.join(known)}")


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
