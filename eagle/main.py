"""Evaluate trained models: the same as eval_segmentation.py."""

from eval_segmentation import CONFIG, PROJECT, main
from spectralseg.running.hydra_app import run

if __name__ == "__main__":
    run(main, PROJECT, CONFIG)
