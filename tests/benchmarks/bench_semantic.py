"""Time and memory of the semantic evaluation beside reading its files alone.

    python tests/benchmarks/bench_semantic.py [--images 1449] [--folder DIR] [--rounds 3]

Makes as many pairs of 500x375 label maps as VOC2012's validation set has (outlines of real sharpness: patches of 16
pixels for the label maps, ellipses with void borders for the truth) and measures, each in a process of its own:
reading all PNGs, one after the other; counting them (``semanticseg.evaluation.count``) without and with threads; and
``main.py`` from start to results.json. Seconds are the least of the rounds, memory is the peak resident size.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
SIZE = (375, 500)


def write_pairs(root: Path, count: int) -> None:
    """``count`` label maps and true masks in VOC's layout, below ``root``; kept if they are there."""
    from spectralseg.files.label_maps import save_labels

    masks, segments = root / "VOCdevkit" / "VOC2012" / "SegmentationClass", root / "segmaps"
    listed = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt"
    for folder in (masks, segments, listed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:06d}" for index in range(count)]
    listed.write_text("\n".join(names))
    random = np.random.default_rng(0)
    rows, columns = np.indices(SIZE)
    for name in names:
        if (segments / f"{name}.png").exists():
            continue
        truth = np.zeros(SIZE, np.uint8)
        for _ in range(3):
            centre, radius = random.uniform(0, 1, 2) * SIZE, random.uniform(30, 150, 2)
            distance = ((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2
            truth[distance < 1.1] = 255
            truth[distance < 1] = random.integers(1, 21)
        save_labels(masks / f"{name}.png", truth)
        cells = random.integers(0, 21, (6, 8)).repeat(4, 0).repeat(4, 1)[:24, :32]
        save_labels(segments / f"{name}.png", np.kron(cells, np.ones((16, 16), int))[: SIZE[0], : SIZE[1]])


def measure(role: str, root: Path) -> None:
    """Do ``role`` once and print seconds and peak memory as JSON."""
    from semanticseg.evaluation import count
    from semanticseg.pseudolabels import pair, read_ids
    from semanticseg.settings import Data, Loader, Transform
    from spectralseg.files.label_maps import load_labels

    voc = root / "VOCdevkit" / "VOC2012"
    listed = voc / "ImageSets" / "Segmentation" / "val.txt"
    files = pair(read_ids(listed), None, voc / "SegmentationClass", root / "segmaps")
    threads = int(role.removeprefix("count")) if role != "read" else 0
    data = Data(20, 20, str(root), "", "", str(listed), Loader(1, threads), Transform(8, 8))
    start = time.perf_counter()
    if role == "read":
        for entry in files:
            load_labels(entry.truth)
            load_labels(entry.segments)
    else:
        count(files, data)
    report(time.perf_counter() - start, resource.RUSAGE_SELF)


def report(seconds: float, who: int) -> None:
    """Print what a process took."""
    print(json.dumps({"seconds": seconds, "peak_mib": resource.getrusage(who).ru_maxrss / 1024}))


def run_main(root: Path) -> None:
    """main.py as users start it, in a process of its own."""
    command = [sys.executable, str(PROJECT / "semantic-segmentation" / "main.py"), f"data.root={root}", "visualize=0"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        places = [f"segments_dir={root / 'segmaps'}", f"hydra.run.dir={folder}"]
        subprocess.run([*command, *places], check=True, capture_output=True)
    report(time.perf_counter() - start, resource.RUSAGE_CHILDREN)


def main() -> None:
    """Print a table; or, with --role, measure in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1449)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench_semantic")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        run_main(args.folder) if args.role == "main" else measure(args.role, args.folder)
        return
    write_pairs(args.folder, args.images)
    threads = os.cpu_count() or 1
    rows = {
        "read": "reading the PNGs",
        "count0": "counting, no threads",
        f"count{threads}": f"counting, {threads} threads",
        "main": "main.py, start to end",
    }
    print(f"{args.images} pairs of {SIZE[1]}x{SIZE[0]} pixels\n")
    print("| what | seconds | ms per image | peak MiB |\n| --- | ---: | ---: | ---: |")
    for role, name in rows.items():
        command = [sys.executable, __file__, "--role", role, "--folder", str(args.folder)]
        done = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(args.rounds)]
        results = [json.loads(one.stdout.splitlines()[-1]) for one in done]
        seconds = min(result["seconds"] for result in results)
        peak = max(result["peak_mib"] for result in results)
        print(f"| {name} | {seconds:.2f} | {1000 * seconds / args.images:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(PROJECT / "semantic-segmentation")]
    main()
