"""The dense CRF: recorded label maps, errors."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared_data import SAMPLES, reference
from spectralseg.errors import InputError
from spectralseg.files.label_maps import upscale_labels
from spectralseg.mathematics.crf import CrfSettings, dense_crf, infer, merge_absent, require_pydensecrf

CASES = [(image, classes, patch) for image in ("astronaut", "coffee") for classes, patch in ((2, 16), (21, 16), (4, 8))]


@pytest.mark.parametrize(("image", "classes", "patch"), CASES)
def test_recorded_label_maps(image: str, classes: int, patch: int):
    pytest.importorskip("pydensecrf")
    recorded = np.load(reference("regions.npz"))
    key = f"crf/{image}/C{classes}_P{patch}"
    pixels = np.array(Image.open(reference(f"images/{image}.png")).convert("RGB"))
    upscaled = upscale_labels(recorded[f"{key}/segmap"], *pixels.shape[:2], patch)
    np.testing.assert_array_equal(upscaled, recorded[f"{key}/upscaled"])
    labels = dense_crf(pixels, upscaled, classes, CrfSettings())
    assert (labels == recorded[f"{key}/labels"]).mean() >= 0.999


def test_edges_move_to_the_edges_of_the_image():
    pytest.importorskip("pydensecrf")
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[:, 20:] = 255
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[:, 24:] = 1  # four pixels off the edge
    np.testing.assert_array_equal(dense_crf(image, labels, 2, CrfSettings()), image[..., 0] // 255)


def test_absent_classes_by_hand():
    classes, copies = merge_absent(np.array([[4, 1], [1, 0]], dtype=np.uint8), 6)
    assert classes.tolist() == [0, 1, 2, 4]  # 2 stands for 2, 3, 5
    assert copies.tolist() == [1, 1, 3, 1]
    assert [part.tolist() for part in merge_absent(np.array([[1]], dtype=np.uint8), 2)] == [[0, 1], [1, 1]]
    assert [part.tolist() for part in merge_absent(np.array([[1, 0]], dtype=np.uint8), 2)] == [[0, 1], [1, 1]]


@given(st.integers(0, 1000), st.integers(3, 12), st.integers(1, 3), st.sampled_from([0.3, 3, 30]))
@settings(max_examples=30, deadline=None)
def test_absent_classes_as_one_change_nothing(seed: int, num_classes: int, present: int, weight: float):
    """With weak and with strong pairwise terms: the probabilities of all classes, one by one, are the same."""
    pytest.importorskip("pydensecrf")
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (12, 17, 3), dtype=np.uint8)
    labels = random.choice(random.permutation(num_classes)[:present], (12, 17)).astype(np.uint8)
    crf = CrfSettings(w1=weight, w2=weight, alpha=5)
    classes, copies = merge_absent(labels, num_classes)

    def energies(among: np.ndarray, copies: np.ndarray) -> np.ndarray:
        return -np.log(np.where(labels.ravel() == among[:, None], 0.9, 0.1 * copies[:, None])).astype(np.float32)

    ones = np.ones(num_classes, dtype=np.float32)
    plain = infer(image, energies(np.arange(num_classes), ones), crf)
    merged = infer(image, energies(classes, copies), crf, copies)
    np.testing.assert_allclose(merged / copies[:, None], plain[classes], atol=1e-4)


def labels_of_all_classes(image: np.ndarray, labels: np.ndarray, num_classes: int, crf: CrfSettings) -> np.ndarray:
    """:func:`dense_crf` written out, each class for itself."""
    given_labels = labels.ravel() == np.arange(num_classes)[:, None]
    unary = -np.log(np.where(given_labels, 0.99, 1 - 0.99)).astype(np.float32)
    return infer(image, unary, crf).argmax(axis=0).reshape(labels.shape)


def test_photograph_with_absent_classes():
    pytest.importorskip("pydensecrf")
    image = np.array(Image.open(SAMPLES / "images" / "chelsea.jpg").convert("RGB").resize((226, 150)))
    patches = np.random.default_rng(0).choice([0, 3, 4, 17], (10, 15)).astype(np.uint8)
    labels = upscale_labels(patches, 150, 226, 15)
    sharp = dense_crf(image, labels, 21, CrfSettings())
    assert (sharp == labels_of_all_classes(image, labels, 21, CrfSettings())).mean() >= 0.99999


def test_errors():
    pytest.importorskip("pydensecrf")
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="label 5 in a map of 3 classes"):
        dense_crf(image, np.full((4, 4), 5, dtype=np.uint8), 3, CrfSettings())
    with pytest.raises(InputError, match="does not fit"):
        dense_crf(image, np.zeros((4, 5), dtype=np.uint8), 3, CrfSettings())


def test_without_pydensecrf_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(InputError, match="pip install pydensecrf2"):
        require_pydensecrf()
