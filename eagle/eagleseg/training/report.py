"""Reports of validations: a line of metrics.jsonl, scalars and pictures in the log, a line on the terminal."""

import sys
from collections.abc import Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from eagleseg.data.dataset import EagleDataset, to_picture
from eagleseg.evaluation.pictures import rows_of_labels
from eagleseg.evaluation.scores import ProbeCounts, as_classes, scores
from eagleseg.training.run_folder import RunFolder
from eagleseg.training.validation import Sample
from spectralseg.drawing.charts import confusion_picture
from spectralseg.training.logs import Log

TAGS = {  # as published, where it logs the same
    "cluster_released_miou": "test/cluster/mIoU",
    "cluster_released_accuracy": "test/cluster/Accuracy",
    "cluster_strict_miou": "test/cluster_strict/mIoU",
    "cluster_strict_accuracy": "test/cluster_strict/Accuracy",
    "linear_miou": "test/linear/mIoU",
    "linear_accuracy": "test/linear/Accuracy",
}


def figures(counts: ProbeCounts | None, class_names: Sequence[str]) -> dict[str, float]:
    """mIoU and accuracy in percent of each probe, such as ``cluster_released_miou``; none without labels."""
    results = {} if counts is None else scores(counts, class_names)
    return {f"{name}_{score}": result[score] for name, result in results.items() for score in ("miou", "accuracy")}


def report(
    metrics: dict[str, Any],
    counts: ProbeCounts | None,
    samples: Sequence[Sample],
    dataset: EagleDataset,
    run: RunFolder,
    log: Log,
) -> None:
    """Write the results of a validation; for the main process alone.

    Parameters
    ----------
    metrics
        The line of metrics.jsonl: ``step``, ``loss`` and :func:`figures`.
    counts, samples
        Of :func:`eagleseg.training.validation.validate`.
    dataset
        The one that was validated on.
    run, log
        Where the report goes.
    """
    step = metrics["step"]
    run.add_metrics(metrics)
    scalars = {TAGS[name]: value for name, value in metrics.items() if name in TAGS}
    pictures = {}
    if counts is not None:
        names, confusion = dataset.class_names, counts.confusions()["cluster_strict"]
        pictures["confusion"] = confusion_picture(confusion[:, :-1], [*names, "(unmatched)"], names, f"step {step}")
        for kind, sums in (("label", counts.cluster.sum(axis=0)), ("cluster", counts.cluster.sum(axis=1))):
            shares = sums / max(1, sums.sum())
            scalars |= {f"frequency/{kind}_{number:02d}": float(share) for number, share in enumerate(shares)}
    if samples:
        pictures["predictions"] = _predictions(samples, dataset, counts)
    log.scalars(scalars, step)
    for kind, picture in pictures.items():
        run.save_picture(f"step_{step:06d}_{kind}", picture)
        log.picture(kind, picture, step)
    figures_of = (
        f"; {probe} mIoU {metrics[f'{name}_miou']:.2f}, accuracy {metrics[f'{name}_accuracy']:.2f}"
        for probe, name in (("cluster", "cluster_released"), ("linear", "linear"))
    )
    text = f"step {step}: loss {metrics['loss']:.4f}" + ("" if counts is None else "".join(figures_of))
    tqdm.write(text, file=sys.stderr)


def _predictions(samples: Sequence[Sample], dataset: EagleDataset, counts: ProbeCounts | None) -> Image.Image:
    """A row per image; with labels, clusters have the colours of their classes."""
    columns = {caption: [sample.maps[caption] for sample in samples] for caption in samples[0].maps}
    if counts is not None:
        columns["cluster"] = [as_classes(clusters, counts.match()) for clusters in columns["cluster"]]
    photographs = [to_picture(dataset[sample.index]["img"]) for sample in samples]
    return rows_of_labels(photographs, columns, [dataset.ids[sample.index] for sample in samples])
