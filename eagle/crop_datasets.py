"""Cut the images of a data set into crops; ``python crop_datasets.py --help``."""

from spectralseg.doors import eagle_crop_datasets

if __name__ == "__main__":
    eagle_crop_datasets()
