"""Train EAGLE; ``python train_segmentation_eigen.py --help``."""

from spectralseg.doors import eagle_train

if __name__ == "__main__":
    eagle_train()
