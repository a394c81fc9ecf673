"""Self-training on pseudo-labels; ``python train.py --help``."""

from spectralseg.doors import semantic_segmentation_train

if __name__ == "__main__":
    semantic_segmentation_train()
