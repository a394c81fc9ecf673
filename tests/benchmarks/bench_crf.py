"""The dense CRF by torch and by pydensecrf, side by side: time, labels and probabilities; the command in processes.

    python tests/benchmarks/bench_crf.py --images DIR --segmentations DIR --num_classes 21 --threads 1 2
    python tests/benchmarks/bench_crf.py --images DIR --segmentations DIR --soft --count 100

`--segmentations` holds label maps at patches, `<id>.png`, of 16 pixels each (`--downsample_factor`) for the images. The
first COUNT of these are taken, from memory; the backends take turns, image by image. Two rows: classes that no pixel
has as one (`dense_crf`), and each class for itself. `--soft`: EAGLE's parameters, and log-probabilities of 27 classes
from random logits at patches of 8 pixels instead of the label maps. `--processes`: the whole command, from its start to
its end, in wall time; the label maps must not depend on the processes.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spectralseg.errors import InputError
from spectralseg.files.images import find_image, load_image
from spectralseg.files.label_maps import load_labels, upscale_labels
from spectralseg.files.storage import list_ids
from spectralseg.mathematics import crf
from spectralseg.mathematics.crf import CERTAINTY, EAGLE_CRF, CrfSettings, dense_crf, infer, refine_probabilities
from spectralseg.running.devices import keep_freed_memory

EXTRACT = Path(__file__).resolve().parents[2] / "extract" / "extract.py"


BACKENDS = ("torch", "pydensecrf")
Inference = Callable[[CrfSettings], np.ndarray]  # (H, W) labels or (C, H, W) probabilities


def of_labels(image: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, Inference]:
    """What starts from a label map, with the default parameters."""
    unary = torch.full((num_classes, labels.size), -float(np.log(1 - CERTAINTY)))
    unary.scatter_(0, torch.from_numpy(labels.reshape(1, -1).astype(np.int64)), -float(np.log(CERTAINTY)))
    pixels = torch.from_numpy(image)
    return {
        "absent as one": lambda settings: dense_crf(image, labels, num_classes, settings),
        "each class": lambda settings: infer(pixels, unary, settings).reshape(num_classes, *labels.shape).numpy(),
    }


def soft(image: np.ndarray, number: int) -> dict[str, Inference]:
    """What starts from probabilities, with EAGLE's parameters."""
    height, width = image.shape[:2]
    logits = 2 * torch.randn(1, 27, height // 8, width // 8, generator=torch.Generator().manual_seed(number))
    logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear")
    log_probabilities = torch.log_softmax(logits, dim=1)[0]
    pixels = torch.from_numpy(image)

    def eagle(settings: CrfSettings) -> np.ndarray:
        crf = replace(EAGLE_CRF, crf_backend=settings.crf_backend)
        return refine_probabilities(pixels, log_probabilities, crf).numpy()

    return {"soft": eagle}


def compare(inputs: Iterator[dict[str, Inference]], threads: int) -> Iterator[str]:
    """A row for each kind of inference."""
    crf.THREADS = threads
    seconds: dict[str, dict[str, list[float]]] = {}
    different: dict[str, int] = {}
    furthest: dict[str, float] = {}
    pixels = 0
    for number, kinds in enumerate(inputs):
        for kind, inference in kinds.items():
            results = {}
            for backend in BACKENDS[:: 1 - 2 * (number % 2)]:
                start = time.perf_counter()
                results[backend] = inference(CrfSettings(crf_backend=backend))
                taken = time.perf_counter() - start
                seconds.setdefault(kind, {name: [] for name in BACKENDS})[backend].append(taken)
            ours, theirs = (results[backend] for backend in BACKENDS)
            labels = [each.argmax(axis=0) if each.ndim == 3 else each for each in (ours, theirs)]
            different[kind] = different.get(kind, 0) + int((labels[0] != labels[1]).sum())
            if ours.ndim == 3:
                furthest[kind] = max(furthest.get(kind, 0.0), float(np.abs(ours - theirs).max()))
        pixels += labels[0].size
    for kind, taken in seconds.items():
        ours, theirs = (statistics.median(taken[backend]) for backend in BACKENDS)
        distance = f"{furthest[kind]:.1e}" if kind in furthest else ""
        yield (
            f"| {kind} | {threads} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} | "
            f"{different[kind]} of {pixels} | {distance} |"
        )


def measure_command(
    images: list[Path], segmentations: Path, num_classes: int, step: int, processes: int, backend: str, folder: Path
) -> tuple[float, str]:
    """Wall seconds of the whole command, and a digest of all its label maps."""
    names = folder / "images.txt"
    names.write_text("\n".join(str(image.resolve()) for image in images))
    output = folder / f"{backend}{processes}"
    flags = {
        "images_list": names,
        "images_root": "/",
        "segmentations_dir": segmentations.resolve(),
        "output_dir": output,
        "num_classes": num_classes,
        "downsample_factor": step,
        "multiprocessing": processes,
        "crf_backend": backend,
    }
    command = [sys.executable, str(EXTRACT), "extract_crf_segmentations", *(f"--{k}={v}" for k, v in flags.items())]
    start = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    return seconds, hashlib.sha256(b"".join(p.read_bytes() for p in sorted(output.glob("*.png")))).hexdigest()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--segmentations", type=Path, required=True, metavar="DIR")
    parser.add_argument("--num_classes", type=int, default=21)
    parser.add_argument("--downsample_factor", type=int, default=16)
    parser.add_argument("--soft", action="store_true")
    parser.add_argument("--count", type=int, default=400, help="images (default 400)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of torch (default 1)")
    parser.add_argument("--processes", type=int, nargs="*", default=[], help="time the command too")
    arguments = parser.parse_args()
    classes, step = arguments.num_classes, arguments.downsample_factor
    try:
        ids = list_ids(arguments.segmentations, ".png")[: arguments.count]
        images = [find_image(arguments.images, image_id) for image_id in ids]
    except InputError as error:
        sys.exit(f"error: {error}")

    def inputs() -> Iterator[dict[str, Inference]]:
        for number, (image_id, path) in enumerate(zip(ids, images, strict=True)):
            image = np.array(load_image(path))
            labels = upscale_labels(load_labels(arguments.segmentations / f"{image_id}.png"), *image.shape[:2], step)
            labels = (labels > 0).astype(np.uint8) if classes == 2 else labels
            yield soft(image, number) if arguments.soft else of_labels(image, labels, classes)

    keep_freed_memory()  # as the command does
    print(f"{len(ids)} images, {os.cpu_count()} cores, load average at the start {os.getloadavg()[0]:.1f}")
    print("| classes | threads | torch, s / image | pydensecrf | ratio | labels that differ | probabilities, at most |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for threads in arguments.threads:
        for row in compare(inputs(), threads):
            print(row, flush=True)
    with tempfile.TemporaryDirectory() as name:
        for backend in BACKENDS if arguments.processes else ():
            digests = set()
            for processes in arguments.processes:
                where = (arguments.segmentations, classes, step, processes, backend, Path(name))
                seconds, digest = measure_command(images, *where)
                digests.add(digest)
                print(f"{backend}, {len(ids)} images, {processes} processes: {seconds:.1f} s, the whole command")
            print(f"results are {'equal' if len(digests) == 1 else 'DIFFERENT'}", flush=True)


if __name__ == "__main__":
    main()
