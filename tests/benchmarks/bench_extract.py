"""Time and memory of both extract stages beside a plain implementation of the published method.

    python tests/benchmarks/bench_extract.py --images DIR --weights-s16 PATH --weights-s8 PATH --output table.md

Takes the first COUNT images of 500x375 pixels of a folder: T = 31*23 = 713 patches for ViT-S/16 and 62*46 = 2852
for ViT-S/8. Each variant has a process of its own, so that its peak memory is its own and its allocator settings
help no other. The processes take turns image by image, so that noise from outside hits all alike, and only one
computes at a time. Timed: cropping, normalisation and network, one image at a time (features); features in memory
to eigenvectors in memory (eigs). Decoding and files are timed in no variant. One untimed image comes first.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (500, 375)
VARIANT_PROCESS = Path(__file__).with_name("variant_process.py")
PAUSE = 0.05  # seconds after each answer, for the threads of the process that answered to fall asleep
NAMES = {"plain": "plain", "float32": "ours", "bfloat16": "ours, bfloat16", "eigen": "ours"}


class Worker:
    """A process that runs one variant (`variant_process.py`).

    It starts from a small main process, without torch: on Linux a child's peak memory counts from its parent's.
    """

    def __init__(self, **settings: str) -> None:
        command = [sys.executable, str(VARIANT_PROCESS), json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def __call__(self, **request: object) -> dict:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a measuring process ended early (status {self.process.wait()})")
        time.sleep(PAUSE)
        return json.loads(answer)


@dataclasses.dataclass
class Result:
    """What one variant did.

    Attributes
    ----------
    seconds : per image, the least over rounds.
    start_mib, peak_mib : the largest resident memory before the first image, and in all.
    remark : on its results.
    """

    seconds: list[float]
    start_mib: float
    peak_mib: float
    remark: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(settings: dict[str, dict], requests: Sequence[dict], rounds: int, saves: dict[str, list]) -> dict:
    """Run all requests in all variants, in turns.

    Parameters
    ----------
    settings : variant -> arguments of its `Worker`.
    requests : one per image.
    saves : variant -> one path per image for the result of the first round.

    Returns
    -------
    variant -> `Result`; its remark counts the fallbacks of the eigensolver.
    """
    seconds = {variant: [[] for _ in requests] for variant in settings}
    memory, fallbacks = {}, dict.fromkeys(settings, 0)
    with ExitStack() as stack:
        workers = {variant: stack.enter_context(Worker(**arguments)) for variant, arguments in settings.items()}
        for worker in workers.values():
            worker(**requests[0])
        for turn in range(rounds):
            for index, request in enumerate(requests):
                order = list(workers)
                for variant in order if (index + turn) % 2 else order[::-1]:
                    answer = workers[variant](**request, save=saves[variant][index] if turn == 0 else None)
                    seconds[variant][index].append(answer["seconds"])
                    memory[variant] = (answer["start_mib"], answer["peak_mib"])
                    fallbacks[variant] += turn == 0 and answer.get("fell_back", False)
    results = {}
    for variant in settings:
        least = [min(each) for each in seconds[variant]]  # other work on the machine can only add to it
        remark = f"{fallbacks[variant]} fallbacks" if fallbacks[variant] else ""
        results[variant] = Result(least, *memory[variant], remark)
    return results


def relative_error(a: str, b: str) -> float:
    """||a - b|| / ||b|| of two saved arrays."""
    a, b = np.load(a), np.load(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare_eigenpairs(ours: str, plain: str) -> tuple[float, float]:
    """The smallest |cos| of an eigenvector to its plain one, and the largest difference of eigenvalues.

    Where plain eigenvalues lie within 1e-3 of each other, the angle is that to the space their eigenvectors span:
    within it float32 does not fix directions.
    """
    a, b = np.load(ours), np.load(plain)
    cosines = []
    for x, value in zip(a["vectors"], b["values"], strict=True):
        span = np.linalg.qr(b["vectors"][np.abs(b["values"] - value) < 1e-3].T)[0]
        cosines.append(np.linalg.norm(span.T @ x) / np.linalg.norm(x))
    return float(min(cosines)), float(np.abs(a["values"] - b["values"]).max())


def bench_features(images: list[Path], model: str, weights: str, rounds: int, folder: Path) -> dict[str, Result]:
    """Measure the features of one model; leaves the plain keys in `folder`/<model>-plain-<index>.npy."""
    variants = ("plain", "float32", "bfloat16")
    settings = {v: {"stage": "features", "variant": v, "model": model, "weights": weights} for v in variants}
    saves = {v: [str(folder / f"{model}-{v}-{i}.npy") for i in range(len(images))] for v in variants}
    results = measure(settings, [{"image": str(image)} for image in images], rounds, saves)
    for variant in variants[1:]:
        error = max(relative_error(a, b) for a, b in zip(saves[variant], saves["plain"], strict=True))
        results[variant].remark = f"relative error of keys <= {error:.1e}"
    return results


def bench_eigs(features: list[Path], K: int, rounds: int, folder: Path) -> dict[str, Result]:
    """Measure the eigenvectors of saved features."""
    variants = ("plain", "eigen")
    settings = {v: {"stage": "eigs", "variant": v} for v in variants}
    saves = {v: [str(folder / f"eigs-{v}-{i}.npz") for i in range(len(features))] for v in variants}
    results = measure(settings, [{"features": str(path), "K": K} for path in features], rounds, saves)
    compared = [compare_eigenpairs(a, b) for a, b in zip(saves["eigen"], saves["plain"], strict=True)]
    cosine, difference = min(c for c, _ in compared), max(d for _, d in compared)
    results["eigen"].remark = f"\\|cos\\| >= {cosine:.5f}, eigenvalues within {difference:.0e}"
    return results


def table_rows(label: str, results: dict[str, Result]) -> list[str]:
    """Markdown rows, the plain variant first."""
    plain = results["plain"].median
    return [
        f"| {label} | {NAMES[variant]} | {result.median:.3f} | {plain / result.median:.1f}x | "
        f"{result.peak_mib:.0f} ({result.start_mib:.0f}) | {result.remark} |"
        for variant, result in results.items()
    ]


def choose_images(folder: Path, count: int) -> list[Path]:
    """The first `count` images of 500x375 pixels, in the order of their names."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in {".jpg", ".jpeg", ".png"}:
            with Image.open(path) as image:
                found += [path] if image.size == SIZE else []
        if len(found) == count:
            break
    if not found:
        raise SystemExit(f"no image of {SIZE[0]}x{SIZE[1]} pixels in {folder}")
    return found


