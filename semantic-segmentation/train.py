"""Self-training on pseudo-labels; ``python train.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from semanticseg.self_training import main

if __name__ == "__main__":
    main()
