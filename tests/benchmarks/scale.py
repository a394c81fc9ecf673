"""``stream`` on a cluster of two local nodes, one of which is killed, as is the command itself, three times.

    python tests/benchmarks/scale.py --folder DIR [--images 20000] [--shards 20]

Writes shards of small pictures, runs the command against the cluster until it ends by itself, and checks that the
tables hold each image once, with the values of the stage commands for the images of one shard. Prints seconds, images
per second and memory of all processes over the run. The exit status is 1 if anything differs.
"""

import argparse
import filecmp
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
from PIL import Image

EXTRACT = Path(__file__).resolve().parents[2] / "extract" / "extract.py"
SIDES = (64, 80, 96)


def write_shards(folder: Path, images: int, shards: int) -> None:
    """PNG pictures of a rectangle on noise, ``image-00000.png``, ..., the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"s-{shard:03d}.tar", "w") as tar:
            for number in range(shard * images // shards, (shard + 1) * images // shards):
                random = np.random.default_rng(number)
                width, height = random.choice(SIDES, 2)
                pixels = random.integers(0, 100, (height, width, 3), dtype=np.uint8)
                left, top = random.integers(8, 32, 2)
                pixels[top : top + 28, left : left + 28] += np.uint8(120)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                info = tarfile.TarInfo(f"image-{number:05d}.png")
                info.size = len(buffer.getvalue())
                tar.addfile(info, io.BytesIO(buffer.getvalue()))


def rows_there(tables: Path) -> int:
    """Rows of whole shards and of parts."""
    count = 0
    for path in [*tables.glob("*.parquet"), *tables.glob("parts/*.parquet")]:
        try:
            count += pyarrow.parquet.read_metadata(path).num_rows
        except OSError:  # a part that has just been joined
            continue
    return count


def memory(root: psutil.Process) -> float:
    """GiB of this process and all below it, pages that several share counted once each."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**30


def run(arguments: argparse.Namespace, tables: Path) -> None:
    """The command until it ends, with its deaths."""
    from ray.cluster_utils import Cluster  # changes the process that imports it

    os.environ["PYTHONPATH"] = str(EXTRACT.parent)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    command = [sys.executable, EXTRACT, "stream", f"--shards={arguments.folder}/shards/s-*.tar", "--model_name=lab_hog"]
    command += [f"--output_dir={tables}", "--eigenvectors=float32", f"--ray_address={cluster.address}"]
    deaths = [(share * arguments.images, what) for share, what in ((0.15, 0), (0.35, 1), (0.5, 0), (0.7, 0))]
    started, samples, process = time.monotonic(), [], None
    while process is None or process.poll() is None:
        if process is None:
            process = subprocess.Popen(command)
        time.sleep(1)
        samples.append((time.monotonic() - started, rows_there(tables), memory(psutil.Process())))
        if deaths and samples[-1][1] >= deaths[0][0]:
            _, is_node = deaths.pop(0)
            seconds, count, _ = samples[-1]
            print(f"{seconds:.0f} s, {count} rows: {'a node' if is_node else 'the command'} is killed", flush=True)
            if is_node:
                cluster.remove_node(second, allow_graceful=False)
                second = cluster.add_node(num_cpus=1)
            else:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                process = None
    seconds = time.monotonic() - started
    print(f"exit status {process.returncode}, {seconds:.0f} s, {arguments.images / seconds:.0f} images/s")
    print("| seconds | rows | rows / s since | GiB |\n| ---: | ---: | ---: | ---: |")
    before = (0.0, 0, 0.0)
    for sample in samples[:: max(1, len(samples) // 15)]:
        rate = (sample[1] - before[1]) / max(1e-9, sample[0] - before[0])
        print(f"| {sample[0]:.0f} | {sample[1]} | {rate:.0f} | {sample[2]:.2f} |")
        before = sample
    cluster.shutdown()
    if process.returncode or deaths:
        sys.exit("error: it did not end well")


def check(arguments: argparse.Namespace, tables: Path) -> None:
    """Each image once; the files of one shard are those of the stage commands."""
    found = [pyarrow.parquet.read_table(path, columns=["id", "error"]) for path in sorted(tables.glob("*.parquet"))]
    ids = [one for table in found for one in table["id"].to_pylist()]
    errors = sum(table["error"].null_count for table in found)
    if sorted(ids) != [f"image-{number:05d}" for number in range(arguments.images)] or errors != len(ids):
        sys.exit(f"error: {len(ids)} rows, {len(set(ids))} ids, {len(ids) - errors} errors")
    print(f"{len(ids)} rows, each image once, no errors; parts left: {len(list(tables.glob('parts/*')))}")
    work = arguments.folder / "stages"
    with tarfile.open(arguments.folder / "shards" / "s-003.tar") as tar:
        tar.extractall(work / "images", filter="data")
    (work / "list.txt").write_text("".join(f"{path.name}\n" for path in sorted((work / "images").iterdir())))
    both = {"features_dir": work / "features", "eigs_dir": work / "eigs"}
    segments = work / "multi_region_segmentation" / "patches"
    for name, flags in {
        "extract_features": {
            "images_list": work / "list.txt",
            "model_name": "lab_hog",
            "output_dir": work / "features",
        },
        "extract_eigs": {"features_dir": work / "features", "K": 5, "output_dir": work / "eigs"},
        "extract_single_region_segmentations": both | {"output_dir": work / "single_region_segmentation" / "patches"},
        "extract_multi_region_segmentations": both | {"output_dir": segments},
        "unpack": {"tables_dir": tables, "output_dir": arguments.folder / "unpacked"},
    }.items():
        flags |= {"images_root": work / "images"} if name in ("extract_features", "extract_eigs") else {}
        subprocess.run(
            [sys.executable, EXTRACT, name, *(f"--{key}={value}" for key, value in flags.items())], check=True
        )
    compared = 0
    for folder in ("eigs", "single_region_segmentation/patches", "multi_region_segmentation/patches"):
        names = [path.name for path in (work / folder).iterdir() if path.name != "stage.json"]
        same, different, missing = filecmp.cmpfiles(work / folder, arguments.folder / "unpacked" / folder, names, False)
        if different or missing:
            sys.exit(f"error: {folder}: {len(different)} differ, {len(missing)} are missing")
        compared += len(same)
    print(f"{compared} files of one shard, equal to those of the stage commands, byte by byte")


def main() -> None:
    """Write, run, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=20)
    arguments = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    tables = arguments.folder / "tables"
    write_shards(arguments.folder / "shards", arguments.images, arguments.shards)
    run(arguments, tables)
    check(arguments, tables)


if __name__ == "__main__":
    main()
