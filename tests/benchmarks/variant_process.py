"""The process of one measured variant, which `bench_extract.py` starts and asks for one image after the other.

It imports torch, which the asking process must not: on Linux a child's peak memory counts from its parent's.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import plain_extract
import torch


def serve(task: str) -> None:
    """Answer one JSON request per line of stdin with one JSON line; stdout is kept free of what libraries print."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(task)
    make = {"features": feature_variant, "eigs": eigs_variant}[settings.pop("stage")]
    run = make(**settings)
    start_mib = peak_mib()
    for line in sys.stdin:
        answer = run(**json.loads(line))
        print(json.dumps(answer | {"start_mib": start_mib, "peak_mib": peak_mib()}), file=answers, flush=True)


def peak_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(function: Callable, *arguments: object) -> tuple[float, object]:
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def feature_variant(variant: str, model: str, weights: str) -> Callable:
    """A function from an image to the time its keys take; saves them as (T, D) float32 if asked."""
    if variant == "plain":
        plain_model = plain_extract.load_model(weights, model)

        def keys(image):  # (3, H, W)
            return plain_extract.plain_keys(plain_model, image)

    else:
        from spectralseg.models.backbones import load_backbone
        from spectralseg.models.tokens import TokenExtractor
        from spectralseg.running.devices import keep_freed_memory

        keep_freed_memory()
        backbone = load_backbone(model, weights=weights or None, device="cpu")
        extractor = TokenExtractor(backbone, blocks=(-1,), parts=("k",), dtype=variant)

        def keys(image):
            return extractor(image[None])["k"]

    def run(image: str, save: str | None = None) -> dict:
        seconds, k = timed(keys, plain_extract.load_image(image))
        if save:
            np.save(save, k[0].float().numpy())
        return {"seconds": seconds}

    return run


def eigs_variant(variant: str) -> Callable:
    """A function from a file of features (T, D) to the time K eigenpairs take; saves them if asked."""
    if variant == "eigen":
        from spectralseg.mathematics.eigen import spectral_eigenvectors
        from spectralseg.running.devices import keep_freed_memory

        keep_freed_memory()

    def run(features: str, K: int, save: str | None = None) -> dict:
        k = torch.from_numpy(np.load(features))
        if variant == "plain":
            seconds, (values, vectors, fell_back) = timed(plain_extract.plain_eigs, k, K)
        else:
            seconds, (values, vectors) = timed(lambda: spectral_eigenvectors(k, K=K, which_matrix="laplacian"))
            fell_back = False
        if save:
            np.savez(save, values=np.asarray(values), vectors=np.asarray(vectors))
        return {"seconds": seconds, "fell_back": fell_back}

    return run


if __name__ == "__main__":
    serve(sys.argv[1])
