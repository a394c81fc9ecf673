"""Fetch the archives of COCO-Stuff, Cityscapes and Potsdam in the form that EAGLE and STEGO were trained on.

    python download_datasets.py                                   # all four, to ../data
    python download_datasets.py --dataset cocostuff potsdam --data_root /data
    python download_datasets.py --dataset cocostuff --url https://a.mirror/cocostuff.zip

The addresses are those that the authors of STEGO published (Hamilton et al., ICLR 2022); they may have ceased to serve
them, and then --url takes another address, or file:///path/cocostuff.zip of an archive that you have. COCO-Stuff and
Cityscapes have about 20 GB and 12 GB, and as much again while they are unpacked; the size is shown while a file
arrives. A download that broke off goes on when the command is started again. Each data set has its own terms: read
them at its official page (data/README.md), which also is where the images can be had, to be arranged by hand.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from eagleseg.data.archives import unpack
from spectralseg.errors import InputError
from spectralseg.files.downloads import fetch
from spectralseg.files.places import project_folder
from spectralseg.files.storage import remove
from spectralseg.running.arguments import Parser, finish

ADDRESS = "https://marhamilresearch4.blob.core.windows.net/stego-public/pytorch_data/"
DATA_SETS = {  # name of the folder and of the archive -> folders that it must hold
    "cocostuff": ("images", "annotations", "curated"),
    "cityscapes": ("leftImg8bit", "gtFine"),
    "potsdam": ("imgs", "gt"),
    "potsdamraw": ("processed",),
}


def download(names: Sequence[str], data_root: Path, url: str | None = None, keep: bool = False) -> None:
    """Fetch and unpack data sets to ``data_root/<name>``; those that are there are left as they are.

    Parameters
    ----------
    names
        Of ``DATA_SETS``.
    data_root
        Folder of all data sets.
    url
        Address of the archive, of one data set alone; default: the published one.
    keep
        Whether the archive stays.

    Raises
    ------
    InputError
        Names the data sets that could not be had, and why; the others were.
    """
    if url is not None and len(names) != 1:
        raise InputError("--url is the address of one archive: name its data set with --dataset")
    problems = []
    for name in names:
        target = data_root / name
        if target.exists():
            print(f"{name}: {target} is there already", file=sys.stderr)
            continue
        try:
            archive = fetch(url or f"{ADDRESS}{name}.zip", data_root / f"{name}.archive")
            unpack(archive, target, DATA_SETS[name])
        except InputError as error:
            problems.append(str(error))
            continue
        if not keep:
            remove(archive)
        print(f"{name} -> {target}")
    if problems:
        raise InputError("; ".join(problems))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--dataset", nargs="+", choices=DATA_SETS, default=list(DATA_SETS), help="default: all of them")
    parser.add_argument("--data_root", type=Path, default=project_folder() / "data", help="default: data/")
    parser.add_argument("--url", help="address of the archive, http(s):// or file://, zip or tar")
    parser.add_argument("--keep_archive", action="store_true", help="keep the archive, <data_root>/<data set>.archive")
    chosen = parser.parse(argv)
    finish(lambda: download(chosen.dataset, chosen.data_root, chosen.url, chosen.keep_archive))
