"""Fetch backbones and checkpoints; ``python download_models.py --help``."""

from eagleseg.commands.download_models import main

if __name__ == "__main__":
    main()
