"""Command lines of the scripts without a config: complaints are one line and exit status 1."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from spectralseg.errors import InputError, OutputError


class Parser(argparse.ArgumentParser):
    """An argument parser that shows the script's documentation and complains in one line."""

    def __init__(self, documentation: str | None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=documentation, formatter_class=form, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """End with the message."""
        sys.exit(f"error: {message}")


def finish(work: Callable[[], None]) -> None:
    """Do the work of a script; its errors end it with one line."""
    try:
        work()
    except (InputError, OutputError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
