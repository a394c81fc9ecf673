"""Ours beside ncut_pytorch's approximate solver, in one run: seconds, memory, and how near both are to the solution.

    pip install ncut_pytorch fpsample
    python tests/benchmarks/bench_ncut.py --images DIR --weights PATH [--device cuda] [--sizes 713,2852,10000]

The graph is W = F F' without its negative entries, F the normalised keys of photographs of one size (500x375), joined
until there are enough patches; both get the same W, ncut_pytorch as its `affinity_fn`, and are asked for 20
eigenvectors. `residual` is the largest ||S z - m z|| of a unit z = D^1/2 x with S = D^-1/2 W D^-1/2 and m = z'S z, from
all of W, in blocks; `space` the least cosine between the space of the exact solutions and the one found. Memory is what
the device's allocator held at most, or on a CPU what the process grew by.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from bench_gpu import photographs
from torch import Tensor
from torch.nn import functional

from spectralseg.mathematics import solvers
from spectralseg.mathematics.eigen import spectral_eigenvectors
from spectralseg.mathematics.landmarks import BlockedAffinity
from spectralseg.models.backbones import load_backbone
from spectralseg.models.tokens import TokenExtractor

K = 20
LARGEST_DENSE = {"cpu": 10_000, "cuda": 50_000}
LARGEST_BLOCKED = {"cpu": 10_000, "cuda": 200_000}


def affinity(rows: Tensor, columns: Tensor | None = None, sigma: float = 1.0) -> Tensor:
    """The W that both cut."""
    return (rows @ (rows if columns is None else columns).mT).clamp_(min=0)


def theirs(features: Tensor) -> Tensor:
    """z (T, K) by ncut_pytorch."""
    from ncut_pytorch import ncut_fn  # not among what the tests need

    return ncut_fn(features, n_eig=K, affinity_fn=affinity, sigma=1.0)[0]


def ours(solver: str) -> Callable[[Tensor], Tensor]:
    """x (T, K) by a solver of ours."""
    return lambda features: spectral_eigenvectors(features, K, normalize=False, solver=solver)[1].mT


class Peak(threading.Thread):
    """The most memory held while it runs, in GiB."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.device, self.done, self.most = device, threading.Event(), 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def run(self) -> None:
        process = psutil.Process()
        before = process.memory_info().rss
        while not self.done.wait(0.01):
            self.most = max(self.most, (process.memory_info().rss - before) / 2**30)

    def stop(self) -> float:
        self.done.set()
        self.join()
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else self.most


def timed(work: Callable[[Tensor], Tensor], features: Tensor, rounds: int) -> tuple[float, float, Tensor]:
    """Median seconds after a round that warms up, GiB, and the result; of large graphs one round."""
    seconds, peak = [], Peak(features.device)
    peak.start()
    rounds = rounds + 1 if len(features) <= 10_000 else 1
    for _ in range(rounds):
        start = time.perf_counter()
        result = work(features)
        if features.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:] or seconds), peak.stop(), result


def residual(features: Tensor, degrees: Tensor, z: Tensor) -> float:
    """The largest of the K."""
    z = functional.normalize(z.float(), dim=0)
    product = BlockedAffinity(features, True, degrees.rsqrt())(z)
    return float((product - z * (z * product).sum(dim=0)).norm(dim=0).max())


def cosine(found: Tensor, exact: Tensor) -> float:
    """The least between two spaces, each (T, K)."""
    bases = [torch.linalg.qr(functional.normalize(z.double(), dim=0))[0] for z in (found, exact)]
    return float(torch.linalg.svdvals(bases[0].mT @ bases[1])[-1])


def keys(folder: Path, weights: str, model: str, count: int, device: torch.device) -> Tensor:
    """(count, 384) normalised, of as many photographs as it takes."""
    extractor = TokenExtractor(load_backbone(model, weights, device), dtype="float32")
    side = 8 if model == "dino_vits8" else 16
    images = photographs(folder, -(-count // ((500 // side) * (375 // side))))
    found = [
        extractor(torch.from_numpy(image).to(device).movedim(-1, 0).float()[None] / 255)["k"][0] for image in images
    ]
    return functional.normalize(torch.cat(found)[:count], dim=1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", required=True, metavar="PATH")
    parser.add_argument("--model_name", default="dino_vits8")
    parser.add_argument("--sizes", default="713,2852,10000,50000,200000")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    joined = keys(arguments.images, arguments.weights, arguments.model_name, max(sizes), device)
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print("| patches | solver | seconds | GiB | residual | space |\n| ---: | --- | ---: | ---: | ---: | ---: |")
    for count in sizes:
        features = joined[:count].contiguous()
        degrees = solvers.positive(BlockedAffinity(features, True)(torch.ones_like(features[:, :1])))
        named = [("ncut_pytorch", theirs)]
        named += [("auto", ours("auto"))] * (count <= LARGEST_DENSE[device.type])
        named += [("blocked", ours("blocked"))] * (10_000 <= count <= LARGEST_BLOCKED[device.type])
        named += [("landmarks", ours("landmarks"))]
        rows, exact = [], None
        for name, work in named:
            seconds, peak, result = timed(work, features, arguments.rounds)
            z = result if work is theirs else degrees.sqrt() * result
            rows.append((name, seconds, peak, residual(features, degrees, z), z))
            exact = z if name in ("auto", "blocked") else exact
        for name, seconds, peak, error, z in rows:
            space = "" if exact is None else f"{cosine(z, exact):.4f}"
            print(f"| {count} | {name} | {seconds:.4g} | {peak:.2f} | {error:.1e} | {space} |", flush=True)


if __name__ == "__main__":
    main()
