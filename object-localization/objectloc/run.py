"""A run over a data set: find the boxes that are missing, compare all of them with the ground truth, write results."""

import contextlib
import copy
import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from objectloc.ground_truth import DataSet
from objectloc.localize import BOXES, MASKS, PICTURES, SUFFIX, data_set, localize_all, made_from, read
from objectloc.options import ARCHITECTURES, CONVNETS, DataOptions, DetectorOptions, ResultOptions
from objectloc.scores import Scores, note_problem, read_boxes, read_truth, write_results
from spectralseg.errors import ImagesFailed, InputError, printable
from spectralseg.files.storage import list_ids, make_folder, remove_leftovers
from spectralseg.progress import say
from spectralseg.running.stage import Stage, rank_and_world_size


def run(results: ResultOptions, data: DataOptions, detector: DetectorOptions) -> None:
    """Find all boxes, compare them with the ground truth, and write what came of it."""
    for precomputed in (detector.precomputed_eigs_dir, detector.precomputed_features_dir):
        if precomputed:
            list_ids(precomputed, ".pth")  # a wrong folder is said once, not for every image
    images = data_set(data)
    folder = Path(results.output_dir) / images.name / (results.name or default_name(detector))
    if detector.objects:
        from objectloc.average_precision import evaluate_objects

        print(as_lines(evaluate_objects(Path(detector.objects), images, folder)), f"results -> {folder}", sep="\n")
        return
    runs = [(detector, folder)]
    if detector.mode == "tokencut" and len(detector.tau) > 1:
        taus = dict.fromkeys(detector.tau)
        runs = [(replace(detector, tau=(tau,)), folder.with_name(f"{folder.name}-tau_{tau:g}")) for tau in taus]
    for _, own in list(runs):
        if results.skip_if_exists and (own / "results.txt").exists():
            print(f"{own / 'results.txt'} is there already: {(own / 'results.txt').read_text().strip()}")
            runs = [run for run in runs if run[1] != own]
    if not runs:
        return
    settings = [made_from(options) for options, _ in runs]
    if str(settings[0].get("weights")).startswith("random"):
        say("localize: RANDOM weights: the boxes mean nothing")
    if data.dataset == "folder":  # two folders may share a name
        settings = [each | {"images": str(images.root.resolve())} for each in settings]
    evaluate = not results.no_evaluation and images.find_boxes is not None
    truth = Scores()
    ids = read_truth(images, truth) if evaluate else sorted(images.files)
    problems = find_boxes(results, data, runs, settings, ids)
    errors = []
    for (_, own), made, failed in zip(runs, settings, problems, strict=True):
        try:
            _finish(results, data, images, own, made, ids, copy.deepcopy(truth), failed)
        except InputError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _finish(
    results: ResultOptions,
    data: DataOptions,
    images: DataSet,
    folder: Path,
    settings: dict[str, Any],
    ids: Sequence[str],
    scores: Scores,
    failed: dict[str, str],
) -> None:
    """Compare the boxes of a folder with the annotated ones, and write what came of it."""
    scores.problems |= failed
    evaluate = not results.no_evaluation and images.find_boxes is not None
    missing = read_boxes(images, [image_id for image_id in ids if image_id not in scores.problems], folder, scores)
    if missing and rank_and_world_size()[1] > 1:
        say(
            f"localize: {len(missing)} boxes are the other processes' work; when all have ended, the same command "
            "without a launcher writes the results"
        )
        if scores.problems:
            raise InputError(f"{len(scores.problems)} images could not be handled: see the lines above")
        return
    for image_id in missing:
        note_problem(scores, image_id, "its box was deleted meanwhile")
    write_results(folder, scores, settings, results.save_predictions)
    report(scores, folder, evaluate, bool(data.image_path))


