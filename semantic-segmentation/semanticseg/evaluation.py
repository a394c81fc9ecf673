r"""Evaluate semantic label maps against true masks: clusters are matched to classes, then IoU per class.

    cd semantic-segmentation
    python main.py segments_dir=../data/VOC2012/semantic_segmentations/patches/laplacian/segmaps

Clusters as many as classes: one to one, Hungarian on the IoU matrix. Otherwise: each cluster to the class of its
largest IoU. The match is printed and can be passed on, here or to train.py, as matching=... Pixels whose truth is 255
do not count. Figures of several K-means seeds, with mean and spread:

    python main.py 'segments_dir=../data/VOC2012/semantic_segmentations/patches/laplacian/segmaps_%' seeds=[0,1,2,3,4]

Settings are explained in configs/semantic-segmentation/base.yaml and eval.yaml. Writes into the run folder
(outputs/semantic-segmentation/evaluation, or what hydra.run.dir=... says) results.json, confusion.png and overlays/;
of several seeds, these into seed<N>/, and seeds.json.
"""

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image

from semanticseg.matches import read_match, renaming
from semanticseg.pseudolabels import Labelled, Labels, pair, read_ids, read_segments, sharpen
from semanticseg.scores import as_table, save_confusion, save_overlays, scores
from semanticseg.settings import Data, EvalSettings
from spectralseg import __version__
from spectralseg.errors import InputError
from spectralseg.files.images import find_images
from spectralseg.files.label_maps import load_labels
from spectralseg.files.storage import make_folder, save_json
from spectralseg.mathematics.matching import Match, apply_match, confusion_matrix, match_clusters
from spectralseg.progress import phase, progress_bar
from spectralseg.running.hydra_app import run, run_folder, to_settings
from spectralseg.running.stage import describe, rank_and_world_size
from spectralseg.running.workers import read_ahead


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run(evaluate, "semantic-segmentation/eval", argv)


def evaluate(config: DictConfig) -> None:
    """The whole evaluation: pairs all files first, so that one that is missing is named before the work begins."""
    settings = to_settings(config, EvalSettings)
    data, names = settings.data, settings.data.names()
    given = read_match(settings.matching, data.clusters, data.classes)
    ids = read_ids(data.val_list)
    images = find_images(data.images_dir, depth=0) if settings.visualize or settings.crf else None
    segments = settings.require_segments()
    folders: dict[int | None, str] = {seed: segments.replace("%", str(seed)) for seed in settings.seeds or ()}
    folders = folders or {None: segments}
    for folder in folders.values():
        pair(ids, images, data.masks_dir, folder)
    output = make_folder(run_folder())
    results: dict[str, dict[str, Any]] = {}
    about = {"settings": asdict(settings), "spectralseg": __version__}
    for seed, folder in folders.items():
        place = output if seed is None else make_folder(output / f"seed{seed}")
        made_by = describe(folder)
        if settings.crf and images is not None:
            target = place / "crf" if settings.crf_dir is None else Path(settings.crf_dir.replace("%", str(seed)))
            folder = sharpen(data, images, ids, folder, target, settings.crf_processes, settings.crf_backend)
        files = pair(ids, images, data.masks_dir, folder)
        counts = count(files, data, settings.enlarge)
        match = match_clusters(counts) if given is None else given
        confusion = apply_match(counts, match)
        kind = "given" if given is not None else "hungarian" if data.clusters == data.classes else "majority"
        result = scores(confusion, names) | {"images": len(files), "matching": match, "matched_by": kind}
        result["segments"] = {"folder": folder, "made_with": None if made_by is None else made_by["arguments"]}
        save_json(place / "results.json", result | about)
        results[str(seed)] = result
        save_confusion(place / "confusion.png", confusion, names, f"mIoU {100 * result['miou']:.2f}")
        save_overlays(place / "overlays", files, settings.visualize, names, _drawn_by(match, settings))
        _print_one(folder, seed, result, names)
    if settings.seeds is not None:
        save_json(output / "seeds.json", _over_seeds(results) | about)
    print(f"results -> {output}")


@phase("counting pixels")
def count(files: Sequence[Labelled], data: Data, enlarge: str = "patches") -> NDArray[np.int64]:
    """Pixels of each cluster in each class, (clusters, classes), over all images; no more than a few are in memory.

    ``enlarge``: see :func:`semanticseg.pseudolabels.at_pixels`.

    Raises
    ------
    InputError
        A file does not fit; it is named.
    """

    def count_one(entry: Labelled) -> NDArray[np.int64]:
        truth = load_labels(entry.truth)
        height, width = truth.shape
        labels = read_segments(entry.segments, height, width, data.clusters, enlarge)
        try:
            return confusion_matrix(labels, truth, data.clusters, data.classes)
        except InputError as error:
            wrong = entry.segments if str(error).startswith("cluster") else entry.truth
            raise InputError(f"{wrong}: {error}") from None

    counts = np.zeros((data.clusters, data.classes), dtype=np.int64)
    counted = read_ahead(count_one, files, threads=min(data.loader.num_workers, os.cpu_count() or 1))
    others = rank_and_world_size()[0] > 0
    for one in progress_bar(counted, desc="evaluation", total=len(files), unit="image", disable=others):
        counts += one
    return counts


def _drawn_by(match: Match, settings: EvalSettings) -> Any:
    table, clusters = renaming(match), settings.data.clusters

    def predict(entry: Labelled, photograph: Image.Image) -> Labels:
        return table[read_segments(entry.segments, photograph.height, photograph.width, clusters, settings.enlarge)]

    return predict


def _print_one(folder: str, seed: int | None, result: dict[str, Any], names: Sequence[str]) -> None:
    clusters: dict[str, list[int]] = {name: [] for name in names}
    for cluster, label in result["matching"]:
        clusters[names[label]].append(cluster)
    print(f"{folder}: {result['images']} images{'' if seed is None else f', seed {seed}'}")
    print(as_table(result, clusters))
    print(f"matching='\"{result['matching']}\"'\n")


def _over_seeds(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds, printed and returned with the results of each."""
    content: dict[str, Any] = {"seeds": results, "mean": {}, "standard_deviation": {}}
    width = max(len("seed"), *map(len, results))
    print(f"{'seed'.ljust(width)}    mIoU  accuracy")
    for seed, result in results.items():
        print(f"{seed.ljust(width)}  {100 * result['miou']:6.2f}    {100 * result['accuracy']:6.2f}")
    for name in ("miou", "miou_all_classes", "accuracy"):
        values = [result[name] for result in results.values()]
        content["mean"][name] = statistics.mean(values)
        content["standard_deviation"][name] = statistics.stdev(values) if len(values) > 1 else 0.0
    mean, deviation = content["mean"], content["standard_deviation"]
    print(
        f"mIoU {100 * mean['miou']:.2f} +- {100 * deviation['miou']:.2f}, accuracy {100 * mean['accuracy']:.2f} +-"
        f" {100 * deviation['accuracy']:.2f} (mean and standard deviation over {len(results)} seeds)\n"
    )
    return content
