"""Fetch a data set; ``python download_datasets.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from eagleseg.commands.download_datasets import main

if __name__ == "__main__":
    main()
