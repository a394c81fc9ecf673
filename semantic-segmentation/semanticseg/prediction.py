"""Predictions of a trained model on whole images: validation, and label maps."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm import tqdm

from semanticseg.pseudolabels import Labelled, Labels, pair, read_ids
from semanticseg.run_folder import BEST, load_model
from semanticseg.settings import TrainSettings
from spectralseg.errors import InputError
from spectralseg.files.images import find_images, load_image, to_tensor
from spectralseg.files.label_maps import load_labels, save_labels
from spectralseg.mathematics.matching import confusion_matrix
from spectralseg.models.weights import fingerprint
from spectralseg.running.stage import Stage
from spectralseg.running.workers import read_ahead


@torch.no_grad()
def predict(model: nn.Module, image: Image.Image, accelerator: Accelerator) -> Labels:
    """Class of each pixel, (H, W) uint8, at the image's own size. The model must be in evaluation mode."""
    pixels = to_tensor(image)[None].to(accelerator.device)
    with accelerator.autocast():
        logits = model(pixels)
    return logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


def validate(
    model: nn.Module, files: Sequence[Labelled], num_classes: int, accelerator: Accelerator
) -> NDArray[np.int64]:
    """Confusion matrix (classes, classes), rows predicted, of all images, one at a time at original resolution.

    Each process does its share; all get the sum.
    """
    training = model.training
    model.eval()
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    share = files[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(total=len(share), desc="validation", unit="image", leave=False, disable=_quiet(accelerator))
    with bar:
        for entry, image, truth in read_ahead(_read, share, threads=1):
            labels = predict(model, image, accelerator)
            try:
                confusion += confusion_matrix(labels, truth, num_classes, num_classes)
            except InputError as error:
                raise InputError(f"{entry.truth}: {error}") from None
            bar.update()
    model.train(training)
    return accelerator.reduce(torch.from_numpy(confusion).to(accelerator.device), "sum").cpu().numpy()


def _read(entry: Labelled) -> tuple[Labelled, Image.Image, Labels]:
    return entry, load_image(entry.image), load_labels(entry.truth)


def _quiet(accelerator: Accelerator) -> bool:
    """Whether to draw no progress bar: only the main process does, on a terminal."""
    return not (accelerator.is_main_process and sys.stderr.isatty())


def generate(settings: TrainSettings, folder: Path, accelerator: Accelerator) -> None:
    """Write the predictions of a checkpoint as label maps <id>.png of class numbers; those that exist are kept.

    Raises
    ------
    InputError
        No checkpoint or image, or the folder holds predictions of another model.
    """
    path = folder / BEST if settings.checkpoint is None else Path(settings.checkpoint)
    if not path.is_file():
        raise InputError(f"no such checkpoint: {path}; train one, or name another with checkpoint=...")
    model, content = load_model(path)
    model.to(accelerator.device).eval()
    images = find_images(settings.data.images_dir, depth=0)
    files = pair(_ids(settings, images), images)
    output = folder / "predictions" if settings.generate_dir is None else Path(settings.generate_dir)
    arguments = {"checkpoint": fingerprint(path), "step": content["step"], "model": content["settings"]["model"]}
    arguments["mixed_precision"] = settings.mixed_precision
    stage = Stage("generate", output, ".png", arguments, settings.overwrite)
    by_id = {entry.id: entry for entry in files}
    with stage.working():
        for image_id, image in _read_each(stage.begin(by_id), by_id, stage):
            save_labels(stage.output(image_id), predict(model, image, accelerator))
            stage.done(image_id)
    stage.finish()


def _read_each(ids: Sequence[str], files: dict[str, Labelled], stage: Stage) -> Iterator[tuple[str, Image.Image]]:
    """Images, read ahead; one that cannot be read is reported to the stage and left out."""

    def read(image_id: str) -> tuple[str, Image.Image | None, str]:
        try:
            return image_id, load_image(files[image_id].image), ""
        except InputError as error:
            return image_id, None, str(error)

    for image_id, image, problem in read_ahead(read, ids, threads=1):
        if image is None:
            stage.failed(image_id, problem)
        else:
            yield image_id, image


def _ids(settings: TrainSettings, images: dict[str, Path]) -> list[str]:
    if settings.generate_list == "all":
        return list(images)
    return read_ids(settings.generate_list or settings.data.val_list)
