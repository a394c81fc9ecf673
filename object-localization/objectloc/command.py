"""Object localization: one box per image, and how often it is right (CorLoc).

    python main.py --eigenseg --precomputed_eigs_dir ../data/VOC2012/eigs/laplacian --dataset VOC12 --name example_eigs
    python main.py --dataset VOC07                                   # LOST, on the spot
    python main.py --tokencut --dataset folder --images_root ../photographs --annotations ../photographs/boxes.csv
    python main.py --eigenseg --image_path ../data/samples/images/chelsea.jpg

Without a mode flag the boxes are LOST's. Results lie in <output_dir>/<dataset>_<set>/<name>: results.txt, preds.pkl and
gt.pkl as in the published code, boxes.csv and results.json with every image's box and IoU, boxes/ with a file per
image. Started again, the same command goes on where it stopped.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from objectloc.options import ARCHITECTURES, DATASETS, PICTURES, SETS, DataOptions, DetectorOptions
from spectralseg.errors import InputError, OutputError
from spectralseg.files.places import project_folder


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line and exit status 1."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {message}")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """As ``parse_args``, but an unknown flag is answered with the one that was probably meant."""
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            self.error(f"no flag {unknown[0]}" + (f" (did you mean {close[0]}?)" if close else ""))
        return namespace


def build_parser() -> Parser:
    """All flags, with their defaults."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    data = parser.add_argument_group("images")
    data.add_argument("--dataset", default="VOC07", choices=DATASETS, help="default: VOC07; folder: one's own images")
    data.add_argument("--set", choices=SETS, help="default: trainval (COCO20k is a part of train)")
    data.add_argument(
        "--data_root", default=str(project_folder() / "data"), help="where VOC2007, VOC2012 and COCO lie (data/)"
    )
    data.add_argument("--images_root", help="folder of the images of --dataset folder")
    data.add_argument("--annotations", help="their boxes: CSV (file,xmin,ymin,xmax,ymax) or COCO JSON")
    data.add_argument("--image_path", help="a single image instead of a data set, without evaluation")
    data.add_argument("--no_hard", action="store_true", help="VOC: leave out truncated and difficult objects")

    mode = parser.add_argument_group("mode (default: LOST)").add_mutually_exclusive_group()
    mode.add_argument("--eigenseg", action="store_true", help="Deep Spectral Methods")
    mode.add_argument("--dinoseg", action="store_true", help="attention of [CLS]")
    mode.add_argument("--tokencut", action="store_true", help="normalised cut of a binary graph")
    mode.add_argument("--trivial", choices=("whole", "central"), help="the image, or 70 %% of each of its sides")

    detector = parser.add_argument_group("detector")
    detector.add_argument("--k_patches", type=_at_least(1), default=100, help="LOST: patches of lowest degree")
    detector.add_argument("--dinoseg_head", type=_at_least(0), default=4, help="DINO-seg: head of the attention")
    detector.add_argument(
        "--dinoseg_mended",
        action="store_true",
        help="DINO-seg: consider all components, of which the published code leaves out the last",
    )
    detector.add_argument("--tau", type=float, default=0.2, help="TokenCut: least cosine of an edge")
    detector.add_argument(
        "--which_matrix", default="infer", choices=("infer", "affinity", "laplacian"), help="eigenseg"
    )

    features = parser.add_argument_group("features")
    features.add_argument(
        "--arch",
        default="vit_small",
        help=f"{', '.join(ARCHITECTURES)}, or a model_name of extract.py (LOST alone takes CNNs)",
    )
    features.add_argument("--patch_size", type=_at_least(1), default=16, help="16 or 8; CNNs: images are padded to it")
    features.add_argument("--which_features", default="k", choices=("k", "q", "v"), help="keys, queries or values")
    features.add_argument("--resnet_dilate", type=int, default=2, choices=(1, 2, 4), help="dilation of ResNet-50")
    features.add_argument("--weights", help="path or address of a checkpoint, or random; default: the published one")
    features.add_argument("--precomputed_features_dir", help="output folder of extract_features")
    features.add_argument("--precomputed_eigs_dir", help="eigenseg: output folder of extract_eigs")
    features.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    results = parser.add_argument_group("results")
    results.add_argument("--output_dir", default="outputs")
    results.add_argument("--name", help="folder of the results; default: mode and features")
    results.add_argument("--skip_if_exists", action="store_true", help="do nothing where results.txt is there already")
    results.add_argument("--overwrite", action="store_true", help="find boxes anew that are there already")
    results.add_argument("--no_evaluation", action="store_true", help="boxes alone, no ground truth")
    results.add_argument(
        "--save_predictions", type=_truth, nargs="?", const=True, default=True, help="preds.pkl, gt.pkl (default: True)"
    )
    results.add_argument(
        "--visualize", choices=PICTURES, help="a PNG for each image; a single image has pred by default"
    )
    results.add_argument(
        "--num_workers", "--multiprocessing", type=_at_least(0), default=0, help="processes with one thread each"
    )
    return parser


def _at_least(least: int) -> Any:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return whole_number


def _truth(text: str) -> bool:
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"takes True or False, not '{text}'") from None


def read_arguments(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, DataOptions, DetectorOptions]:
    """The command line, checked.

    Raises
    ------
    InputError
        Flags that do not go together.
    """
    args = build_parser().parse(argv)
    modes = {"eigenseg": args.eigenseg, "dinoseg": args.dinoseg, "tokencut": args.tokencut, "trivial": args.trivial}
    args.mode = next((mode for mode, asked in modes.items() if asked), "lost")
    if args.dataset == "COCO20k" and args.set not in (None, "train", "trainval"):
        raise InputError(f"--set {args.set}: COCO20k is a part of train2014")
    args.set = args.set or "trainval"
    if args.precomputed_eigs_dir and args.mode != "eigenseg":
        raise InputError("--precomputed_eigs_dir is for --eigenseg; the other modes take --precomputed_features_dir")
    if args.precomputed_eigs_dir and args.precomputed_features_dir:
        raise InputError("give --precomputed_eigs_dir or --precomputed_features_dir, not both")
    if args.image_path and not args.visualize:
        args.visualize = "pred"
    args.no_evaluation = args.no_evaluation or bool(args.image_path)
    data = DataOptions(**{field.name: getattr(args, field.name) for field in fields(DataOptions)})
    detector = DetectorOptions(**{field.name: getattr(args, field.name) for field in fields(DetectorOptions)})
    return args, data, detector


def main(argv: Sequence[str] | None = None) -> None:
    """Run with the arguments of the command line; exits with status 1 on an error."""
    try:
        arguments = read_arguments(argv)
        from objectloc.run import run  # torch, timm and all that: a few seconds

        run(*arguments)
    except (InputError, OutputError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
