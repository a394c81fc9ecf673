"""Evaluation of one binary mask per image; ``python main.py --help``."""

from spectralseg.doors import object_segmentation

if __name__ == "__main__":
    object_segmentation()
