"""Train EAGLE; ``python train_segmentation_eigen.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from eagleseg.commands.train import main

if __name__ == "__main__":
    main()
