"""Find the commands that the project's pages and scripts show their readers.

In pages (.md) they stand in fenced blocks, in scripts in indented lines of the documentation at the top. A reader types
them one after the other: blocks that start with ``cd folder`` start in the repository, others where the one before
ended. A page may say ``Commands start in `folder/`.`` before its first block.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared_data import PROJECT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "shell")
START = re.compile(r"(?:start|run)\s+in\s+`([\w-]+)/`")
INDENTED = re.compile(r"(?:^    .*\n?)+", re.MULTILINE)
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
LAUNCHERS = {"python", "python3", "streamlit", "accelerate", "torchrun", "srun"}


@dataclass(frozen=True)
class Command:
    """A command that starts one of our scripts.

    Attributes
    ----------
    page
        Where it stands, below the repository.
    folder
        Where its reader is meanwhile.
    script
        Below the repository.
    words
        What follows the script, variables that the block sets put in.
    """

    page: str
    folder: Path
    script: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.script} {shlex.join(self.words)}"


def commands_of_page(text: str, page: str = "page") -> list[Command]:
    """The commands of all fenced blocks of a page."""
    first_block = text.find("```")
    start = START.search(text[:first_block]) if first_block >= 0 else None
    folder, found = PROJECT / (start[1] if start else ""), []
    for language, block in FENCE.findall(text):
        if language in SHELLS:
            commands, folder = _of_block(block, page, folder)
            found += commands
    return found


def commands_of_script(path: Path, documentation: str) -> list[Command]:
    """The commands that a script's documentation shows; they start in its folder."""
    page, found = str(path.relative_to(PROJECT)), []
    for block in INDENTED.findall(documentation):
        try:
            found += _of_block(block, page, path.parent)[0]
        except ValueError:  # no shell: code with an apostrophe
            continue
    return found


def _of_block(block: str, page: str, folder: Path) -> tuple[list[Command], Path]:
    """The commands of a block that starts in ``folder``, and where it ends."""
    found, variables = [], {}
    first = block.split()
    if first[:1] == ["cd"] and not first[1].startswith("."):
        folder = PROJECT
    folders = [folder]  # a subshell changes to folders of its own
    for line in block.replace("\\\n", " ").splitlines():
        for words in _simple_commands(line):
            words = [_substituted(word, variables) for word in words]
            if words == ["("]:
                folders.append(folders[-1])
            elif words == [")"]:
                folders.pop()
            elif words[0] == "cd":
                folders[-1] = (folders[-1] / words[1]).resolve()
            elif words[0] == "for":
                variables[words[1]] = words[3]  # the first of its values stands for all
            elif all(ASSIGNMENT.fullmatch(word) for word in words):
                variables |= dict(ASSIGNMENT.fullmatch(word).groups() for word in words)
            scripts = [index for index, word in enumerate(words) if word.endswith(".py")]
            started = bool(scripts) and not LAUNCHERS.isdisjoint(words[: scripts[0]])
            script = (folders[-1] / words[scripts[0]]).resolve() if started else Path()
            if script.is_relative_to(PROJECT):
                after = tuple(word for word in words[scripts[0] + 1 :] if word != "--")  # streamlit run x.py -- ...
                found.append(Command(page, folders[-1], script.relative_to(PROJECT), after))
    return found, folders[0]


def _substituted(word: str, variables: dict[str, str]) -> str:
    return VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), word)


def _simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line of shell; parentheses are commands of their own, redirections are cut off."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    part: list[str] = []
    for word in lexer:
        if set(word) <= set("();<>|&"):
            if part:
                yield part
            part = []
            if word in "()":
                yield [word]
        else:
            part.append(word)
    if part:
        yield part
