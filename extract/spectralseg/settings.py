"""Settings of a command: a dataclass whose fields tell their default and range once, checked when it is made."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

from spectralseg.errors import InputError, check_choice

Kind = TypeVar("Kind")


def setting(
    default: Any = MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[Any] | None = None,
) -> Any:
    """A field of a :class:`Settings` with its default and the values that it takes; None is taken where it may be."""
    ranges = {"above": above, "least": least, "most": most, "below": below, "choices": choices}
    return field(default=default, metadata={name: value for name, value in ranges.items() if value is not None})


def check_range(name: str, value: float | None, **ranges: float) -> None:
    """Raise an :class:`InputError` that names the range, if ``value`` of ``name`` is outside (or NaN); None is inside.

    ``ranges`` are any of ``least``, ``most``, ``above`` and ``below``.
    """
    if value is None or all(_INSIDE[kind](value, bound) for kind, bound in ranges.items()):
        return
    if set(ranges) == {"least", "most"}:
        raise InputError(f"{name}={value}: must be from {ranges['least']} to {ranges['most']}")
    words = " and ".join(f"{_WORDS.get(kind, kind)} {bound}" for kind, bound in ranges.items())
    raise InputError(f"{name}={value}: must be {words}")


_INSIDE = {"least": operator.ge, "most": operator.le, "above": operator.gt, "below": operator.lt}
_WORDS = {"least": "at least", "most": "at most"}


class Settings:
    """Base of the dataclasses of settings.

    Raises
    ------
    InputError
        Names the first field whose value is outside its range, and the range.
    """

    def __post_init__(self) -> None:
        for declared in fields(self):  # type: ignore[arg-type]
            value, ranges = getattr(self, declared.name), dict(declared.metadata)
            choices = ranges.pop("choices", None)
            if choices is not None and value is not None:
                check_choice(declared.name, value, choices)
            check_range(declared.name, value, **ranges)


def settings_from(kind: Callable[..., Kind], values: Mapping[str, Any]) -> Kind:
    """Settings of a kind from more values than it has, such as all arguments of a command."""
    return kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})  # type: ignore[arg-type]
