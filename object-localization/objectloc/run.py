"""A run over a data set: find the boxes that are missing, compare all of them with the ground truth, write results."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from objectloc.localize import BOXES, MASKS, PICTURES, SUFFIX, data_set, localize, made_from
from objectloc.options import ARCHITECTURES, CONVNETS, DataOptions, DetectorOptions, ResultOptions
from objectloc.scores import Scores, note_problem, read_boxes, read_truth, write_results
from spectralseg.errors import ImagesFailed, InputError, printable
from spectralseg.files.storage import list_ids, make_folder
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
    if results.skip_if_exists and (folder / "results.txt").exists():
        print(f"{folder / 'results.txt'} is there already: {(folder / 'results.txt').read_text().strip()}")
        return
    settings = made_from(detector)
    if str(settings.get("weights")).startswith("random"):
        say("localize: RANDOM weights: the boxes mean nothing")
    if data.dataset == "folder":  # two folders may share a name
        settings["images"] = str(images.root.resolve())
    evaluate = not results.no_evaluation and images.find_boxes is not None
    scores = Scores()
    ids = read_truth(images, scores) if evaluate else sorted(images.files)
    scores.problems |= find_boxes(results, data, detector, settings, folder, ids)
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
    detector: DetectorOptions,
    settings: dict[str, Any],
    folder: Path,
    ids: Sequence[str],
) -> dict[str, str]:
    """Run the detector on the images that have no box yet; return id -> problem of those that could not be handled."""
    if results.visualize:
        make_folder(folder / PICTURES)
    if results.save_masks:
        make_folder(folder / MASKS)
    # Pictures are drawn, and masks written, where boxes are found.
    anew = results.overwrite or results.visualize is not None or results.save_masks
    stage = Stage("localize", folder / BOXES, SUFFIX, settings, anew)
    work = functools.partial(localize, data, detector, results, folder)
    stage.run(work, stage.begin(ids), _processes(results.num_workers, detector))
    try:
        stage.finish()
    except ImagesFailed as error:
        return error.failures
    return {}


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

        if load_model(detector).device.type != "cpu":
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
