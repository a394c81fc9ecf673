"""Progress bars, on a terminal and in log files."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from spectralseg.errors import printable

SECONDS_ON_TERMINAL, SECONDS_IN_LOG = 0.2, 30  # between redraws


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A ``tqdm`` bar that redraws often on a terminal, and now and then where stderr is a file."""
    seconds = SECONDS_ON_TERMINAL if sys.stderr.isatty() else SECONDS_IN_LOG
    return tqdm(items, mininterval=seconds, **options)


def say(message: object) -> None:
    """A line on stderr, above a progress bar if there is one; names of files in it are made printable here."""
    tqdm.write(printable(message), file=sys.stderr)
