"""Every command that a page or a script's documentation shows is one that the script takes.

Each is given to the script itself, up to where it has read its command line: extract.py's commands are replaced by ones
that do nothing, argparse's scripts end when they have parsed, Hydra's when the config has become settings.
"""

import argparse
import functools
import importlib
import importlib.util
import inspect
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hydra
import pytest

from documented_commands import Command, commands_of_page, commands_of_script
from objectloc.command import build_parser as localization_flags
from running import EXTRACT
from shared_data import PROJECT
from spectralseg import doors
from spectralseg.commands import cli
from spectralseg.running import fire_app, hydra_app

PAGES = sorted(
    path
    for place in (".", "docs", "data", "data/samples", "tests/benchmarks")
    for path in (PROJECT / place).glob("*.md")
)
ROOMS = ("extract", "object-localization", "object-segmentation", "semantic-segmentation", "eagle")
FILES = [path for room in ("", *ROOMS) for path in (PROJECT / room).glob("*.py")]
SCRIPTS = sorted(path for path in FILES if "__main__" in path.read_text())
UNDERSTOOD: set[tuple] = set()  # the same commands stand in several places, and Hydra is slow


def module_behind(script: Path) -> ModuleType:
    """The module whose command line a script is."""
    door = re.search(r"^from spectralseg.doors import (\w+)$", script.read_text(), re.MULTILINE)[1]
    return importlib.import_module(getattr(doors, door).args[0])


class Understood(BaseException):
    """Ends a script that has read its command line; no ``except Exception`` holds it up."""


@pytest.fixture
def understand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Command], None]:
    """Give a command to its script; fails with what the script complains of."""

    def give(command: Command) -> None:
        if (command.folder, command.script, command.words) in UNDERSTOOD:
            return
        path = PROJECT / command.script
        assert path.is_file(), f"{command}: no such script"
        assert command.folder.is_dir(), f"{command}: no folder {command.folder}"
        assert not any("$" in word.replace("${project", "") for word in command.words), f"{command}: variable not set"
        for sample in re.findall(r"[\w./-]*data/samples/[\w./-]+", " ".join(command.words)):
            assert (command.folder / sample).exists(), f"{command}: no {sample}"
        with monkeypatch.context() as patch:
            patch.chdir(command.folder)
            patch.setattr(sys, "argv", [str(path), *command.words])
            patch.syspath_prepend(path.parent)
            source = inspect.getsource(module_behind(path)) if path in SCRIPTS else ""
            read = _extract if path == EXTRACT else _hydra if "hydra_app" in source else _argparse
            try:
                read(path, patch, tmp_path)
            except SystemExit as stop:
                pytest.fail(f"{command}: {stop.code}")
        UNDERSTOOD.add((command.folder, command.script, command.words))

    return give


def _extract(path: Path, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(fire_app, "start_server", lambda: None)
    fire_app.main([functools.wraps(command)(lambda *args, **kwargs: None) for command in cli.COMMANDS])


def _argparse(path: Path, patch: pytest.MonkeyPatch, folder: Path) -> None:
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_end(*args, **kwargs):
        _, unknown = parse(*args, **kwargs)
        if unknown:
            sys.exit(f"does not know {' '.join(unknown)}")
        raise Understood

    patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_end)
    with pytest.raises(Understood):
        runpy.run_path(str(path), run_name="__main__")


