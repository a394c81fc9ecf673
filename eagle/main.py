"""Evaluate trained models: the same as eval_segmentation.py."""

import spectralseg.running.ctrl_c  # noqa: F401
from eagleseg.commands.evaluate import main

if __name__ == "__main__":
    main()
