"""Object localization: one box per image, and how often it is right (CorLoc).

    python main.py --eigenseg --precomputed_eigs_dir ../data/VOC2012/eigs/laplacian --dataset VOC12 --name example_eigs
    python main.py --dataset VOC07                                   # LOST, on the spot
    python main.py --tokencut --dataset folder --images_root ../photographs --annotations ../photographs/boxes.csv
    python main.py --eigenseg --image_path ../data/samples/images/chelsea.jpg
    python main.py --objects ../data/VOC2007/objects/maskcut/objects.json --dataset VOC07 --set test

Without a mode flag the boxes are LOST's. Results lie in <output_dir>/<dataset>_<set>/<name>: results.txt, preds.pkl and
gt.pkl as in the published code, boxes.csv and results.json with every image's box and IoU, boxes/ with a file per
image. Started again, the same command goes on where it stopped. With --objects: results.json with COCO's AP and AR,
objects.csv, precision_recall.png.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from objectloc.options import ARCHITECTURES, COMPUTED, DataOptions, DetectorOptions, ResultOptions
from spectralseg.errors import InputError, check_choice
from spectralseg.files.places import project_folder
from spectralseg.running.arguments import Parser, add_settings, finish
from spectralseg.settings import settings_from

IMAGES = {
    "dataset": "default: VOC07; folder: one's own images",
    "set": "default: trainval (COCO20k is a part of train)",
    "data_root": "where VOC2007, VOC2012 and COCO lie (data/)",
    "images_root": "folder of the images of --dataset folder",
    "annotations": "their boxes: CSV (file,xmin,ymin,xmax,ymax) or COCO JSON",
    "image_path": "a single image instead of a data set, without evaluation",
    "no_hard": "VOC: leave out truncated and difficult objects",
}
DETECTOR = {
    "k_patches": "LOST: patches of lowest degree",
    "gram_bias": "LOST: added to F F' of the features as they are; negative: fewer patches are similar",
    "dinoseg_head": "DINO-seg: head of the attention",
    "dinoseg_mended": "DINO-seg: consider all components, of which the published code leaves out the last",
    "tau": "TokenCut: least cosine of an edge; several, separated by commas, each into a folder NAME-tau_0.1",
    "which_matrix": "eigenseg; infer: as the files say; on the spot local with lab_graph, else laplacian",
    "foreground": "eigenseg: sign of an eigenvector; ranking by 3 eigenvectors or more; robust, of lab_graph's colours",
}
FEATURES = {
    "arch": f"{', '.join(ARCHITECTURES)}, or a model_name of extract.py (LOST alone takes CNNs)",
    "patch_size": "16 or 8; CNNs: images are padded to it",
    "which_features": "k, q, v, or out: the last block's output after the final norm; of files also k_block_-2, ...",
    "resnet_dilate": "dilation of ResNet-50",
    "weights": "path or address of a checkpoint, or random; default: the published one",
    "precomputed_features_dir": "output folder of extract_features",
    "precomputed_eigs_dir": "eigenseg: output folder of extract_eigs",
    "device": "auto, cpu, cuda, cuda:1, ...",
}
RESULTS = {
    "output_dir": "default: outputs",
    "name": "folder of the results; default: mode and features",
    "skip_if_exists": "do nothing where results.txt is there already",
    "overwrite": "find boxes anew that are there already",
    "no_evaluation": "boxes alone, no ground truth",
    "save_predictions": "preds.pkl, gt.pkl (default: True)",
    "save_masks": "masks/<id>.png at the size of the images, which object segmentation evaluates",
    "visualize": "a PNG for each image; a single image has pred by default",
    "num_workers": "processes with one thread each (also --multiprocessing)",
}


def build_parser() -> Parser:
    """All flags, with their defaults."""
    parser = Parser(__doc__)
    add_settings(parser.add_argument_group("images"), DataOptions, IMAGES)
    parser.set_defaults(data_root=str(project_folder() / "data"))
    mode = parser.add_argument_group("mode (default: LOST)").add_mutually_exclusive_group()
    mode.add_argument("--eigenseg", action="store_true", help="Deep Spectral Methods")
    mode.add_argument("--dinoseg", action="store_true", help="attention of [CLS]")
    mode.add_argument("--tokencut", action="store_true", help="normalised cut of a binary graph")
    trivial = "the image, or 70 %% of each of its sides"
    objects = "evaluate a file of several objects per image, as of extract_objects: AP and AR of boxes and masks"
    add_settings(mode, DetectorOptions, {"trivial": trivial, "objects": objects})
    add_settings(parser.add_argument_group("detector"), DetectorOptions, DETECTOR)
    add_settings(parser.add_argument_group("features"), DetectorOptions, FEATURES)
    results = parser.add_argument_group("results")
    add_settings(results, ResultOptions, RESULTS)
    results.add_argument("--multiprocessing", type=int, dest="num_workers", help=argparse.SUPPRESS)
    return parser


def read_arguments(argv: Sequence[str] | None = None) -> tuple[ResultOptions, DataOptions, DetectorOptions]:
    """The command line, checked.

    Raises
    ------
    InputError
        Flags that do not go together.
    """
    flags = vars(build_parser().parse(argv))
    modes = [mode for mode in ("eigenseg", "dinoseg", "tokencut", "trivial", "objects") if flags[mode]]
    flags["mode"] = modes[0] if modes else "lost"
    if flags["dataset"] == "COCO20k" and flags["set"] not in ("train", "trainval"):
        raise InputError(f"--set {flags['set']}: COCO20k is a part of train2014")
    data, detector = settings_from(DataOptions, flags), settings_from(DetectorOptions, flags)
    if detector.precomputed_eigs_dir and detector.mode != "eigenseg":
        raise InputError("--precomputed_eigs_dir is for --eigenseg; the other modes take --precomputed_features_dir")
    if detector.precomputed_eigs_dir and detector.precomputed_features_dir:
        raise InputError("give --precomputed_eigs_dir or --precomputed_features_dir, not both")
    if detector.foreground != "eigenvector" and detector.mode != "eigenseg":
        raise InputError(f"--foreground {detector.foreground} is for --eigenseg")
    if detector.foreground == "robust" and detector.precomputed_eigs_dir:
        raise InputError("--foreground robust needs colours: give --precomputed_features_dir, or --foreground ranking")
    if not detector.precomputed_features_dir:
        check_choice("which_features", detector.which_features, COMPUTED)
    results = settings_from(ResultOptions, flags)
    if detector.objects and results.save_masks:
        raise InputError("--save_masks is for detectors; masks of several objects are extract_objects --save_masks")
    if data.image_path:
        results = replace(results, no_evaluation=True, visualize=results.visualize or "pred")
    return results, data, detector


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 on an error."""

    def work() -> None:
        arguments = read_arguments(argv)
        from objectloc.run import run  # torch, timm and all that: a few seconds

        run(*arguments)

    finish(work)
