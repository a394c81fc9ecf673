"""Object localization: one box per image, and CorLoc; ``python main.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from objectloc.command import main

if __name__ == "__main__":
    main()
