"""How far eigenvectors and boxes move with the colour grid, and how exact they are without colour.

    python tests/benchmarks/measure_differences_extract.py --images DIR [--model_name lab_hog] [--weights PATH]

Of the first COUNT photographs of DIR whose sides are not both multiples of the patch (others give equal results). With
colour (knn, lambda 10; at the patches and at cells of 8 pixels): --color_grid cropped against released. Without: ours
against a dense float64 solution of the published formula. Eigenvectors by |cos|, masks by the share of cells with
another sign in eigenvector 1, boxes (eigenseg's) by IoU.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
from PIL import Image
from torch import Tensor

from spectralseg.files.images import load_image, patch_grid, to_tensor
from spectralseg.mathematics.affinity import COLOR_GRIDS, colour_affinity
from spectralseg.mathematics.eigen import spectral_eigenvectors
from spectralseg.models.backbones import load_backbone
from spectralseg.models.tokens import TokenExtractor
from spectralseg.running.devices import pick_device

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "object-localization"))

from objectloc.detectors import eigenseg
from objectloc.scores import bbox_iou

K = 5
LAMBDA = 10.0
FINER = 8  # pixels per cell


def published_eigenvectors(features: Tensor) -> np.ndarray:
    """(K, T): the K smallest solutions of (D - W) x = l D x for W = max(F F', 0) / max(F F'), dense in float64."""
    F = features.double().numpy()
    F = F / np.linalg.norm(F, axis=1, keepdims=True)
    W = np.maximum(F @ F.T, 0)
    W = W / W.max()
    D = np.diag(W.sum(axis=1))
    return scipy.linalg.eigh(D - W, D, subset_by_index=[0, K - 1])[1].T


def pairs(image: Image.Image, features: Tensor, patch: int) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(setting, pixels per cell, ours, theirs) of a photograph, eigenvectors (K, rows, columns) each."""
    grid = patch_grid(image.height, image.width, patch)
    covered = (grid[0] * patch, grid[1] * patch)
    alone = spectral_eigenvectors(features, K)[1].numpy(), published_eigenvectors(features)
    yield "no colour", patch, *(vectors.reshape(K, *grid) for vectors in alone)
    for step, name in ((patch, "knn, lambda 10"), (FINER, "knn, lambda 10, ds8")):
        cells = (covered[0] // step, covered[1] // step)
        yield name, step, *(_coloured(image, features, covered, grid, cells, color_grid) for color_grid in COLOR_GRIDS)


def _coloured(
    image: Image.Image,
    features: Tensor,
    covered: tuple[int, int],
    grid: tuple[int, int],
    cells: tuple[int, int],
    color_grid: str,
) -> np.ndarray:
    colour = colour_affinity(image, covered, cells, "knn", color_grid)
    _, vectors = spectral_eigenvectors(features, K, colour=colour, colour_lambda=LAMBDA, grid=grid, resize_to=cells)
    return vectors.numpy().reshape(K, *cells)


def compare(ours: np.ndarray, theirs: np.ndarray, step: int, size: tuple[int, int]) -> np.ndarray:
    """|cos| of eigenvectors 1 to K - 1, share of mask bits that differ, whether boxes do, their IoU: (K + 2,)."""
    products = (ours * theirs).sum(axis=(1, 2))
    cosines = np.abs(products) / np.linalg.norm(ours, axis=(1, 2)) / np.linalg.norm(theirs, axis=(1, 2))
    pair = (ours[1], theirs[1] * np.sign(products[1]))  # the sign of a plain solution is open
    bits = np.mean((pair[0] > 0) != (pair[1] > 0))
    one, other = (eigenseg(vector, vector.shape).box((step, step), size) for vector in pair)
    return np.array([*cosines[1:], bits, one != other, bbox_iou(one, [other])[0]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--model_name", default="lab_hog")
    parser.add_argument("--weights", help="of the model, as for extract_features")
    parser.add_argument("--count", type=int, default=300, help="photographs, at most")
    args = parser.parse_args()
    extractor = TokenExtractor(load_backbone(args.model_name, args.weights, pick_device("cpu")))
    patch = extractor.backbone.patch_size
    found: dict[str, list[np.ndarray]] = {}
    for path in sorted(args.images.iterdir()):
        image = load_image(path)
        if image.width % patch == image.height % patch == 0:
            continue
        features = extractor(to_tensor(image)[None])["k"][0]
        for name, step, ours, theirs in pairs(image, features, patch):
            found.setdefault(name, []).append(compare(ours, theirs, step, (image.height, image.width)))
        if len(found[name]) == args.count:
            break
    print(f"{args.model_name}, {len(found['no colour'])} photographs\n")
    print("| | cosine of eigenvector 1, min, median | 2 | 3 | 4 | mask bits, % | boxes, % | their mean IoU |")
    print("| --- | --- | --- | --- | --- | ---: | ---: | ---: |")
    for name, rows in found.items():
        *cosines, bits, differ, ious = np.array(rows).T
        cells = [f"{cosine.min():.6f}, {np.median(cosine):.6f}" for cosine in cosines]
        mean_iou = f"{ious[differ > 0].mean():.3f}" if differ.any() else "-"
        print(f"| {' | '.join([name, *cells, f'{100 * bits.mean():.2f}', f'{100 * differ.mean():.1f}', mean_iou])} |")


if __name__ == "__main__":
    main()
