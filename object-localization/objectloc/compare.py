"""Compare backbones, features, blocks, methods and their settings, in one run that can be stopped and started again.

    python compare.py --dataset VOC07 --backbones dino_vits16,dinov2_vits14_reg --features k,out \
        --methods lost,eigenseg,tokencut --tau 0,0.05,0.1,0.15,0.2,0.25,0.3,0.35,0.4
    python compare.py --dataset VOC07 --set test --backbones dino_vits16=random,lab_graph --gram_bias=-5,0
    python compare.py --dataset folder --images_root ../photographs --masks ../masks --backbones dino_vits16

Features are extracted once per backbone (and cropped to whole patches, as extract_features does it); each combination
is a cell, kept as a file. The best setting of a backbone and method is chosen on every second image and reported on the
others. Writes comparison.csv (all cells), comparison.md (the chosen ones) and comparison.png, with the boxes that look
at nothing as lines. CorLoc, AP50 of the one box; with --masks the mean IoU, by object-segmentation's evaluation.
MaskCut gives its best object, before the CRF. lab_graph, whose features are colours, takes part with eigenseg alone.
"""

from collections.abc import Sequence

from objectloc.command import IMAGES
from objectloc.options import DATASETS, METHODS, CompareOptions, DataOptions
from spectralseg.errors import InputError
from spectralseg.files.places import project_folder
from spectralseg.running.arguments import Parser, add_settings, finish
from spectralseg.settings import settings_from

WHAT = {
    "backbones": "model names of extract.py, each with its weights where they are not the published ones: NAME=PATH",
    "features": "any of k, q, v, out",
    "blocks": "blocks from the end: --blocks=-1,-2",
    "methods": ", ".join(METHODS),
    "tau": "of TokenCut and MaskCut",
    "k_patches": "of LOST",
    "gram_bias": "of LOST (as one word where it is negative: --gram_bias=-5,0)",
    "dinoseg_head": "of DINO-seg",
    "foreground": "of eigenseg; robust: lab_graph alone",
    "masks": "folder of true masks of --dataset folder: masks are scored, and boxes where there are --annotations",
    "output_dir": "features, boxes, cells and results; default: outputs/comparison",
    "device": "for the features: auto, cpu, cuda, ...",
    "num_workers": "cells at once, in processes with one thread each",
}


def build_parser() -> Parser:
    """All flags, with their defaults."""
    parser = Parser(__doc__)
    data = parser.add_argument_group("images")
    data.add_argument("--dataset", default="VOC07", help=f"several are separated by commas: {', '.join(DATASETS)}")
    add_settings(data, DataOptions, {name: IMAGES[name] for name in IMAGES if name not in ("dataset", "image_path")})
    parser.set_defaults(data_root=str(project_folder() / "data"))
    add_settings(parser.add_argument_group("what is compared"), CompareOptions, WHAT)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 on an error."""

    def work() -> None:
        flags = vars(build_parser().parse(argv))
        names = dict.fromkeys(flags.pop("dataset").split(","))
        data = [settings_from(DataOptions, flags | {"dataset": name}) for name in names]
        options = settings_from(CompareOptions, flags)
        if options.masks and list(names) != ["folder"]:
            raise InputError("--masks belongs to --dataset folder")
        from objectloc.comparison import compare  # torch, timm and all that: a few seconds

        compare(data, options)

    finish(work)
