"""Settings: default and range are declared once and checked when they are made."""

import math
from dataclasses import dataclass, replace

import pytest

from spectralseg.errors import InputError
from spectralseg.settings import Settings, check_range, setting, settings_from


@dataclass(frozen=True)
class Example(Settings):
    name: str
    count: int = setting(3, least=1, most=5)
    share: float = setting(0.5, above=0, below=1)
    kind: str | None = setting(None, choices=("round", "square"))
    size: int | None = setting(None, least=1)
    free: float = -1.0


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"count": 0}, "count=0: must be from 1 to 5"),
        ({"count": 6}, "count=6: must be from 1 to 5"),
        ({"share": 0.0}, "share=0.0: must be above 0 and below 1"),
        ({"share": 1.0}, "share=1.0: must be above 0 and below 1"),
        ({"share": math.nan}, "share=nan: must be above 0 and below 1"),
        ({"size": 0}, "size=0: must be at least 1"),
        ({"kind": "flat"}, "no kind 'flat'; known are round, square"),
    ],
)
def test_what_is_outside_is_refused(values: dict, complaint: str):
    with pytest.raises(InputError) as stop:
        Example("a", **values)
    assert str(stop.value) == complaint
    with pytest.raises(InputError):
        replace(Example("a"), **values)


def test_bounds_are_inside_and_none_is_no_number():
    for count in (1, 5):
        assert Example("a", count=count, kind="round", size=1).count == count
    assert Example("a").size is None
    check_range("anything", None, least=1)
    with pytest.raises(InputError, match="most=3: must be at most 2"):
        check_range("most", 3, most=2)


def test_settings_are_picked_from_more_values():
    assert settings_from(Example, {"name": "b", "size": 2, "overwrite": True}) == Example("b", size=2)
