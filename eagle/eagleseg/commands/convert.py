"""Make a published checkpoint of EAGLE a plain file: tensors, settings and class names, which load without pickle.

    python convert_checkpoint.py EAGLE_COCO.ckpt eagle_cocostuff.pth

Nothing in the published file is executed. The result is a checkpoint like those of train_segmentation_eigen.py, with
the published hyper-parameters under 'hyperparameters' and the backbone's own weights under 'backbone'.
"""

from collections.abc import Sequence
from pathlib import Path

from eagleseg.checkpoints.files import published_checkpoint, read_any, save_checkpoint
from eagleseg.checkpoints.trained import model_of
from spectralseg.errors import InputError
from spectralseg.files.storage import make_folder
from spectralseg.running.arguments import Parser, finish


def convert(source: Path, target: Path, overwrite: bool = False) -> None:
    """Write ``target`` from the published file ``source``.

    Raises
    ------
    InputError
        ``source`` cannot be read or does not fit the model, ``target`` is there already.
    """
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; choose another file, or --overwrite it")
    content = published_checkpoint(read_any(source), source)
    model_of(content, source)  # whether all of it fits
    make_folder(target.parent)
    save_checkpoint(target, content)
    backbone = f"{len(content['backbone'])} of {content['settings']['backbone']}"
    print(f"{source} -> {target}: {len(content['model'])} tensors of the model, {backbone}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="published .ckpt file")
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write, .pth")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    chosen = parser.parse(argv)
    finish(lambda: convert(chosen.source, chosen.target, chosen.overwrite))
