"""The process of one measured variant of a stage, which `bench_stages.py` starts and asks for image after image.

It imports torch, which the asking process must not: on Linux a child's peak memory counts from its parent's. A stage is
a function of the variant, and of what its settings say, that imports what this variant needs and returns the function
which is timed: from arrays in memory to arrays in memory.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Work = Callable[..., dict[str, object]]
K, SEGMENTS, OBJECTS, CLASSES = 5, 4, 3, 2


def features(variant: str, model: str, weights: str) -> Work:
    """Cropping, normalisation and network, (3, H, W) -> keys (T, D)."""
    if variant == "plain":
        from benchmarks.plain_extract import load_model, plain_keys

        network = load_model(weights, model)
        return lambda image, **_: {"k": plain_keys(network, image)[0].numpy()}
    from spectralseg.models.backbones import load_backbone
    from spectralseg.models.tokens import TokenExtractor

    extractor = TokenExtractor(load_backbone(model, weights), dtype="bfloat16" if "bfloat16" in variant else "float32")
    return lambda image, **_: {"k": extractor(image[None])["k"][0].float().numpy()}


def eigs(variant: str) -> Work:
    """Keys (T, D) -> K eigenvalues and eigenvectors (K, T)."""
    if variant == "plain":
        from benchmarks.plain_extract import plain_eigs as solve
    else:
        from spectralseg.mathematics.eigen import spectral_eigenvectors as solve
    return lambda k, **_: dict(zip(("values", "vectors"), solve(torch.from_numpy(k), K)[:2], strict=True))


def masks(variant: str) -> Work:
    """The second eigenvector's positive patches: no work to speak of in either variant."""
    return lambda vectors, grid, **_: {"labels": (vectors[1] > 0).reshape(grid)}


def segments(variant: str) -> Work:
    """Eigenvectors -> segments, the background first; plain is scikit-learn's K-means, of ten starts too."""
    if variant != "plain":
        from spectralseg.mathematics.regions import background_first, kmeans_segments

        return lambda vectors, grid, **_: {
            "labels": background_first(kmeans_segments(np.ascontiguousarray(vectors[1:].T), SEGMENTS).reshape(grid))
        }
    from sklearn.cluster import KMeans

    def plain(vectors: np.ndarray, grid: list[int], **_: object) -> dict[str, object]:
        labels = KMeans(SEGMENTS, n_init=10, random_state=0).fit_predict(vectors[1:].T).reshape(grid)
        background = np.bincount(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])).argmax()
        return {"labels": np.where(labels == background, 0, np.where(labels == 0, background, labels))}

    return plain


def objects(variant: str, tau: float) -> Work:
    """Keys -> MaskCut's masks before any CRF."""
    if variant == "plain":
        from benchmarks.plain_maskcut import maskcut as find
    else:
        from spectralseg.mathematics.cuts import maskcut

        def find(k: np.ndarray, rows: int, columns: int, count: int, tau: float) -> list[np.ndarray]:
            return [cut.mask for cut in maskcut(torch.from_numpy(k)[None], (rows, columns), count, tau)[0]]

    def work(k: np.ndarray, grid: list[int], **_: object) -> dict[str, object]:
        found = find(k, *grid, OBJECTS, tau)
        return {"labels": np.stack([*found, *[np.zeros(grid, bool)] * (OBJECTS - len(found))])}

    return work


def crf(variant: str) -> Work:
    """Image and mask at patches -> label map at pixels; plain is pydensecrf."""
    from spectralseg.files.label_maps import upscale_labels
    from spectralseg.mathematics.crf import CrfSettings, dense_crf

    settings = CrfSettings(crf_backend="pydensecrf" if variant == "plain" else "torch")

    def work(image: torch.Tensor, labels: np.ndarray, step: int, **_: object) -> dict[str, object]:
        pixels = (image * 255).round().byte().movedim(0, -1).contiguous().numpy()
        full = upscale_labels(labels.astype(np.uint8), *pixels.shape[:2], step)
        return {"labels": dense_crf(pixels, full, CLASSES, settings)}

    return work


def eagle(variant: str, side: int, batch_size: int) -> Work:
    """A training step of images of ``side`` pixels in memory."""
    from benchmarks import bench_eagle

    torch.manual_seed(0)
    batch = bench_eagle.batch_of(batch_size, side)
    if variant == "plain":
        step = bench_eagle.plain(batch, "cpu")
    else:
        dtype = "bfloat16" if "bfloat16" in variant else "float32"
        step = bench_eagle.ours(batch, dtype, "files" in variant, "cpu")
    return lambda **_: {"loss": step() or 0}


def patches(variant: str, count: int) -> Work:
    """K eigenvectors of a graph of ``count`` patches, 384 random features around 40 means, by a solver of ours."""
    from spectralseg.mathematics.eigen import spectral_eigenvectors

    generator = torch.Generator().manual_seed(0)
    means = torch.randn(40, 384, generator=generator)
    k = means[torch.arange(count) * 40 // count] + torch.randn(count, 384, generator=generator)
    return lambda **_: {"values": spectral_eigenvectors(k, K, solver=variant)[0]}


def machine(variant: str) -> Work:
    """GFLOP/s of products in both precisions, GB/s of copies in memory (read and written) and of files."""

    def rate(work: Callable[[], object], amount: float, clock: Callable[[], float] = time.process_time) -> float:
        seconds = []
        for _ in range(7):
            start = clock()
            work()
            seconds.append(clock() - start)
        return amount / min(seconds) / 1e9

    def work(**_: object) -> dict[str, object]:
        rates, n = {}, 1536
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(n, n).to(dtype)
            rates[str(dtype).removeprefix("torch.")] = rate(lambda a=a: a @ a, 2 * n**3)
        source = torch.ones(2**25)
        target = torch.empty_like(source)
        rates["copy"] = rate(lambda: target.copy_(source), 2 * source.nbytes)
        with tempfile.NamedTemporaryFile() as file:

            def write() -> None:
                file.seek(0)
                file.write(source.numpy().data)
                os.fsync(file.fileno())

            rates["disk"] = rate(write, source.nbytes, time.perf_counter)
        return rates

    return work


STAGES = (features, eigs, masks, segments, objects, crf, eagle, patches, machine)


def peak_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(stage: str, variant: str, **settings: object) -> None:
    """Answer one JSON request per line of stdin with one JSON line; stdout is kept free of what libraries print."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if variant != "plain":
        from spectralseg.running.devices import keep_freed_memory

        keep_freed_memory()  # as the command line does
    work = {each.__name__: each for each in STAGES}[stage](variant, **settings)
    start_mib = peak_mib()
    for line in sys.stdin:
        inputs = json.loads(line)
        save, image = inputs.pop("save", None), inputs.pop("image", None)
        for path in inputs.pop("arrays", ()):
            inputs |= np.load(path)
        if image:
            inputs["image"] = torch.from_numpy(np.array(Image.open(image).convert("RGB"))).permute(2, 0, 1) / 255
        wall, processor = time.perf_counter(), time.process_time()
        result = work(**inputs)
        answer = {"seconds": time.process_time() - processor, "wall": time.perf_counter() - wall}
        if save:
            np.savez(save, **result)
        print(json.dumps(answer | {"start_mib": start_mib, "peak_mib": peak_mib()}), file=answers, flush=True)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
