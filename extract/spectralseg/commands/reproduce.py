"""Rows of the papers' tables: fetch the weights, run the row's commands, compare with the published figure.

    python reproduce.py --list
    python reproduce.py voc07-eigenseg

Rows, commands and published figures: configs/reproduce/rows.yaml. Data sets are not downloaded: where one is absent,
its page is named (layouts: data/README.md). A run that was stopped goes on. Each figure is added to docs/results/ with
what it was made with, and the tables in docs/results/README.md and README.md are written anew (--tables does that
alone). The exit status tells whether the published figures were met within their tolerance.
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
from spectralseg.progress import verbose_since
from spectralseg.running.arguments import Parser, add_settings, finish
from spectralseg.settings import Settings, settings_from

TOLERANCE = 1.0  # of a row that says nothing else, in per cent points
PAGE = "README.md"
MARKS = "<!-- written by reproduce.py -->\n", "<!-- end of what reproduce.py writes -->\n"
UNKNOWN = "not yet measured"


@dataclass(frozen=True)
class ReproduceOptions(Settings):
    """The flags of reproduce.py of these names."""

    rows: str | None = None
    data_root: str = "data"
    output_dir: str = "outputs/reproduce"
    results_dir: str = "docs/results"
    weights: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()


WHAT = {
    "rows": "file of the rows; default: configs/reproduce/rows.yaml",
    "data_root": "where the data sets lie; default: data",
    "output_dir": "where the commands work; default: outputs/reproduce",
    "results_dir": "where the figures are kept; default: docs/results. Two folders above it lies the other page",
    "weights": "path or address (a mirror's, file://) of the weights instead of the published address; of a row with"
    " two files, both with a comma between",
    "sha256": "of the weights: any other file is refused; several as for --weights",
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 on an error, and where the figure is not the published one."""

    def work() -> None:
        parser = Parser(__doc__)
        parser.add_argument("row", nargs="?", help="a name of --list")
        parser.add_argument("--list", action="store_true", help="show the rows and what was measured of them")
        parser.add_argument("--tables", action="store_true", help="write the tables of the pages anew")
        add_settings(parser, ReproduceOptions, WHAT)
        project = project_folder()
        parser.set_defaults(**{name: str(project / getattr(ReproduceOptions, name)) for name in _FOLDERS})
        flags = vars(parser.parse(argv))
        options = settings_from(ReproduceOptions, flags)
        book = read_rows(options.rows)
        if flags["tables"]:
            write_tables(book["rows"], make_folder(Path(options.results_dir)))
        elif flags["list"] or flags["row"] is None:
            print(table(book["rows"], Path(options.results_dir)), end="")
        else:
            check_choice("row", flags["row"], book["rows"])
            reproduce(flags["row"], book, options)

    finish(work)


_FOLDERS = ("data_root", "output_dir", "results_dir")


