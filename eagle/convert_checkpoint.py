"""Make a published checkpoint of EAGLE a plain file: tensors, settings and class names, which load without pickle.

    python convert_checkpoint.py EAGLE_COCO.ckpt eagle_cocostuff.pth

Nothing in the published file is executed. The result is a checkpoint like those of train_segmentation_eigen.py, with
the published hyper-parameters under 'hyperparameters' and the backbone's own weights under 'backbone'.
"""

from collections.abc import Sequence
from pathlib import Path

from eagle_arguments import Parser, finish
from eagle_checkpoints import load_into_model, published_checkpoint, save_checkpoint
from eagle_model import EagleModel
from spectralseg.errors import InputError
from spectralseg.storage import make_folder


def convert(source: Path, target: Path, overwrite: bool = False) -> None:
    """Write ``target`` from the published file ``source``.

    Raises
    ------
    InputError
        ``source`` cannot be read or does not fit the model, ``target`` is there already.
    """
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; choose another file, or --overwrite it")
    content = published_checkpoint(source)
    tensors, settings = content["model"], content["settings"]
    needed = ("head.A.weight", "linear_probe.weight", "cluster_probe.clusters", "eigen_probe.clusters")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise InputError(f"{source} is of another layout: it lacks {', '.join(missing)}")
    sizes = {name: settings[name] for name in ("dim", "eigen_cluster", "eigen_cluster_out", "extra_clusters")}
    model = EagleModel(tensors["head.A.weight"].shape[1], len(tensors["linear_probe.weight"]), **sizes)
    load_into_model(model, tensors, source)
    make_folder(target.parent)
    save_checkpoint(target, content)
    counts = f"{len(tensors)} tensors of the model, {len(content['backbone'])} of {settings['backbone']}"
    print(f"{source} -> {target}: {counts}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="published .ckpt file")
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write, .pth")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    chosen = parser.parse_args(argv)
    finish(lambda: convert(chosen.source, chosen.target, chosen.overwrite))


if __name__ == "__main__":
    main()
