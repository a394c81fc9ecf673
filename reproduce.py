"""Rows of the papers' tables, each by one command; ``python reproduce.py --list``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "extract"))

from spectralseg.doors import reproduce

if __name__ == "__main__":
    reproduce()
