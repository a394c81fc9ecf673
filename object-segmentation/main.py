"""Evaluation of one binary mask per image; ``objectseg/evaluation.py`` says how to run it."""

from pathlib import Path

from objectseg.evaluation import evaluate
from spectralseg.running.hydra_app import run

if __name__ == "__main__":
    run(evaluate, Path(__file__).resolve().parents[1], "object-segmentation/eval")
