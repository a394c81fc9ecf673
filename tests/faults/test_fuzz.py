"""A few of the damaged files and names of ``faults.fuzz``, the same in each run; ``make fuzz`` draws many."""

from pathlib import Path

import pytest

from faults.fuzz import fuzz_commands, fuzz_files, fuzz_names, prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    prepare(root)
    return root


@pytest.mark.parametrize(("fuzz", "count"), [(fuzz_files, 570), (fuzz_commands, 57)])
def test_changed_files(fuzz, count, good, capsys):
    counts = fuzz(good, count, seed=0)
    assert counts["wrong"] == 0, capsys.readouterr().err
    assert counts["read"] + counts["refused"] == count
    assert min(counts["read"], counts["refused"]) > count // 20


def test_names(capsys):
    counts = fuzz_names(50, seed=0)
    assert counts["wrong"] == 0, capsys.readouterr().err
    assert counts["done"] > 5
    assert counts["refused"] > 5
