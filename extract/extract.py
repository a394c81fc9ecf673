"""The extract stage: images to features, eigenvectors, masks, ...; ``python extract.py --help``."""

import spectralseg.running.ctrl_c  # noqa: F401
from spectralseg.commands.cli import main

if __name__ == "__main__":
    main()
