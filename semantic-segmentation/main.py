"""Evaluation of semantic label maps; ``python main.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from semanticseg.evaluation import main

if __name__ == "__main__":
    main()
