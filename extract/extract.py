"""The extract stage: images to features, eigenvectors, masks, ...; ``python extract.py --help``."""

from spectralseg.commands.cli import main

if __name__ == "__main__":
    main()