def as_lines(results: dict[str, Any]) -> str:
    """The scores of :func:`objectloc.average_precision.evaluate_objects`, a line each for boxes and masks."""
    lines = [
        f"CorLoc of the best box {results['corloc']:.2f} %, {results['found']} objects in {results['images']} images"
    ]
    for kind, scores in results["scores"].items():
        values = " ".join(f"{name} {scores[name]:.2f}" for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100"))
        lines.append(f"{kind}: {values}")
    return "\n".join(lines)


def find_boxes(
    results: ResultOptions,
    data: DataOptions,
    runs: Sequence[tuple[DetectorOptions, Path]],
    settings: Sequence[dict[str, Any]],
    ids: Sequence[str],
) -> list[dict[str, str]]:
    """Run detectors on the images that have no box yet, which are read once for all of them.

    Return, for each, id -> problem of those that could not be handled.
    """
    # Pictures are drawn, and masks written, where boxes are found.
    anew = results.overwrite or results.visualize is not None or results.save_masks
    read.cache_clear()  # files may have changed since an earlier run
    stages, pending = [], []
    for (_, folder), made in zip(runs, settings, strict=True):
        remove_leftovers(folder, below=True)
        if results.visualize:
            make_folder(folder / PICTURES)
        if results.save_masks:
            make_folder(folder / MASKS)
        stages.append(Stage("localize", folder / BOXES, SUFFIX, made, anew))
        pending.append(stages[-1].begin(ids))
    for number, stage in enumerate(stages):
        work = functools.partial(localize_all, data, runs[number:], results)
        stage.run(work, pending[number], _processes(results.num_workers, runs[number][0]))
        with contextlib.suppress(ImagesFailed):
            stage.finish()
    return [stage.failures for stage in stages]


def default_name(detector: DetectorOptions) -> str:
    """Mode and features, for the folder of results."""
    if detector.mode == "trivial":
        return f"trivial-{detector.trivial}"
    if detector.objects:
        return "objects-" + re.sub(r"[^\w.-]", "_", Path(detector.objects).resolve().parent.name)
    source = detector.precomputed_eigs_dir or detector.precomputed_features_dir
    if source:
        parts = [part for part in Path(source).resolve().parts[-2:] if part != "/"]
        return re.sub(r"[^\w.-]", "_", "-".join([detector.mode, *parts]))
    features = detector.arch
    if detector.arch in ARCHITECTURES and detector.arch not in CONVNETS:
        features += f"{detector.patch_size}"
    if "resnet" in detector.arch:
        features += f"_dilate{detector.resnet_dilate}"
    return f"{detector.mode}-{features}_{detector.which_features}"


def _processes(asked: int, detector: DetectorOptions) -> int:
    """Processes to use; a GPU serves one."""
    if asked > 1 and detector.needs_model:
        from objectloc.patch_models import load_model

        if load_model(detector.of_patches).device.type != "cpu":
            say("localize: features are computed on a GPU, by one process")
            return 0
    return asked


def report(scores: Scores, folder: Path, evaluate: bool, single: bool) -> None:
    """Say what came of it; exit status 1 if images could not be handled."""
    if single and scores.rows:
        _, box, _ = next(iter(scores.rows.values()))
        print(f"box (xmin, ymin, xmax, ymax): {', '.join(f'{side:g}' for side in box)}")
    elif evaluate and scores.rows:
        print(f"CorLoc {scores.corloc:.2f} % ({scores.correct} of {len(scores.rows)} images)")
    if scores.without_objects:
        some = ", ".join(scores.without_objects[:3]) + (", ..." if len(scores.without_objects) > 3 else "")
        print(f"{len(scores.without_objects)} images without objects are left out: {printable(some)}")
    print(f"{len(scores.rows)} boxes -> {folder}")
    if single and scores.problems:
        raise InputError(*scores.problems.values())
    if scores.problems:
        total = len(scores.rows) + len(scores.problems)
        raise InputError(
            f"{len(scores.problems)} of {total} images could not be handled: see {folder / 'results.json'}"
        )
    if not scores.rows:
        raise InputError("no image has an annotated object" if evaluate else "there is no image")
