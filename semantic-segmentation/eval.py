"""The evaluation under its published name: the same as main.py."""

from spectralseg.doors import semantic_segmentation

if __name__ == "__main__":
    semantic_segmentation()
