"""The commands of docs/reproduce.md: every flag and value in them exists, and no published row is without a block."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

import extract
from shared_data import PROJECT
from spectralseg.cli import _checked_flags
from spectralseg.errors import InputError

RECIPES = PROJECT / "docs" / "reproduce.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "shell")
PUBLISHED = {
    (mode, dataset) for mode in ("eigenseg", "lost", "tokencut", "dinoseg") for dataset in ("VOC07", "VOC12", "COCO20k")
}


@dataclass(frozen=True)
class Command:
    """A line of a block that starts one of our scripts."""

    script: Path  # below the repository
    words: tuple[str, ...]  # what follows it


def commands(text: str) -> list[Command]:
    """The Python commands of all fenced blocks, each found from the folder that the block has changed to.

    Lines that end in a backslash go on; variables stand for themselves; launchers and assignments may precede.
    """
    found = []
    for language, block in FENCE.findall(text):
        if language not in SHELLS:
            continue
        folders = [PROJECT]  # a subshell changes to folders of its own
        for line in block.replace("\\\n", " ").splitlines():
            for words in simple_commands(line):
                if words == ["("]:
                    folders.append(folders[-1])
                elif words == [")"]:
                    folders.pop()
                elif words[0] == "cd":
                    folders[-1] = (folders[-1] / words[1]).resolve()
                scripts = [index for index, word in enumerate(words) if word.endswith(".py")]
                script = (folders[-1] / words[scripts[0]]).resolve() if scripts else Path()
                if script.is_relative_to(PROJECT):
                    found.append(Command(script.relative_to(PROJECT), tuple(words[scripts[0] + 1 :])))
    return found


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a line of shell; parentheses are commands of their own, redirections are cut off."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            parts += [[word], []] if word in "()" else [[]]
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


@pytest.fixture(scope="module")
def recipes() -> list[Command]:
    if not RECIPES.is_file() or "## Object localization" not in RECIPES.read_text():
        pytest.skip(f"needs the section 'Object localization' of {RECIPES}, which is not written yet")
    return commands(RECIPES.read_text())


def check(command: Command, main_module) -> None:
    """Raise or exit if a command's flags are not those of its script."""
    if command.script == Path("object-localization/main.py"):
        main_module.read_arguments(command.words)
    elif command.script == Path("extract/extract.py"):
        _checked_flags(getattr(extract, command.words[0]), command.words[1:])
    assert (PROJECT / command.script).is_file(), command


def test_every_flag_exists(recipes, main_module):
    for command in recipes:
        check(command, main_module)


def test_every_published_row_has_its_command(recipes, main_module):
    asked = set()
    for command in recipes:
        if command.script == Path("object-localization/main.py"):
            args, _, _ = main_module.read_arguments(command.words)
            asked.add((args.mode, args.dataset))
    assert asked >= PUBLISHED


# --- the test's own eyes ---

BLOCK = """
Text --not_a_flag

```python
main.py --not_a_shell
```

```sh
python ../shared/not_ours.py
(cd elsewhere && find . | sed 's|^; ||') > list.txt
cd extract
python extract.py extract_eigs --images_root x --features_dir y \\
    --output_dir z --K 5   # five
cd ../object-localization && python main.py --eigenseg --precomputed_eigs_dir "$DATA/eigs/laplacian" --dataset VOC12
```
"""


def test_commands_are_found():
    eigs, boxes = commands(BLOCK)
    assert eigs.script == Path("extract/extract.py")
    assert eigs.words[0] == "extract_eigs"
    assert eigs.words[-2:] == ("--K", "5")
    assert boxes.script == Path("object-localization/main.py")
    assert boxes.words[-1] == "VOC12"


def test_a_wrong_flag_is_seen(main_module):
    eigs, boxes = commands(BLOCK)
    check(eigs, main_module)
    check(boxes, main_module)
    with pytest.raises(InputError, match="no flag --Q"):
        check(commands(BLOCK.replace("--K", "--Q"))[0], main_module)
    for wrong in (BLOCK.replace("--eigenseg", "--eigenseq"), BLOCK.replace("VOC12", "VOC13")):
        with pytest.raises(SystemExit, match="error: "):
            check(commands(wrong)[1], main_module)
