"""Evaluate trained models; ``python eval_segmentation.py --help``."""

from spectralseg.doors import eagle_eval

if __name__ == "__main__":
    eagle_eval()
