"""The extract stage: images to features, eigenvectors, masks, ...; ``python extract.py --help``."""

from spectralseg.doors import extract

if __name__ == "__main__":
    extract()
