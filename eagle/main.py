"""Evaluate trained models: the same as eval_segmentation.py."""

from spectralseg.doors import eagle_eval

if __name__ == "__main__":
    eagle_eval()
