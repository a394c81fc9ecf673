"""MaskCut's cuts beside the plain version with dense LAPACK: seconds per image, and pixels that differ.

    python tests/benchmarks/bench_objects.py --features DIR --count 8 --threads 1

`DIR` is an output folder of `extract_features`. Both take turns, image by image, from features in memory, three objects
each, before any CRF. Keys of random weights are all alike: `--centred` takes their mean over the image away.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from benchmarks import plain_maskcut  # noqa: E402
from spectralseg.files.images import patch_grid  # noqa: E402
from spectralseg.files.records import load_features  # noqa: E402
from spectralseg.mathematics.cuts import maskcut  # noqa: E402


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tau", type=float, default=0.15)
    parser.add_argument("--centred", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    different = pixels = patches = 0
    for path in sorted(arguments.features.glob("*.pth"))[: arguments.count]:
        record = load_features(path)
        rows, columns = patch_grid(*record["shape"][2:], record["patch_size"])
        keys = record["k"].float()
        keys = keys - keys.mean(dim=1, keepdim=True) if arguments.centred else keys
        start = time.perf_counter()
        (ours,) = maskcut(keys, (rows, columns), 3, arguments.tau)
        seconds["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        with threadpool_limits(arguments.threads):
            plain = plain_maskcut.maskcut(keys[0].numpy(), rows, columns, 3, arguments.tau)
        seconds["plain"].append(time.perf_counter() - start)
        patches = max(patches, rows * columns)
        for number in range(max(len(ours), len(plain))):
            pixels += rows * columns
            both = number < len(ours) and number < len(plain)
            different += int((ours[number].mask != plain[number]).sum()) if both else rows * columns
    ours, plain = (statistics.median(seconds[name]) for name in ("ours", "plain"))
    print(f"{len(seconds['ours'])} images, up to {patches} patches, {arguments.threads} threads")
    print(f"ours {ours:.3f} s, plain {plain:.3f} s: {plain / ours:.1f}x; {different} of {pixels} patches differ")


if __name__ == "__main__":
    main()
