"""Evaluation of semantic label maps; ``python main.py --help``."""

from spectralseg.doors import semantic_segmentation

if __name__ == "__main__":
    semantic_segmentation()
