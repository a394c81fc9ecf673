"""Progress bars and lines for the user."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from spectralseg.errors import printable

SECONDS = 0.2  # between redraws


def progress_bar(items: Iterable[Any] | None = None, disable: bool = False, **options: Any) -> tqdm:
    """A ``tqdm`` bar, on a terminal; where stderr is a file, or nobody's, there is none."""
    return tqdm(items, mininterval=SECONDS, disable=disable or not sys.stderr.isatty(), **options)


def say(message: object) -> None:
    """A line on stderr, above a progress bar if there is one; names of files in it are made printable here."""
    tqdm.write(printable(message), file=sys.stderr)
