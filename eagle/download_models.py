"""Fetch backbones and checkpoints; ``python download_models.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from eagleseg.commands.download_models import main

if __name__ == "__main__":
    main()
