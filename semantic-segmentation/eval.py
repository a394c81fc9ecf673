"""The evaluation under its published name: the same as main.py."""

import spectralseg.running.ctrl_c  # noqa: F401
from semanticseg.evaluation import main

if __name__ == "__main__":
    main()
