"""Make a published checkpoint a plain file; ``python convert_checkpoint.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from eagleseg.commands.convert import main

if __name__ == "__main__":
    main()