def lab_hog_features(images: list[Path], patch_size: int, folder: Path) -> list[Path]:
    """Features that need no weights, with their wider spectrum, one file per image (made in a process of their own)."""
    settings = {"stage": "features", "variant": "float32", "model": f"lab_hog{patch_size}", "weights": ""}
    paths = [folder / f"lab_hog-{i}.npy" for i in range(len(images))]
    with Worker(**settings) as worker:
        for image, path in zip(images, paths, strict=True):
            worker(image=str(image), save=str(path))
    return paths


def main() -> None:
    """Measure, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights-s16", required=True, metavar="PATH", help="DINO ViT-S/16 in the published layout")
    parser.add_argument("--weights-s8", required=True, metavar="PATH", help="DINO ViT-S/8 in the published layout")
    parser.add_argument("--count", type=int, default=20, help="images (default 20)")
    parser.add_argument("--k", type=int, default=5, help="eigenvectors (default 5)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that each image is measured; the least counts (default 3)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of each process (default: one per core)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table here too")
    arguments = parser.parse_args()

    if arguments.threads:  # inherited by the measuring processes
        os.environ |= dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), f"{arguments.threads}"
        )
    images, rounds = choose_images(arguments.images, arguments.count), arguments.rounds
    rows = [
        "| stage | variant | s / image | speed | peak MiB (before) | results against plain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    load = os.getloadavg()[0]

    def add(label: str, results: dict[str, Result]) -> None:
        rows.extend(table_rows(label, results))
        print(*rows[-len(results) :], sep="\n", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "S/16, T=713": ("dino_vits16", arguments.weights_s16),
            "S/8, T=2852": ("dino_vits8", arguments.weights_s8),
        }
        for label, (model, weights) in models.items():
            add(f"features, {label}", bench_features(images, model, weights, rounds, folder))
        for label, (model, _) in models.items():
            keys = [folder / f"{model}-plain-{i}.npy" for i in range(len(images))]
            for K in sorted({arguments.k, 20}):
                add(f"eigs, {label}, K={K}", bench_eigs(keys, K, rounds, folder))
        statistics_8 = lab_hog_features(images, 8, folder)
        add(f"eigs, lab_hog, T=2852, K={arguments.k}", bench_eigs(statistics_8, arguments.k, rounds, folder))

    threads = arguments.threads or os.cpu_count()
    note = f"{len(images)} images, {rounds} rounds, {threads} threads, load average at the start {load:.1f}."
    table = "\n".join([*rows, "", note, ""])
    print(table)
    if arguments.output:
        arguments.output.write_text(table)


if __name__ == "__main__":
    main()
