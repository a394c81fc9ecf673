"""docs/reproduce.md: no row of the published tables is without its command."""

from pathlib import Path

import pytest

from documented_commands import Command, commands_of_page
from objectloc.command import read_arguments
from shared_data import PROJECT

RECIPES = PROJECT / "docs" / "reproduce.md"
MODES, DATASETS = ("eigenseg", "lost", "tokencut", "dinoseg"), ("VOC07", "VOC12", "COCO20k")


@pytest.fixture(scope="module")
def recipes() -> list[Command]:
    return [command for command in commands_of_page(RECIPES.read_text()) if command.script.name == "main.py"]


def test_every_row_of_localization(recipes):
    asked = set()
    for command in recipes:
        if command.script == Path("object-localization/main.py"):
            _, data, detector = read_arguments(command.words)
            if (data.set, detector.arch, detector.patch_size, detector.weights) == ("trainval", "vit_small", 16, None):
                asked.add((detector.mode, data.dataset))
    assert asked >= {(mode, dataset) for mode in MODES for dataset in DATASETS}


def test_eigenvectors_of_localization_are_made_first(recipes):
    """Each folder of precomputed eigenvectors is the output of a command on the same page."""
    made = {
        (command.folder / command.words[command.words.index("--output_dir") + 1]).resolve()
        for command in commands_of_page(RECIPES.read_text())
        if command.words[:1] == ("extract_eigs",)
    }
    read = {
        (command.folder / command.words[command.words.index("--precomputed_eigs_dir") + 1]).resolve()
        for command in recipes
        if "--precomputed_eigs_dir" in command.words
    }
    assert read
    assert read <= made
