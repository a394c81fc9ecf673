"""Reports of a self-training: lines on the terminal, the log, and pictures at its end."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm import tqdm

from semanticseg.deeplab import parameter_counts
from semanticseg.prediction import predict
from semanticseg.pseudolabels import Labelled, Labels
from semanticseg.run_folder import TrainingRun
from semanticseg.scores import as_table, save_confusion, save_overlays, scores
from semanticseg.settings import TrainSettings
from spectralseg.progress import say
from spectralseg.training.logs import Log


class Report:
    """The log of a run, and what its main process prints and draws."""

    def __init__(self, settings: TrainSettings, run: TrainingRun, accelerator: Accelerator) -> None:
        self.settings, self.run, self.accelerator = settings, run, accelerator
        self.first_step = 0 if run.state is None else run.state["step"]
        project = "tensorboard" if settings.logger == "tensorboard" else "semantic-segmentation"  # a folder; a name
        self.log = Log(accelerator, settings.logger, project, settings.name, self.first_step)

    def start(self, network: nn.Module, results: dict[str, Any], images: int, validation: int) -> None:
        """Print what is trained on how many images; ``results`` has ``weights``, ``pseudo_labels``, ``matching``."""
        if not self.accelerator.is_main_process:
            return
        model, origin, pseudo = self.settings.model, results["weights"], results["pseudo_labels"]
        whole, trained = parameter_counts(network)
        processes = self.accelerator.num_processes
        print(
            f"{model.name} on {model.backbone} ({origin}): {whole / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of"
            f" them train; {images} images to train on, {validation} to validate; {processes}"
            f" process{'es' if processes > 1 else ''} on {self.accelerator.device.type}"
        )
        if origin.startswith("random"):
            say(f"note: {model.backbone} has RANDOM weights: it knows nothing of images yet")
        if pseudo is not None:
            print(f"pseudo-labels of the validation images: mIoU {100 * pseudo['miou']:.2f}")
            print(f"matching='\"{results['matching']}\"'")
        if self.run.state is not None:
            print(f"going on at step {self.first_step} of {self.settings.max_train_steps}")

    def step(self, step: int, loss: float, lr: float) -> None:
        """Log a step, every ``log_every``."""
        if step % self.settings.log_every == 0:
            self.log.scalars({"train/loss": loss, "train/lr": lr}, step)

    def evaluation(self, entry: dict[str, Any], is_best: bool) -> None:
        """Log and print an entry of the history."""
        step, loss = entry["step"], entry["loss"]
        scalars = {f"val/{name}": entry[name] for name in ("miou", "miou_all_classes", "accuracy")}
        self.log.scalars(scalars | ({} if loss is None else {"train/mean_loss": loss}), step)
        if self.accelerator.is_main_process:
            learned = "" if loss is None else f"loss {loss:.4f}, "
            text = f"step {step}, epoch {entry['epoch']}: {learned}mIoU {100 * entry['miou']:.2f}, accuracy"
            tqdm.write(f"{text} {100 * entry['accuracy']:.2f}{' (best)' if is_best else ''}", file=sys.stdout)

    def end(
        self, confusion: NDArray[np.int64], results: dict[str, Any], model: nn.Module, validation: Sequence[Labelled]
    ) -> None:
        """Write results.json, draw pictures, print the table of the classes, and close the log.

        ``confusion`` (classes, classes) is that of the last evaluation, rows predicted; ``results`` has the history.
        """
        if self.accelerator.is_main_process:
            names, folder = self.settings.data.names(), self.run.folder
            result = scores(confusion, names)
            best = max(results["history"], key=lambda entry: entry["miou"])
            self.run.write_results(results | {"final": result, "best": best})
            save_confusion(folder / "confusion.png", confusion, names, f"mIoU {100 * result['miou']:.2f}")
            model.eval()

            def draw(_: Labelled, photograph: Image.Image) -> Labels:
                return predict(model, photograph, self.accelerator)

            save_overlays(folder / "overlays", validation, self.settings.visualize, names, draw)
            print(as_table(result))
            print(f"best: mIoU {100 * best['miou']:.2f} at step {best['step']}")
            print(f"results -> {folder}")
        self.log.close()
