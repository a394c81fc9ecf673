"""Train EAGLE; ``python train_segmentation_eigen.py --help``."""

from eagleseg.commands.train import main

if __name__ == "__main__":
    main()
