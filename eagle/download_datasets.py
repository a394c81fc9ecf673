"""Fetch a data set; ``python download_datasets.py --help``."""

from eagleseg.commands.download_datasets import main

if __name__ == "__main__":
    main()
