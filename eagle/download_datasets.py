"""Fetch a data set; ``python download_datasets.py --help``."""

from spectralseg.doors import eagle_download_datasets

if __name__ == "__main__":
    eagle_download_datasets()
