"""Self-training; ``self_training.py`` says how to run it."""

from pathlib import Path

from semanticseg.self_training import train
from spectralseg.running.hydra_app import run

if __name__ == "__main__":
    run(train, Path(__file__).resolve().parents[1], "semantic-segmentation/train")
