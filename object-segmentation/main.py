"""Evaluation of one binary mask per image; ``python main.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from objectseg.evaluation import main

if __name__ == "__main__":
    main()
