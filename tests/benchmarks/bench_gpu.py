"""Eigenvectors and the dense CRF on a GPU: images per second, and how far the results are from the CPU's.

    python tests/benchmarks/bench_gpu.py --images DIR --weights-s16 PATH --weights-s8 PATH

From photographs of one size (500x375) in memory: keys by the backbone, their eigenvectors, masks of the second
eigenvector and segments of random patches sharpened by the CRF in batches of 16. Every figure is the median of
`--rounds` after one that warms up, the device waited for. `dense` is torch's eigh on the same batch; pydensecrf
computes on one core. EAGLE's step is timed by `bench_eagle.py --device cuda --bfloat16`, whole commands by the shell's
`time`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spectralseg.files.label_maps import upscale_labels
from spectralseg.mathematics.crf import CrfSettings, dense_crf
from spectralseg.mathematics.eigen import spectral_eigenvectors
from spectralseg.models.backbones import load_backbone
from spectralseg.models.tokens import TokenExtractor

SIZE = (500, 375)
GPU = torch.device("cuda")


def timed(work: Callable[[], object], rounds: int) -> tuple[float, object]:
    """Median seconds, and the last result."""
    seconds = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), result


def photographs(folder: Path, count: int) -> list[np.ndarray]:
    """The first of one size, (H, W, 3) uint8, repeated up to ``count``."""
    found = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            if image.size == SIZE:
                found.append(np.array(image.convert("RGB")))
        if len(found) == count:
            break
    return [found[number % len(found)] for number in range(count)]


def eigenvectors(features: torch.Tensor, rounds: int) -> None:
    """Rows for (B, T, D) keys on the GPU."""
    batch, count, _ = features.shape
    for K in (5, 20):
        torch.cuda.reset_peak_memory_stats()
        seconds, (values, _) = timed(lambda K=K: spectral_eigenvectors(features, K), rounds)
        peak = torch.cuda.max_memory_allocated() / 2**30
        dense, (expected, _) = timed(lambda K=K: spectral_eigenvectors(features[:2], K, solver="dense"), 1)
        error = float((values[:2] - expected).abs().max())
        print(
            f"| eigenvectors, K={K} | {batch}, T={count} | {batch / seconds:.0f} | dense there: {2 / dense:.1f} | "
            f"eigenvalues within {error:.0e}; {peak:.1f} GiB |",
            flush=True,
        )


def large(count: int, rounds: int) -> None:
    """A row for a single graph of ``count`` nodes of 384 random features around 40 means."""
    generator = torch.Generator(GPU).manual_seed(0)
    means = torch.randn(40, 384, device=GPU, generator=generator)
    noise = torch.randn(count, 384, device=GPU, generator=generator)
    features = means[torch.arange(count, device=GPU) * 40 // count] + noise
    torch.cuda.reset_peak_memory_stats()
    seconds, _ = timed(lambda: spectral_eigenvectors(features, 20), rounds)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"| eigenvectors, K=20 | 1, T={count} | {1 / seconds:.2f} | | {peak:.1f} GiB |", flush=True)


def crf(images: np.ndarray, labels: np.ndarray, classes: int, rounds: int) -> None:
    """A row for a batch of images and their label maps at full size."""
    torch.cuda.reset_peak_memory_stats()
    seconds, ours = timed(lambda: dense_crf(images, labels, classes, CrfSettings(crf_backend="torch"), GPU), rounds)
    peak = torch.cuda.max_memory_allocated() / 2**30
    theirs = CrfSettings(crf_backend="pydensecrf")
    start = time.perf_counter()
    expected = [dense_crf(*each, classes, theirs) for each in zip(images, labels, strict=True)]
    on_one_core = (time.perf_counter() - start) / len(images)
    different = int((np.stack(expected) != ours).sum())
    print(
        f"| CRF, {classes} classes | {len(images)} | {len(images) / seconds:.0f} | pydensecrf, one core: "
        f"{1 / on_one_core:.1f} ({on_one_core * len(images) / seconds:.0f}x) | "
        f"{different} of {labels.size} labels differ; {peak:.1f} GiB |",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights-s16", type=Path, required=True, metavar="PATH")
    parser.add_argument("--weights-s8", type=Path, required=True, metavar="PATH")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| stage | batch | images / s | beside | results |\n| --- | --- | --- | --- | --- |")
    images = np.stack(photographs(arguments.images, 64))
    pixels = torch.from_numpy(images).to(GPU).movedim(-1, 1).float() / 255
    for model, weights, batch in (
        ("dino_vits16", arguments.weights_s16, 64),
        ("dino_vits8", arguments.weights_s8, 8),
    ):
        backbone = load_backbone(model, str(weights), GPU)
        for dtype in ("float32", "bfloat16"):
            extractor = TokenExtractor(backbone, dtype=dtype)
            seconds, features = timed(lambda e=extractor, b=batch: e(pixels[:b])["k"], arguments.rounds)
            print(f"| keys, {model} | {batch}, {dtype} | {batch / seconds:.0f} | | |", flush=True)
            if dtype == "float32":
                keys = features
        eigenvectors(keys, arguments.rounds)
        if model == "dino_vits16":
            rows, columns = SIZE[1] // 16, SIZE[0] // 16
            masks = (spectral_eigenvectors(keys[:16], 2)[1][:, 1] > 0).view(-1, rows, columns).byte().cpu().numpy()
    for count in (10_000, 50_000):
        large(count, 1)
    random = np.random.default_rng(0)
    segments = random.integers(0, 21, (16, 3))[np.arange(16)[:, None, None], random.integers(0, 3, masks.shape)]
    for classes, maps in ((2, masks), (21, segments.astype(np.uint8))):
        full = np.stack([upscale_labels(each, SIZE[1], SIZE[0], 16) for each in maps])
        crf(images[:16], full, classes, arguments.rounds)


if __name__ == "__main__":
    main()
