"""Make a published checkpoint a plain file; ``python convert_checkpoint.py --help``."""

from spectralseg.doors import eagle_convert_checkpoint

if __name__ == "__main__":
    eagle_convert_checkpoint()
