"""Backbones, features, methods and their settings on one data set; ``python compare.py --help``."""

from spectralseg.doors import object_localization_compare

if __name__ == "__main__":
    object_localization_compare()
