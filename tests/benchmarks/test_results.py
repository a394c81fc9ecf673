"""README's tables of times are those of the files in results/; nothing is timed here."""

from benchmarks.bench_stages import GRIDS, floor_of, keys_of
from benchmarks.results_table import README, load, readme_with_tables


def test_readme_has_the_tables_of_the_results():
    assert README.read_text() == readme_with_tables()


def test_results_cover_every_stage_and_size():
    rows = load("stages")
    stages = {(row["stage"], int(row["patches"])) for row in rows}
    assert stages == {(s, T) for s in ("features", "eigs", "segments", "objects", "crf", "eagle") for T in GRIDS}
    assert {row["times_faster"] for row in rows if row["variant"] == "plain"} == {"1"}
    for row in rows:
        assert row["floor_of"] == str(floor_of(row["stage"], int(row["patches"]), row["variant"]))
        assert 0 < float(row["floor_seconds"]) < float(row["seconds"])


def test_floor_of_features_by_hand():
    """Two patches: three tokens through eleven blocks, then keys."""
    tokens, D = 3, 384
    block = 2 * tokens * D * (3 * D + D + 4 * D + 4 * D) + 2 * 2 * tokens * tokens * D
    assert keys_of(2, 16) == 11 * block + 2 * tokens * D * D + 2 * 2 * 3 * 16 * 16 * D
