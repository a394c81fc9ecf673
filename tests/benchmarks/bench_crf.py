"""Time of the dense CRF: an image on one core, and the command `extract_crf_segmentations` in several processes.

    python tests/benchmarks/bench_crf.py --images DIR --segmentations DIR --num_classes 21 --processes 1 2

`--segmentations` holds label maps at patches, `<id>.png`, of 16 pixels each (`--downsample_factor`) for the images. The
first COUNT of these are taken. On one core: images and label maps in memory, the median over images of processor time.
The command: everything from its start to its end, in wall time; the label maps must not depend on the processes.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spectralseg.errors import InputError
from spectralseg.files.images import find_image, load_image
from spectralseg.files.label_maps import load_labels, upscale_labels
from spectralseg.files.storage import list_ids
from spectralseg.mathematics.crf import CERTAINTY, CrfSettings, dense_crf, infer

EXTRACT = Path(__file__).resolve().parents[2] / "extract" / "extract.py"


def each_class(image: np.ndarray, labels: np.ndarray, num_classes: int, settings: CrfSettings) -> np.ndarray:
    """`dense_crf` as published, which carries the classes that the map lacks along one by one."""
    unary = np.full((num_classes, labels.size), -np.log(1 - CERTAINTY), dtype=np.float32)
    unary[labels.ravel(), np.arange(labels.size)] = -np.log(CERTAINTY)
    return infer(image, unary, settings).argmax(axis=0).reshape(labels.shape)


def processor_time(function: Callable[..., np.ndarray], *arguments: object) -> tuple[float, np.ndarray]:
    """Seconds of one core that a call takes, and what it returns."""
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def measure_images(images: list[Path], maps: list[Path], num_classes: int, step: int) -> str:
    """A line on one image at a time, ours and as published."""
    ours, published, different, pixels, present = [], [], 0, 0, []
    for path, label_map in zip(images, maps, strict=True):
        image = np.array(load_image(path))
        labels = upscale_labels(load_labels(label_map), *image.shape[:2], step)
        labels = (labels > 0).astype(np.uint8) if num_classes == 2 else labels
        seconds, sharp = processor_time(dense_crf, image, labels, num_classes, CrfSettings())
        ours.append(seconds)
        seconds, sharp_published = processor_time(each_class, image, labels, num_classes, CrfSettings())
        published.append(seconds)
        different += int((sharp != sharp_published).sum())
        pixels += labels.size
        present.append(len(np.unique(labels)))
    once, each = statistics.median(ours), statistics.median(published)
    return (
        f"{once:.3f} s / image on one core, each class for itself {each:.3f}; {different} of {pixels} pixels differ; "
        f"{statistics.mean(present):.1f} of {num_classes} classes in a map"
    )


def measure_command(
    images: list[Path], segmentations: Path, num_classes: int, step: int, processes: int, folder: Path
) -> tuple[float, str]:
    """Wall seconds of the whole command, and a digest of all its label maps."""
    names = folder / "images.txt"
    names.write_text("\n".join(str(image.resolve()) for image in images))
    output = folder / f"crf{processes}"
    flags = {
        "images_list": names,
        "images_root": "/",
        "segmentations_dir": segmentations.resolve(),
        "output_dir": output,
        "num_classes": num_classes,
        "downsample_factor": step,
        "multiprocessing": processes,
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
    parser.add_argument("--count", type=int, default=100, help="images (default 100); of the one-core line 20")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    classes, step = arguments.num_classes, arguments.downsample_factor
    try:
        ids = list_ids(arguments.segmentations, ".png")[: arguments.count]
        images = [find_image(arguments.images, image_id) for image_id in ids]
    except InputError as error:
        sys.exit(f"error: {error}")
    maps = [arguments.segmentations / f"{image_id}.png" for image_id in ids]
    load = os.getloadavg()[0]
    print(measure_images(images[:20], maps[:20], classes, step), flush=True)
    digests = set()
    with tempfile.TemporaryDirectory() as name:
        for processes in arguments.processes:
            seconds, digest = measure_command(images, arguments.segmentations, classes, step, processes, Path(name))
            digests.add(digest)
            print(f"{len(ids)} images, {processes} processes: {seconds:.1f} s, the whole command", flush=True)
    print(f"results are {'equal' if len(digests) == 1 else 'DIFFERENT'}; load average at the start {load:.1f}")


if __name__ == "__main__":
    main()