def read_rows(path: str | None) -> dict[str, Any]:
    """The file of rows: ``weights``, ``recipes``, and ``rows``, each of them with what its recipe says."""
    source = Path(path) if path else configs_folder() / "reproduce" / "rows.yaml"
    try:
        book = yaml.safe_load(source.read_text(encoding="utf-8"))
        for name, row in book["rows"].items():
            row = book["rows"][name] = book["recipes"][row["recipe"]] | row
            row["published"] = {figure: float(value) for figure, value in row["published"].items()}
            row.setdefault("seeds", [0])
            missing = {"commands", "result", "needs", "page", "source"} - row.keys()
            missing |= {*row["published"]} ^ {*row["figures"]} | {*row["weights"]} - book["weights"].keys()
            if missing:
                raise KeyError(*missing)
            for command in row["commands"]:  # all that it names is there
                command.format(**row, **dict.fromkeys(("data", "out", "list", "seed"), ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        why = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise InputError(f"{source} is no file of rows ({why})") from None
    return book


def reproduce(name: str, book: dict[str, Any], options: ReproduceOptions) -> None:
    """Run a row, note its figures, and compare."""
    row = book["rows"][name]
    data = Path(options.data_root).resolve()
    if not (data / row["needs"]).is_dir():
        raise InputError(f"{name} needs {data / row['needs']}: get the data set from {row['page']} (data/README.md)")
    weights = _weights(name, {each: book["weights"][each] for each in row["weights"]}, options)
    out = make_folder(Path(options.output_dir).resolve() / row.get("work", name))
    names = row | {"data": data, "out": out, "weights": [path for path, _ in weights], "list": out / "images.txt"}
    if "images" in row:
        root = data / row["images"]
        files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
        with atomic_write(out / "images.txt") as file:
            file.write("".join(f"{each}\n" for each in files).encode(errors="surrogateescape"))
    started = time.monotonic()
    for template in row["commands"]:
        for seed in row["seeds"] if "{seed}" in template else [None]:
            door, *words = filter(None, (word.format(**names, seed=seed) for word in template.split()))
            words += [] if verbose_since() is None else ["--verbose"]
            start = f"from spectralseg.doors import {door}; {door}()"
            if subprocess.run([sys.executable, "-c", start, *words], check=False).returncode:
                raise InputError(f"{name}: {door} failed, see above; the same command goes on where it stopped")
    found = glob.glob(row["result"], root_dir=out)
    measured = {}
    for figure, keys in row["figures"].items():
        value: Any = load_json(out / found[0]) if found else None
        for key in keys:
            value = (value or {}).get(key.format(**names))
        if value is None:
            raise InputError(f"{name}: {out / row['result']} has no {figure}")
        measured[figure] = round(float(value) * row.get("factor", 1), 2)
    published, tolerance = row["published"], row.get("tolerance", TOLERANCE)
    note = {"measured": measured, "published": published}
    note |= {"weights": [f"{path.name} sha256:{digest}" for path, digest in weights]}
    note |= {"seconds": round(time.monotonic() - started, 1), **_surroundings()}
    folder = make_folder(Path(options.results_dir))
    _write(folder / f"{name}.json", json.dumps([*_noted(folder, name), note], indent=1) + "\n")
    write_tables(book["rows"], folder)
    told = "; ".join(f"{figure} {measured[figure]:.2f}, published {value}" for figure, value in published.items())
    told = f"{name}: {told} (tolerance {tolerance})"
    missed = [figure for figure, value in published.items() if not abs(measured[figure] - value) <= tolerance]
    if missed:
        raise InputError(f"{told}: {' and '.join(missed)} not met")
    print(f"{told}: met -> {folder / f'{name}.json'}")


def _weights(row: str, published: dict[str, str], options: ReproduceOptions) -> list[tuple[Path, str]]:
    """The files of the weights that a row needs, ``published`` by name and address, and their SHA-256."""
    from spectralseg.models.weights import local_file, sha256  # torch: a few seconds

    for flag, given in (("weights", options.weights), ("sha256", options.sha256)):
        if given and len(given) != len(published):
            raise InputError(f"{row} reads {' and '.join(published)}: --{flag} needs as many, with commas between")
    found = []
    for index, address in enumerate(options.weights or published.values()):
        path = local_file(address).resolve()
        if not path.is_file():
            raise InputError(f"no such weights file: {path}")
        digest, wanted = sha256(path), options.sha256[index].lower() if options.sha256 else None
        if wanted not in (None, digest):
            raise InputError(f"{path} has the sha256 {digest}, not {wanted}: delete it, or take the right one")
        found.append((path, digest))
    return found


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
    try:
        return [note | {"measured": dict(note["measured"])} for note in notes or []]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / f'{name}.json'} is no list of measured figures: move it away") from None


def write_tables(rows: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write the page of a folder of figures, and the table in the page two folders above it, if that has its marks."""
    _write(folder / PAGE, table(rows, folder))
    page = folder.resolve().parent.parent / PAGE
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0]) if page.is_file() else ("", "", "")
    if MARKS[1] in rest:
        _write(page, before + MARKS[0] + summary(rows, folder) + MARKS[1] + rest.partition(MARKS[1])[2])


def table(rows: dict[str, dict[str, Any]], folder: Path) -> str:
    """All rows as Markdown, with the figures that were measured last."""
    lines = ["# Rows of the papers' tables", "", "Written by `python reproduce.py`; figures in per cent.", ""]
    lines += ["| row | measure | published | source | measured | commit | weights |", "|" + " --- |" * 7]
    for name, row in rows.items():
        last: dict[str, Any] = {"commit": "", "weights": [], **(_noted(folder, name) or [{}])[-1]}
        weights = ", ".join(each[:40] for each in last["weights"])
        made = (_measured(folder, name), str(last["commit"] or "")[:7], weights)
        lines.append("| " + " | ".join((name, *_published(row), row["source"], *made)) + " |")
    return "\n".join([*lines, ""])


def summary(rows: dict[str, dict[str, Any]], folder: Path) -> str:
    """A line for all rows of a kind, which is the last part of their names, as Markdown."""
    lines = ["| rows | measure | published | measured |", "|" + " --- |" * 4]
    kinds = dict.fromkeys(name.rpartition("-")[2] for name in rows)
    for kind in kinds:
        own = {name.rpartition("-")[0]: name for name in rows if name.endswith(f"-{kind}")}
        published = ", ".join(f"{short} {_published(rows[name])[1]}" for short, name in own.items())
        figures = {short: _measured(folder, name) for short, name in own.items()}
        measured = ", ".join(f"{short} {text}" for short, text in figures.items())
        measured = UNKNOWN if {*figures.values()} == {UNKNOWN} else measured
        first = rows[next(iter(own.values()))]
        lines.append(f"| {kind} ({first['source']}) | {_published(first)[0]} | {published} | {measured} |")
    return "\n".join([*lines, ""])


def _published(row: dict[str, Any]) -> tuple[str, str]:
    """Names and values of a row's published figures."""
    return " / ".join(row["published"]), " / ".join(map(str, row["published"].values()))


def _measured(folder: Path, name: str) -> str:
    """The values that were measured last."""
    noted = _noted(folder, name)
    return " / ".join(f"{value:.2f}" for value in noted[-1]["measured"].values()) if noted else UNKNOWN


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))
