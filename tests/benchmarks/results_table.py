"""README's tables of times, from the CSV files that `bench_stages.py` writes."""

import csv
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).resolve().parents[2] / "README.md"
MARKERS = ("<!-- written by tests/benchmarks/bench_stages.py -->\n", "<!-- until here -->\n")


def load(part: str) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(RESULTS / f"{part}.csv", newline="") as file:
        return list(csv.DictReader(file))


def readme_with_tables() -> str:
    """README, with what stands between its markers made anew."""
    before, rest = README.read_text().split(MARKERS[0])
    return before + MARKERS[0] + tables() + MARKERS[1] + rest.split(MARKERS[1])[1]


def tables() -> str:
    """Stages, whole commands, and how both grow."""
    stages, commands, patches, images = (load(part) for part in ("stages", "commands", "patches", "images"))
    sizes = list(dict.fromkeys(row["patches"] for row in stages))
    lines = [f"| stage | {' | '.join(f'{size} patches' for size in sizes)} |", "| --- |" + " --- |" * len(sizes)]
    for stage, variant in dict.fromkeys((row["stage"], row["variant"]) for row in stages if row["variant"] != "plain"):
        found = {row["patches"]: row for row in stages if (row["stage"], row["variant"]) == (stage, variant)}
        cells = [speed(found[size]) if size in found else "" for size in sizes]
        lines.append(f"| {stage}{variant.removeprefix('ours')} | {' | '.join(cells)} |")
    lines += ["", f"| whole command, {commands[0]['images']} images of {commands[0]['patches']} patches | ours |"]
    lines += [
        "| --- | --- |",
        *(f"| `{row['command']}` | {speed(row)} |" for row in commands if row["variant"] == "ours"),
    ]
    largest = {row["solver"]: row for row in patches}.values()
    solved = [f"{int(row['patches']):,} by `{row['solver']}` in {number(row, 'seconds')} s" for row in largest]
    last = images[-1]
    return "\n".join(
        [
            *lines,
            "",
            f"The largest graphs, in patches: {', '.join(solved)}.",
            f"Features without weights of {int(last['images']):,} images of 64x64 pixels: "
            f"{float(last['images_per_second']):.0f} a second, {last['open_files']} open files and "
            f"{float(last['peak_mib']):.0f} MiB at most;",
            f"the finished command started again: {number(last, 'restart_seconds')} s, of which the import of torch is "
            f"{number(last, 'import_torch')} s.",
            "",
            f"*{stages[0]['machine']}.*",
            "",
        ]
    )


def speed(row: dict[str, str]) -> str:
    """Seconds, times faster than plain, and the share of the floor."""
    share = round(100 * float(row["floor_seconds"]) / float(row["seconds"])) or "<1"
    return f"{number(row, 'seconds')} s, {number(row, 'times_faster')}x, {share} %"


def number(row: dict[str, str], name: str) -> str:
    """Two digits."""
    value = float(row[name])
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
