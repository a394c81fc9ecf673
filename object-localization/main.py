"""Object localization: one box per image, and CorLoc; ``python main.py --help``."""

from spectralseg.doors import object_localization

if __name__ == "__main__":
    object_localization()
