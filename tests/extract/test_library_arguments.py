"""What library functions say to wrong names, ranges and shapes: one line, before anything is computed."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import coo_array

from spectralseg.api import Segmenter
from spectralseg.errors import InputError
from spectralseg.mathematics.affinity import add_sparse, colour_affinity, knn_affinity, resize_features, rw_affinity
from spectralseg.mathematics.clusters import semantic_map
from spectralseg.mathematics.crf import CrfSettings, dense_crf
from spectralseg.mathematics.eigen import normalised_cut, spectral_eigenvectors
from spectralseg.mathematics.matching import eagle_confusion
from spectralseg.mathematics.matting import estimate_alpha, trimap
from spectralseg.mathematics.regions import bounding_box, eigengap_segments, kmeans_segments, smooth_mask
from spectralseg.mathematics.solvers import leading_eigenpairs

FEATURES = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
MASK = np.ones((4, 4), dtype=bool)
IMAGE = Image.new("RGB", (64, 64))
COLOUR = coo_array((6, 6))


def segment(**arguments: object) -> None:
    Segmenter("lab_hog", device="cpu")(IMAGE, **arguments)


def eigenvectors(features: torch.Tensor = FEATURES, K: int = 2, **arguments: object) -> None:
    spectral_eigenvectors(features, K, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: segment(K=1), "K=1: must be at least 2"),
        (lambda: segment(K=17), "K=17 eigenvectors of 16 patches with 14 features: ask for 1 to 16"),
        (lambda: segment(num_segments=0), "num_segments=0: must be from 1 to 255"),
        (lambda: segment(num_segments=256), "num_segments=256: must be from 1 to 255"),
        (lambda: segment(which_color_matrix="foo"), "no which_color_matrix 'foo'; known are knn, rw"),
        (lambda: segment(color_grid="foo"), "no color_grid 'foo'; known are cropped, released"),
        (lambda: segment(color_lambda=-1), "colour_lambda=-1: must be at least 0"),
        (lambda: eigenvectors(which_matrix="graph"), "no which_matrix 'graph'; known are laplacian, matting_laplacian"),
        (lambda: eigenvectors(solver="fast"), "no solver 'fast'; known are auto, dense"),
        (lambda: eigenvectors(FEATURES[0]), "features are (T, D) or (B, T, D), not of shape (4,)"),
        (lambda: eigenvectors(resize_to=(4, 6)), "resize_to=(4, 6) needs the grid of the patches"),
        (lambda: eigenvectors(resize_to=(4, 6), grid=(2, 2)), "6 patches on a grid of (2, 2) cannot be resized to"),
        (lambda: eigenvectors(colour_lambda=1), "colour_lambda=1 weighs a colour affinity, and none is given"),
        (lambda: eigenvectors(colour_lambda=-1, colour=COLOUR), "colour_lambda=-1: must be at least 0"),
        (
            lambda: eigenvectors(which_matrix="affinity", colour=COLOUR, colour_lambda=1),
            "colour is for Laplacians, not for which_matrix=affinity",
        ),
        (lambda: eigenvectors(FEATURES[None], colour=[COLOUR] * 2), "2 colour affinities for 1 images: give one"),
        (
            lambda: eigenvectors(colour=coo_array((4, 4)), colour_lambda=1),
            "a colour affinity of shape (4, 4) does not fit 6 patches",
        ),
        (lambda: normalised_cut(torch.ones(3, 4), 1), "affinities are (..., T, T) in float32 or float64, not (3, 4)"),
        (lambda: normalised_cut(torch.ones(3, 3).half(), 1), "in float32 or float64, not (3, 3) in float16"),
        (lambda: normalised_cut(torch.ones(3, 3), 4), "K=4 eigenvectors of 3 nodes: ask for 1 to 3"),
        (lambda: normalised_cut(torch.ones(3, 3), 1, FEATURES), "features of shape (6, 4) do not fit affinities of"),
        (lambda: leading_eigenpairs(torch.clone, torch.ones(9, 3), 4, 1e-5), "4 eigenpairs from a block of shape (9,"),
        (lambda: resize_features(FEATURES[None], (2, 3), (0, 3)), "6 patches on a grid of (2, 3) cannot be resized to"),
        (lambda: add_sparse(torch.ones(3, 3), COLOUR, 1), "a colour affinity of shape (6, 6) does not fit 3 patches"),
        (lambda: colour_affinity(IMAGE, (4, 4), (2, 2), "lab"), "no which_color_matrix 'lab'; known are knn, rw"),
        (lambda: colour_affinity(IMAGE, (4, 4), (2, 2), color_grid="padded"), "no color_grid 'padded'; known are"),
        (lambda: knn_affinity(np.ones((4, 3))), "colours are (rows, columns, 3), not of shape (4, 3)"),
        (lambda: rw_affinity(np.ones((4, 3, 4))), "colours are (rows, columns, 3), not of shape (4, 3, 4)"),
        (lambda: eigengap_segments(np.array([0.0, 1.0])), "the eigengap needs at least 3 eigenvalues, not 2"),
        (lambda: kmeans_segments(np.ones(4), 2), "points are (T, d), not of shape (4,)"),
        (lambda: kmeans_segments(np.ones((4, 2)), 0), "num_segments=0: must be at least 1"),
        (lambda: bounding_box(~MASK), "an empty mask has no box"),
        (lambda: smooth_mask(MASK, -1, 3), "num_erode=-1: must be at least 0"),
        (lambda: trimap(MASK, 1, -2), "num_dilate=-2: must be at least 0"),
        (lambda: estimate_alpha(np.ones((4, 4, 3)), MASK, "magic"), "no method 'magic'; known are closed_form"),
        (lambda: semantic_map(MASK, [0, 1], [2]), "2 labels and 1 clusters: each label needs one"),
        (lambda: semantic_map(MASK, [300], [2]), "labels 300 to 300: a label map holds 0 to 255"),
        (lambda: dense_crf(np.ones((4, 4, 3)), -np.ones((4, 4), int), 2, CrfSettings()), "label -1: labels count from"),
        (lambda: eagle_confusion(np.ones((3, 3), int), "other"), "no protocol 'other'; known are released, strict"),
        (lambda: eagle_confusion(np.ones((2, 3), int)), "2 clusters cannot be matched one to one with 3 classes"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str):
    with pytest.raises(InputError, match=f"^.*{re.escape(message)}"):
        call()
