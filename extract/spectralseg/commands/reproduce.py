"""Rows of the papers' tables: fetch the weights, run the row's commands, compare with the published figure.

    python reproduce.py --list
    python reproduce.py voc07-eigenseg

Rows, commands and published figures: configs/reproduce/rows.yaml. Data sets are not downloaded: where one is absent,
its page is named (layouts: data/README.md). A run that was stopped goes on. Each figure is added to docs/results/ with
what it was made with, and docs/results/README.md, the table of all rows, is written anew. The exit status tells whether
the published figure was met within its tolerance.
"""

import glob
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spectralseg.errors import InputError, check_choice
from spectralseg.files.places import configs_folder, project_folder
from spectralseg.files.storage import atomic_write, load_json, make_folder
from spectralseg.running.arguments import Parser, add_settings, finish
from spectralseg.settings import Settings, settings_from

TOLERANCE = 1.0  # of a row that says nothing else, in per cent points
TABLE = "README.md"


@dataclass(frozen=True)
class ReproduceOptions(Settings):
    """The flags of reproduce.py of these names."""

    rows: str | None = None
    data_root: str = "data"
    output_dir: str = "outputs/reproduce"
    results_dir: str = "docs/results"
    weights: str | None = None
    sha256: str | None = None


WHAT = {
    "rows": "file of the rows; default: configs/reproduce/rows.yaml",
    "data_root": "where the data sets lie; default: data",
    "output_dir": "where the commands work; default: outputs/reproduce",
    "results_dir": "where the figures are kept; default: docs/results",
    "weights": "path or address (a mirror's, file://) of the weights instead of the published address",
    "sha256": "of the weights: any other file is refused",
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 on an error, and where the figure is not the published one."""

    def work() -> None:
        parser = Parser(__doc__)
        parser.add_argument("row", nargs="?", help="a name of --list")
        parser.add_argument("--list", action="store_true", help="show the rows and what was measured of them")
        add_settings(parser, ReproduceOptions, WHAT)
        project = project_folder()
        parser.set_defaults(**{name: str(project / getattr(ReproduceOptions, name)) for name in _FOLDERS})
        flags = vars(parser.parse(argv))
        options = settings_from(ReproduceOptions, flags)
        book = read_rows(options.rows)
        if flags["list"] or flags["row"] is None:
            print(table(book["rows"], Path(options.results_dir)), end="")
        else:
            check_choice("row", flags["row"], book["rows"])
            reproduce(flags["row"], book, options)

    finish(work)


_FOLDERS = ("data_root", "output_dir", "results_dir")


def read_rows(path: str | None) -> dict[str, Any]:
    """The file of rows: ``weights``, ``recipes``, ``rows``."""
    source = Path(path) if path else configs_folder() / "reproduce" / "rows.yaml"
    try:
        book = yaml.safe_load(source.read_text(encoding="utf-8"))
        for row in book["rows"].values():
            row["published"] = float(row["published"])
            missing = {"needs", "page", "measure", "source"} - row.keys()
            if missing or not book["recipes"][row["recipe"]]["commands"]:
                raise KeyError(*missing)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        why = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise InputError(f"{source} is no file of rows ({why})") from None
    return book


def reproduce(name: str, book: dict[str, Any], options: ReproduceOptions) -> None:
    """Run a row, note its figure, and compare."""
    row = book["rows"][name]
    recipe = book["recipes"][row["recipe"]]
    data, out = Path(options.data_root).resolve(), make_folder(Path(options.output_dir).resolve() / name)
    if not (data / row["needs"]).is_dir():
        raise InputError(f"{name} needs {data / row['needs']}: get the data set from {row['page']} (data/README.md)")
    from spectralseg.models.weights import local_file, sha256  # torch: a few seconds

    weights = local_file(options.weights or book["weights"])
    digest = sha256(weights)
    if options.sha256 and digest != options.sha256.lower():
        raise InputError(f"{weights} has the sha256 {digest}, not {options.sha256}: delete it, or take the right one")
    names = row | {"data": data, "out": out, "weights": weights.resolve(), "list": out / "images.txt"}
    if "images" in row:
        root = data / row["images"]
        files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
        with atomic_write(out / "images.txt") as file:
            file.write("".join(f"{each}\n" for each in files).encode(errors="surrogateescape"))
    started = time.monotonic()
    for template in recipe["commands"]:
        words = list(filter(None, (word.format(**names) for word in template.split())))
        if subprocess.run([sys.executable, str(project_folder() / words[0]), *words[1:]], check=False).returncode:
            raise InputError(f"{name}: {words[0]} failed, see above; the same command goes on where it stopped")
    found = glob.glob(recipe["result"], root_dir=out)
    value: Any = load_json(out / found[0]) if found else None
    for key in recipe["figure"]:
        value = value[key.format(**names)] if value else None
    if value is None:
        raise InputError(f"{name}: {out / recipe['result']} has no figure")
    measured = round(float(value) * recipe.get("factor", 1), 2)
    note = {"measured": measured, "published": row["published"], "weights": f"{weights.name} sha256:{digest}"}
    note |= {"seconds": round(time.monotonic() - started, 1), **_surroundings()}
    folder = make_folder(Path(options.results_dir))
    _write(folder / f"{name}.json", json.dumps([*_noted(folder, name), note], indent=1) + "\n")
    _write(folder / TABLE, table(book["rows"], folder))
    tolerance = row.get("tolerance", TOLERANCE)
    told = f"{name}: {row['measure']} {measured:.2f}, published {row['published']} (tolerance {tolerance})"
    if abs(measured - row["published"]) > tolerance:
        raise InputError(f"{told}: not met")
    print(f"{told}: met -> {folder / f'{name}.json'}")


def _surroundings() -> dict[str, Any]:
    import timm
    import torch

    asked = ["git", "-C", str(project_folder()), "rev-parse", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    graphics = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    machine = ", ".join([platform.machine(), f"{os.cpu_count()} cores", *graphics])
    versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"date": date, "commit": commit or None, "versions": versions, "machine": machine}


def _noted(folder: Path, name: str) -> list[dict[str, Any]]:
    notes = load_json(folder / f"{name}.json")
    if notes is not None and not (
        isinstance(notes, list) and all(isinstance(n, dict) and "measured" in n for n in notes)
    ):
        raise InputError(f"{folder / f'{name}.json'} is no list of measured figures: move it away")
    return notes or []


def table(rows: dict[str, dict[str, Any]], folder: Path) -> str:
    """All rows as Markdown, with the figure that was measured last."""
    lines = ["# Rows of the papers' tables", "", "Written by `python reproduce.py`; figures in per cent.", ""]
    lines += ["| row | measure | published | source | measured | commit | weights |", "|" + " --- |" * 7]
    for name, row in rows.items():
        noted = _noted(folder, name)
        last = noted[-1] if noted else {}
        made = (f"{last['measured']:.2f}" if last else "not yet measured", str(last.get("commit") or "")[:7])
        cells = (name, row["measure"], row["published"], row["source"], *made, last.get("weights", "")[:40])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, ""])


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))
