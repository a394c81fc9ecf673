"""Fetch backbones and checkpoints; ``python download_models.py --help``."""

from spectralseg.doors import eagle_download_models

if __name__ == "__main__":
    eagle_download_models()
