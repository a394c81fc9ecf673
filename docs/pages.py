"""Pages that are made from the code whenever the site is built: a page per command and script, and the library's."""

import contextlib
import dataclasses
import importlib
import inspect
import io
import pkgutil
import re
import shutil
import textwrap
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from spectralseg import doors
from spectralseg.commands import cli
from spectralseg.files.places import configs_folder, project_folder
from spectralseg.progress import VERBOSE

LIBRARY = ("spectralseg.api", "spectralseg.files.records", "spectralseg.models", "spectralseg.mathematics")
LIBRARY += ("eagleseg.api", "eagleseg.losses", "eagleseg.model", "objectloc.detectors", "objectseg.metrics")


def write_pages(docs: Path) -> None:
    """Write ``commands/`` and ``reference/`` below the folder ``docs``; git ignores both."""
    pages = {f"commands/{command.__name__}": _command(command) for command in cli.COMMANDS}
    for name, door in vars(doors).items():
        if name != "extract" and isinstance(door, doors.partial):
            pages[f"commands/script_{name}"] = _script(importlib.import_module(*door.args))
    for name in LIBRARY:
        inside = pkgutil.iter_modules(getattr(importlib.import_module(name), "__path__", ()))
        for module in [f"{name}.{one.name}" for one in inside] or [name]:
            directive = f".. automodule:: {module}\n   :members:"
            pages[f"reference/{module}"] = f"# {module}\n\n```{{eval-rst}}\n{directive}\n```\n"
    for folder in ("commands", "reference"):
        shutil.rmtree(docs / folder, ignore_errors=True)
        (docs / folder).mkdir()
    for name, text in pages.items():
        (docs / f"{name}.md").write_text(text)


def _command(command: Any) -> str:
    """A command of extract.py, from its signature and documentation."""
    about, _, explained = (inspect.getdoc(command) or "").partition("Args:\n")
    meanings = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", explained, re.MULTILINE))
    rows = []
    for name, one in inspect.signature(command).parameters.items():
        default = "needed" if one.default is one.empty else "" if one.default is None else f"`{one.default}`"
        rows.append((f"`--{name}`", inspect.formatannotation(one.annotation), default, meanings[name]))
    return f"# extract.py {command.__name__}\n\n{_markdown(about)}\n{_table('flag type default meaning', rows)}"


def _script(module: ModuleType) -> str:
    """A script: what it says to --help; of a Hydra script its documentation, settings and config."""
    source, about = inspect.getsource(module), module.__doc__ or ""
    room = Path(inspect.getfile(importlib.import_module(module.__name__.partition(".")[0]))).parents[1].name
    script = re.findall(r"python (?:[a-z-]+/)?([a-z_]+[.]py)", about)[0]
    title = f"# {script if (project_folder() / script).is_file() else f'{room}/{script}'}\n\n"
    config = re.search(r'run\(\w+, "([\w/-]+)"', source)
    if config is None:
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            module.main(["--help"])
        usage = shown.getvalue().partition("options:")[2].replace(f"{project_folder()}/", "")
        return f"{title}{_markdown(about)}\n```text\n{usage.strip()}\n```\n"
    kind = getattr(module, re.findall(r"to_settings\(config, (\w+)\)", source)[0])
    verbose = ("`--verbose`", "bool", VERBOSE)
    table = _table("setting type accepts", [*_settings(kind, ""), verbose])
    (path,) = configs_folder().glob(f"{config[1]}.y*ml")
    files = [*(path.parent.glob("base.yaml") if "- base" in path.read_text() else ()), path]
    shown_files = "".join(f"`{one.name}`:\n\n```yaml\n{one.read_text()}```\n\n" for one in files)
    return f"{title}{_markdown(about)}\n## Settings\n\n{table}\n## Defaults and meanings\n\n{shown_files}"


def _settings(kind: Any, before: str) -> Iterator[tuple[str, ...]]:
    """Name, type and range of each field of a dataclass, and of those inside it."""
    for one in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind)[one.name]
        inner = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        if inner:
            yield from _settings(inner[0], f"{before}{one.name}{'' if inner[0] is hint else '[]'}.")
            continue
        words = {"least": "at least", "most": "at most", "choices": "one of"}
        ranges = [(words.get(name, name), value) for name, value in one.metadata.items()]
        accepts = ", ".join(f"{name} {', '.join(map(str, v)) if name == 'one of' else v}" for name, v in ranges)
        yield f"`{before}{one.name}`", inspect.formatannotation(hint), accepts


def _table(head: str, rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head.split(), ["---"] * len(head.split()), *rows]
    return "".join("| " + " | ".join(_text(" ".join(cell.split())) for cell in line) + " |\n" for line in lines)


def _text(line: str) -> str:
    """A line that Markdown shows as it is, but for `code`."""
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(part if "`" in part else re.sub(r"([<*])", r"\\\1", part) for part in parts).replace("|", "\\|")


def _markdown(text: str) -> str:
    """Documentation in Markdown: indented blocks are code."""
    indented = re.compile(r"((?:^    .*\n)(?:^(?:    .*)?\n)*)", re.MULTILINE)
    parts = indented.split(text + "\n")
    code = "\n```\n{}\n```\n\n"
    return "".join(code.format(textwrap.dedent(p).strip()) if p.startswith("    ") else _text(p) for p in parts)
