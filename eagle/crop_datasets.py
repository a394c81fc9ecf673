"""Cut the images of a data set into crops; ``python crop_datasets.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from eagleseg.commands.crop import main

if __name__ == "__main__":
    main()
