"""Evaluate trained models; ``python eval_segmentation.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from eagleseg.commands.evaluate import main

if __name__ == "__main__":
    main()
