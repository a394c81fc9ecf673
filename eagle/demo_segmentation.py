"""Segment a folder of photographs; ``python demo_segmentation.py --help``."""

from spectralseg.doors import eagle_demo

if __name__ == "__main__":
    eagle_demo()
