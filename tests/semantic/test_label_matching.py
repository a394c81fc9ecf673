"""The setting ``matching``: what is accepted, and that nothing of it is executed."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semanticseg.matches import UNMATCHED, read_match, renaming
from spectralseg.errors import InputError


@pytest.mark.parametrize(
    "given_match",
    [
        "[(0, 0), (1, 5), (2, 8)]",
        " [ (0,0),(1,5),\n (2, 8), ]",
        "[[0, 0], [1, 5], [2, 8]]",
        "((2, 8), (0, 0), (1, 5))",
        [[0, 0], [1, 5], [2, 8]],
        [(2, 8), (1, 5), (0, 0)],
    ],
)
def test_forms(given_match):
    assert read_match(given_match, 21, 21) == [(0, 0), (1, 5), (2, 8)]


def test_nothing_identity_and_files(tmp_path: Path):
    assert read_match(None, 3, 3) is None
    assert read_match("identity", 3, 3) == [(0, 0), (1, 1), (2, 2)]
    (tmp_path / "results.json").write_text(json.dumps({"matching": [[1, 2], [0, 0]]}))
    assert read_match(str(tmp_path / "results.json"), 3, 3) == [(0, 0), (1, 2)]


@given(st.dictionaries(st.integers(0, 20), st.integers(0, 20), min_size=1))
def test_what_is_printed_can_be_read(pairs: dict[int, int]):
    match = sorted(pairs.items())
    assert read_match(f"{match}", 21, 21) == match


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch executed')",
        "[(0, open('executed', 'w'))]",
        "[(i, i) for i in range(3)]",
        "[(0, 0), (1,",
        "(" * 10000,
        "best",
        "",
        "[(0, 0)] * 9",
    ],
)
def test_nothing_is_executed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be read; it looks like") as error:
        read_match(text, 21, 21)
    assert len(str(error.value)) < 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given_match", "message"),
    [
        ("{0: 1}", "must be a list"),
        (7, "must be a list"),
        ("[]", "names no cluster"),
        ("[(0, 1, 2)]", "no pair"),
        ("[(0, 1.0)]", "no pair"),
        ("[(True, 0)]", "no pair"),
        ("['ab']", "no pair"),
        ("[(0, 0), (0, 1)]", "cluster 0 twice"),
        ("[(21, 0)]", "beyond clusters 0 to 20 and classes 0 to 20"),
        ("[(0, -1)]", "beyond clusters"),
        ("absent.json", "no such file"),
    ],
)
def test_what_is_no_match(given_match, message: str):
    with pytest.raises(InputError, match=message):
        read_match(given_match, 21, 21)


@pytest.mark.parametrize("content", ["[1]", "{}", "no json", '{"seeds": {}}'])
def test_files_without_a_match(tmp_path: Path, content: str):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match="matching|results.json cannot be read"):
        read_match(str(tmp_path / "results.json"), 21, 21)


def test_renaming():
    table = renaming([(0, 0), (2, 5)])
    np.testing.assert_array_equal(table[np.uint8([[0, 2], [1, 255]])], [[0, 5], [UNMATCHED, UNMATCHED]])
