"""Cut the images of a data set into crops; ``python crop_datasets.py --help``."""

from eagleseg.commands.crop import main

if __name__ == "__main__":
    main()