def _hydra(path: Path, patch: pytest.MonkeyPatch, folder: Path) -> None:
    main, to_settings, checked = hydra.main, hydra_app.to_settings, []

    def settings_and_end(config, kind):
        checked.append(to_settings(config, kind))
        raise Understood

    def main_without_work(**kwargs):
        def decorate(guarded):
            def task(config):
                with pytest.raises(Understood):
                    guarded(config)

            patch.setitem(guarded.__wrapped__.__globals__, "to_settings", settings_and_end)  # items are undone last
            for module in [*sys.modules.values()]:  # wherever the task's modules have it from
                if getattr(module, "to_settings", None) is to_settings:
                    patch.setattr(module, "to_settings", settings_and_end)
            return main(**kwargs)(functools.wraps(guarded)(task))

        return decorate

    patch.setattr(hydra, "main", main_without_work)
    patch.setattr(sys, "argv", [*sys.argv, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"])
    runpy.run_path(str(path), run_name="__main__")
    assert checked or "--help" in sys.argv


def understand_all(text: str, understand: Callable[[Command], None], page: str = "page") -> None:
    """Give all commands of a page to their scripts."""
    for command in commands_of_page(text, page):
        understand(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_pages(page, understand):
    understand_all(page.read_text(), understand, str(page.relative_to(PROJECT)))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_documentation_of_scripts(script, understand):
    for command in commands_of_script(script, module_behind(script).__doc__):
        understand(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_flags_in_prose(page):
    """`--flag value` in a sentence: a flag of one of the scripts."""
    known = {name for command in cli.COMMANDS for name in inspect.signature(command).parameters}
    known |= {f"no{name}" for name in known}
    known |= {flag.removeprefix("--") for flag in hydra_app.SWITCHES | hydra_app.FLAGS}
    known |= {flag.removeprefix("--") for flag in localization_flags()._option_string_actions}
    sources = [inspect.getsource(module_behind(script)) for script in SCRIPTS]
    for source in [*sources, *(path.read_text() for path in (PROJECT / "tests" / "benchmarks").glob("*.py"))]:
        known |= set(re.findall(r'"--([\w-]+)"', source))
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = [span for span in re.findall(r"`([^`\n]+)`", prose) if span.startswith("--")]
    assert [span for span in spans for flag in re.findall(r"(?<!\S)--([\w-]+)", span) if flag not in known] == []


def test_all_rooms_are_seen():
    shown = {command.script.parts[0] for page in PAGES for command in commands_of_page(page.read_text())}
    assert shown >= set(ROOMS)


def test_pages_from_the_code(tmp_path):
    """What the site's build writes: a page for each command and script, with all of its flags or settings."""
    spec = importlib.util.spec_from_file_location("pages", PROJECT / "docs" / "pages.py")
    spec.loader.exec_module(pages := importlib.util.module_from_spec(spec))
    pages.write_pages(tmp_path)
    text = {path.stem: path.read_text() for path in (tmp_path / "commands").iterdir()}
    for command in cli.COMMANDS:
        assert re.findall(r"^\| `--(\w+)`", text[command.__name__], re.M) == [*inspect.signature(command).parameters]
    assert len(text) == len(cli.COMMANDS) + len({module_behind(script) for script in SCRIPTS}) - 1  # without extract.py
    assert "| `crop_ratio` | float | above 0, at most 1 |" in text["script_eagle_crop_datasets"]
    assert "| `data[].image_size` | int \\| None | at least 1 |" in text["script_object_segmentation"]
    assert "--k_patches K_PATCHES" in text["script_object_localization"]
    assert "Writes \\<output_dir>/\\<id>.pth" in text["extract_eigs"]
    assert (tmp_path / "reference" / "spectralseg.mathematics.eigen.md").is_file()


def test_notebook_is_stored_without_results():
    cells = json.loads((PROJECT / "docs" / "tutorial.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert [cell["outputs"] or cell["execution_count"] for cell in code] == [None] * len(code)


# --- the test's own eyes ---

BLOCK = """
Text --not_a_flag

```python
main.py --not_a_shell
```

```sh
python ../shared/not_ours.py
DATA=../data/x
(cd elsewhere && find . | sed 's|^; ||') > list.txt
cd extract
python extract.py extract_eigs --images_root $DATA/y --features_dir y \\
    --output_dir z --K 5   # five
for SEED in 0 1; do
    python extract.py extract_bbox_clusters --seed $SEED --bbox_features_file x --output_file y
done
cd ../object-localization && python main.py --eigenseg --precomputed_eigs_dir "${DATA}/eigs/laplacian" --dataset VOC12
```

```
cd object-segmentation
accelerate launch --cpu main.py strict=true 'data=[{name: mine, images_dir: images, labels_dir: masks}]'
```

```
python main.py visualize=3
```
"""


def test_commands_are_found():
    eigs, clusters, boxes, masks, more = commands_of_page(BLOCK)
    assert eigs.script == Path("extract/extract.py")
    assert eigs.words[:3] == ("extract_eigs", "--images_root", "../data/x/y")
    assert eigs.words[-2:] == ("--K", "5")
    assert clusters.words[:3] == ("extract_bbox_clusters", "--seed", "0")
    assert boxes.script == Path("object-localization/main.py")
    assert boxes.words[2:] == ("../data/x/eigs/laplacian", "--dataset", "VOC12")
    assert masks.script == more.script == Path("object-segmentation/main.py")
    assert masks.words[1].startswith("data=[{name")
    (begun,) = commands_of_page("Commands start in `eagle/`.\n\n```\npython demo_segmentation.py a=b\n```\n")
    assert begun.script == Path("eagle/demo_segmentation.py")


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("--K", "--Q", "no flag --Q"),
        ("--K 5", "--K five", "K"),
        (" --output_dir z", "", "needs --output_dir"),
        ("--eigenseg", "--eigenseq", "does not know --eigenseq"),
        ("VOC12", "VOC13", "invalid choice: 'VOC13'"),
        ("strict=", "stricht=", "stricht"),
        ("strict=true", "strict=5.5", "strict"),
        ("visualize=3", "visualise=3", "visualise"),
        ("DATA=../data/x", "DATUM=../data/x", "variable not set"),
        ("python main.py visualize", "python mein.py visualize", "no such script"),
    ],
)
def test_mistakes_are_seen(understand, right, wrong, complaint):
    assert right in BLOCK
    with pytest.raises((pytest.fail.Exception, AssertionError), match=re.escape(complaint)):
        understand_all(BLOCK.replace(right, wrong), understand)
    understand_all(BLOCK, understand)
