"""Progress bars, on a terminal and in log files."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_ON_TERMINAL, SECONDS_IN_LOG = 0.2, 30  # between redraws


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A ``tqdm`` bar that redraws often on a terminal, and now and then where stderr is a file."""
    seconds = SECONDS_ON_TERMINAL if sys.stderr.isatty() else SECONDS_IN_LOG
    return tqdm(items, mininterval=seconds, **options)
