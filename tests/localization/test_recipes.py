"""docs/reproduce.md: what a command reads, one before it has made."""

import pytest

from documented_commands import Command, commands_of_page
from shared_data import PROJECT

RECIPES = PROJECT / "docs" / "reproduce.md"


@pytest.fixture(scope="module")
def recipes() -> list[Command]:
    return [command for command in commands_of_page(RECIPES.read_text()) if command.script.name == "main.py"]


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
