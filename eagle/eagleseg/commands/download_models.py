"""Fetch the backbones that EAGLE trains on and, from an address, a trained checkpoint.

    python download_models.py                                  # DINO ViT-S/8 (300 epochs) and ViT-B/8, 87 MB and 343 MB
    python download_models.py --model dino_vitb8
    python download_models.py --model --checkpoint_url https://.../EAGLE_COCO.ckpt

Backbones come from DINO's published address and are kept where torch.hub keeps them; training fetches them too, when
it needs them. The authors of EAGLE link their trained checkpoints at https://github.com/MICV-yonsei/EAGLE; they lie
with file hosters whose addresses change and ask for confirmation, so that none is written down here: copy the address
of the file itself to --checkpoint_url, or save it with a browser. A download that broke off goes on when the command is
started again. eval_segmentation.py and demo_segmentation.py read such a file as it is; convert_checkpoint.py makes it
a plain one.
"""

import os
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from eagleseg.checkpoints.files import is_published, read_any
from spectralseg.errors import InputError
from spectralseg.files.downloads import fetch
from spectralseg.files.places import project_folder
from spectralseg.files.storage import remove
from spectralseg.models.backbones import SOURCES, load_backbone
from spectralseg.running.arguments import Parser, finish

MODELS = ("dino_vits8_300ep", "dino_vitb8")


def download(models: Sequence[str], checkpoint_url: str | None, output_dir: Path) -> None:
    """Fetch backbones, and a checkpoint to ``output_dir``.

    Raises
    ------
    InputError
        Names what could not be had, and why.
    """
    for name in models:
        print(f"{name}: {load_backbone(name).weights}")
    if checkpoint_url is None:
        return
    name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(checkpoint_url).path)) or "checkpoint.ckpt"
    target = output_dir / name
    if target.is_file():
        print(f"{target} is there already", file=sys.stderr)
        return
    arrived = fetch(checkpoint_url, target.with_name(f"{name}.incoming"))
    try:
        is_checkpoint = is_published(read_any(arrived))
    except InputError:
        is_checkpoint = False
    if not is_checkpoint:
        remove(arrived)
        raise InputError(
            f"{checkpoint_url}: what came is no checkpoint of PyTorch Lightning (a page that asks for confirmation?);"
            " save the file with a browser"
        )
    os.replace(arrived, target)
    print(f"{checkpoint_url} -> {target}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--model", nargs="*", choices=SOURCES, default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--checkpoint_url", help="address of a trained checkpoint, http(s):// or file://")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=project_folder() / "checkpoints",
        help="of the checkpoint; default: checkpoints/",
    )
    chosen = parser.parse(argv)
    finish(lambda: download(chosen.model, chosen.checkpoint_url, chosen.output_dir))
