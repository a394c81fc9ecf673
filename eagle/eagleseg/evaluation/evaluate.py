"""Evaluation of a trained model: both probes, flip averaging, dense CRF, both metric protocols.

Source: Kim et al., EAGLE, CVPR 2024, and Hamilton et al., STEGO, ICLR 2022. Images stream: what is kept of the data set
is one matrix of counts per probe.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eagleseg.checkpoints.trained import Trained
from eagleseg.data.dataset import EagleDataset, to_picture
from eagleseg.evaluation.pictures import rows_of_labels
from eagleseg.evaluation.probabilities import cluster_log_probabilities, image_code, linear_logits
from eagleseg.evaluation.scores import NAMES, ProbeCounts, as_classes, scores
from spectralseg.drawing.charts import confusion_picture
from spectralseg.errors import InputError
from spectralseg.files.label_maps import save_labels
from spectralseg.files.storage import make_folder, save_picture
from spectralseg.mathematics.crf import BACKENDS, EAGLE_CRF, CrfSettings, refine_probabilities
from spectralseg.progress import phase, progress_bar
from spectralseg.running.workers import stream
from spectralseg.settings import Settings, setting
from spectralseg.training.batches import read_batches


@dataclass
class EvaluationOptions(Settings):
    """How to evaluate; ``configs/eagle/eval_config.yml`` explains the entries."""

    batch_size: int = setting(8, least=1)
    num_workers: int = setting(4, least=0)
    flip: bool = True
    run_crf: bool = True
    crf_processes: int = setting(0, least=0)
    crf_backend: str = setting("auto", choices=BACKENDS)
    save_predictions: bool = False
    pictures: int = setting(8, least=0)


@dataclass
class Probabilities:
    """Of one image: RGB (H, W, 3) uint8 and log-probabilities (clusters or classes, H, W) float32 by probe.

    The latter are arrays on their way to another process, or tensors on the device where the CRF computes.
    """

    image: NDArray[np.uint8]
    probes: dict[str, NDArray[np.float32] | Tensor]


@phase("evaluation")
def evaluate(trained: Trained, dataset: EagleDataset, options: EvaluationOptions, folder: Path) -> dict[str, Any]:
    """Predict all images of a labelled data set, write the results into ``folder`` and return the scores in percent.

    Raises
    ------
    InputError
        The data set has no labels, or other classes than the model.
    """
    model = trained.model
    n_classes, n_clusters = len(model.linear_probe.weight), len(model.cluster_probe.clusters)
    if not dataset.has_labels:
        raise InputError(f"{dataset.name} has no labels to compare with; demo_segmentation.py predicts without")
    if dataset.n_classes != n_classes:
        raise InputError(f"{dataset.name} has {dataset.n_classes} classes, the model was trained for {n_classes}")
    make_folder(folder)
    counts = ProbeCounts(n_clusters, n_classes)
    shown: dict[int, dict[str, NDArray]] = {}
    wanted = set(np.linspace(0, len(dataset) - 1, min(options.pictures, len(dataset))).round().astype(int).tolist())
    maps = predictions(trained, dataset, options)
    for index, labels, truth in progress_bar(maps, desc="evaluate", total=len(dataset), unit="image"):
        counts.add(torch.from_numpy(labels["cluster"]), torch.from_numpy(labels["linear"]), truth)
        if options.save_predictions:
            for probe, values in labels.items():
                save_labels(make_folder(folder / "predictions" / probe) / f"{dataset.ids[index]}.png", values)
        if index in wanted:
            shown[index] = {"label": truth.numpy(), **labels}
    results = scores(counts, dataset.class_names)
    _write_pictures(folder, dataset, counts, shown)
    return {"scores": results, "match": counts.match(), "images": len(dataset)}


def predictions(
    trained: Trained, dataset: EagleDataset, options: EvaluationOptions
) -> Iterator[tuple[int, dict[str, NDArray[np.uint8]], Tensor]]:
    """Index, label maps (H, W) of the probes ``cluster`` and ``linear``, truth (H, W) int64 of each image, in order."""
    truths: dict[int, Tensor] = {}
    processes = options.crf_processes if options.run_crf else 0

    def probabilities() -> Iterator[Probabilities]:
        for batch in read_batches(dataset, options.batch_size, options.num_workers):
            probes = log_probabilities_of(trained, batch["img"], options.flip)
            for row, index in enumerate(batch["index"].tolist()):
                truths[index] = batch["label"][row]
                image = np.array(to_picture(batch["img"][row]))
                yield Probabilities(image, {name: of_one(values, row, processes) for name, values in probes.items()})

    crf = eagle_crf(options.crf_backend, trained.device, processes) if options.run_crf else None
    for index, labels in enumerate(stream(functools.partial(label_maps, crf=crf), probabilities(), processes)):
        yield index, labels, truths.pop(index)


@torch.no_grad()
def log_probabilities_of(
    trained: Trained, images: Tensor, flip: bool, size: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Log-probabilities (B, clusters or classes, *size) of both probes; ``size``: by default that of the images.

    ``images`` are (B, 3, H, W) RGB in [0, 1], on any device.
    """
    model = trained.model
    size = (images.shape[-2], images.shape[-1]) if size is None else size
    images = images.to(trained.device)
    code = image_code(trained.features_of, model, images, flip)
    return {
        "cluster": cluster_log_probabilities(model, code, size),
        "linear": torch.log_softmax(linear_logits(model, code, size), dim=1),
    }


def of_one(values: Tensor, row: int, processes: int) -> NDArray[np.float32] | Tensor:
    """An image's part of a batch's log-probabilities, as the CRF in so many processes takes it."""
    return values[row].cpu().numpy() if processes else values[row]


def eagle_crf(backend: str, device: torch.device, processes: int) -> CrfSettings:
    """The published CRF, by a backend that is there; ``spectralseg.mathematics.crf.BACKENDS`` are known.

    It computes on the device of the network, or with ``processes`` above 0 on the CPU.
    """
    return replace(EAGLE_CRF, crf_backend=backend).resolved(torch.device("cpu") if processes else device)


def label_maps(probabilities: Probabilities, crf: CrfSettings | None) -> dict[str, NDArray[np.uint8]]:
    """The most likely label (H, W) of each pixel, after the dense CRF if there is one."""
    maps = {}
    for name, given in probabilities.probes.items():
        values = torch.as_tensor(given)
        image = torch.from_numpy(probabilities.image).to(values.device)
        sharp = values if crf is None else refine_probabilities(image, values, crf)
        maps[name] = sharp.argmax(dim=0).byte().cpu().numpy()
    return maps


def _write_pictures(
    folder: Path, dataset: EagleDataset, counts: ProbeCounts, shown: dict[int, dict[str, NDArray]]
) -> None:
    match, names = counts.match(), list(dataset.class_names)
    for maps in shown.values():
        maps["cluster"] = as_classes(maps["cluster"], match)
    pictures: dict[str, Image.Image] = {}
    for key, confusion in counts.confusions().items():
        rows = [*names, "(unmatched)"][: len(confusion)]
        pictures[f"confusion_{key}"] = confusion_picture(confusion[:, : len(names)], rows, names, NAMES[key])
    if shown:
        photographs = [to_picture(dataset[index]["img"]) for index in shown]
        columns = {caption: [maps[caption] for maps in shown.values()] for caption in ("label", "linear", "cluster")}
        pictures["predictions"] = rows_of_labels(photographs, columns, [dataset.ids[index] for index in shown])
    for name, picture in pictures.items():
        save_picture(folder / f"{name}.png", picture)
