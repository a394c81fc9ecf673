"""Segment a folder of photographs; ``python demo_segmentation.py --help``."""

from eagleseg.commands.demo import main

if __name__ == "__main__":
    main()
