"""Predictions of a trained model on whole images: validation, and label maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from semanticseg.pseudolabels import Labelled, Labels, pair, read_ids
from semanticseg.run_folder import BEST, load_model
from semanticseg.settings import TrainSettings
from spectralseg.errors import InputError
from spectralseg.files.images import find_images, load_image, to_tensor
from spectralseg.files.label_maps import load_labels, save_labels
from spectralseg.mathematics.matching import confusion_matrix
from spectralseg.models.weights import fingerprint
from spectralseg.progress import phase, progress_bar
from spectralseg.running.stage import Stage
from spectralseg.running.workers import read_ahead


@torch.no_grad()
def predict(model: nn.Module, image: Image.Image, accelerator: Accelerator) -> Labels:
    """Class of each pixel, (H, W) uint8, at the image's own size. The model must be in evaluation mode."""
    pixels = to_tensor(image)[None].to(accelerator.device)
    with accelerator.autocast():
        logits = model(pixels)
    return logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


@phase("validation")
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
    pairs = read_ahead(lambda entry: (load_image(entry.image), load_labels(entry.truth)), share, threads=1)
    quiet = not accelerator.is_main_process
    bar = progress_bar(pairs, total=len(share), desc="validation", unit="image", leave=False, disable=quiet)
    for entry, (image, truth) in zip(share, bar, strict=True):
        try:
            confusion += confusion_matrix(predict(model, image, accelerator), truth, num_classes, num_classes)
        except InputError as error:
            raise InputError(f"{entry.truth}: {error}") from None
    model.train(training)
    return accelerator.reduce(torch.from_numpy(confusion).to(accelerator.device), "sum").cpu().numpy()


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
    wanted, val_list = settings.generate_list, content.get("val_list")
    if wanted is None and val_list is not None and val_list != str(Path(settings.data.val_list).resolve()):
        raise InputError(
            f"{path} was validated on {val_list}, not on data.val_list={settings.data.val_list}: set data.val_list to "
            "that, or generate_list to the list that is meant"
        )
    ids = list(images) if wanted == "all" else read_ids(wanted or settings.data.val_list)
    pair(ids, images)
    output = folder / "predictions" if settings.generate_dir is None else Path(settings.generate_dir)
    arguments = {"checkpoint": fingerprint(path), "step": content["step"], "model": content["settings"]["model"]}
    arguments["mixed_precision"] = settings.mixed_precision
    stage = Stage("generate", output, ".png", arguments, settings.overwrite)

    def read(image_id: str) -> Image.Image | InputError:
        try:
            return load_image(images[image_id])
        except InputError as error:
            return error

    with stage.working():
        pending = stage.begin(ids)
        for image_id, image in zip(pending, read_ahead(read, pending, threads=1), strict=True):
            if isinstance(image, InputError):
                stage.failed(image_id, str(image))
            else:
                save_labels(stage.output(image_id), predict(model, image, accelerator))
                stage.done(image_id)
    stage.finish()
