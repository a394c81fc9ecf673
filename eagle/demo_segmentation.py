"""Segment a folder of photographs; ``python demo_segmentation.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from eagleseg.commands.demo import main

if __name__ == "__main__":
    main()
