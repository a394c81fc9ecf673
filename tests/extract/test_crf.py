"""The dense CRF: recorded label maps, errors."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared_data import SAMPLES, reference
from spectralseg.errors import InputError
from spectralseg.files.label_maps import upscale_labels
from spectralseg.mathematics import crf as dense
from spectralseg.mathematics.crf import EAGLE_CRF, CrfSettings, dense_crf, infer, merge_absent, refine_probabilities

CASES = [(image, classes, patch) for image in ("astronaut", "coffee") for classes, patch in ((2, 16), (21, 16), (4, 8))]


@pytest.fixture(params=["torch", "pydensecrf"])
def crf(request: pytest.FixtureRequest) -> CrfSettings:
    if request.param == "pydensecrf":
        pytest.importorskip("pydensecrf")
    return CrfSettings(crf_backend=request.param)


@pytest.mark.parametrize(("image", "classes", "patch"), CASES)
def test_recorded_label_maps(crf: CrfSettings, image: str, classes: int, patch: int):
    recorded = np.load(reference("regions.npz"))
    key = f"crf/{image}/C{classes}_P{patch}"
    pixels = np.array(Image.open(reference(f"images/{image}.png")).convert("RGB"))
    upscaled = upscale_labels(recorded[f"{key}/segmap"], *pixels.shape[:2], patch)
    np.testing.assert_array_equal(upscaled, recorded[f"{key}/upscaled"])
    labels = dense_crf(pixels, upscaled, classes, crf)
    assert (labels == recorded[f"{key}/labels"]).mean() >= 0.999


def test_edges_move_to_the_edges_of_the_image(crf: CrfSettings):
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[:, 20:] = 255
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[:, 24:] = 1  # four pixels off the edge
    np.testing.assert_array_equal(dense_crf(image, labels, 2, crf), image[..., 0] // 255)


def test_absent_classes_by_hand():
    classes, copies = merge_absent(np.array([[4, 1], [1, 0]], dtype=np.uint8), 6)
    assert classes.tolist() == [0, 1, 2, 4]  # 2 stands for 2, 3, 5
    assert copies.tolist() == [1, 1, 3, 1]
    assert [part.tolist() for part in merge_absent(np.array([[1]], dtype=np.uint8), 2)] == [[0, 1], [1, 1]]
    assert [part.tolist() for part in merge_absent(np.array([[1, 0]], dtype=np.uint8), 2)] == [[0, 1], [1, 1]]


@given(st.integers(0, 1000), st.integers(3, 12), st.integers(1, 3), st.sampled_from([0.3, 3, 30]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_absent_classes_as_one_change_nothing(
    crf: CrfSettings, seed: int, num_classes: int, present: int, weight: float
):
    """With weak and with strong pairwise terms: the probabilities of all classes, one by one, are the same."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (12, 17, 3), dtype=np.uint8)
    labels = random.choice(random.permutation(num_classes)[:present], (12, 17)).astype(np.uint8)
    crf = dataclasses.replace(crf, w1=weight, w2=weight, alpha=5)
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


def test_photograph_with_absent_classes(crf: CrfSettings):
    image = np.array(Image.open(SAMPLES / "images" / "chelsea.jpg").convert("RGB").resize((226, 150)))
    patches = np.random.default_rng(0).choice([0, 3, 4, 17], (10, 15)).astype(np.uint8)
    labels = upscale_labels(patches, 150, 226, 15)
    sharp = dense_crf(image, labels, 21, crf)
    assert (sharp == labels_of_all_classes(image, labels, 21, crf)).mean() >= 0.99999


def test_errors(crf: CrfSettings):
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="label 5 in a map of 3 classes"):
        dense_crf(image, np.full((4, 4), 5, dtype=np.uint8), 3, crf)
    with pytest.raises(InputError, match="does not fit"):
        dense_crf(image, np.zeros((4, 5), dtype=np.uint8), 3, crf)


@pytest.mark.parametrize("classes", [2, 5, 27])
@pytest.mark.parametrize("published", [CrfSettings(), EAGLE_CRF])
def test_both_backends_agree(published: CrfSettings, classes: int):
    pytest.importorskip("pydensecrf")
    image = np.array(Image.open(SAMPLES / "images" / "coffee.jpg").convert("RGB").resize((300, 200)))
    generator = torch.Generator().manual_seed(0)
    logits = torch.nn.functional.interpolate(
        2 * torch.randn(1, classes, 14, 20, generator=generator), (200, 300), mode="bilinear"
    )
    soft = torch.log_softmax(logits, dim=1)[0].numpy()
    ours, theirs = (
        refine_probabilities(image, soft, dataclasses.replace(published, crf_backend=backend))
        for backend in ("torch", "pydensecrf")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert (ours.argmax(0) != theirs.argmax(0)).mean() <= 1e-5


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_classes_in_another_order(seed: int, classes: int):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    soft = np.log(random.dirichlet(np.ones(classes), 9 * 13).T.reshape(classes, 9, 13)).astype(np.float32)
    order, crf = random.permutation(classes), CrfSettings(crf_backend="torch", alpha=5, beta=80)
    probabilities = refine_probabilities(image, soft, crf)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(refine_probabilities(image, soft[order], crf), probabilities[order], atol=1e-4)


def test_without_pydensecrf(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    assert CrfSettings().resolved() == CrfSettings(crf_backend="torch")
    with pytest.raises(InputError, match="pip install pydensecrf2.* or take the crf_backend torch"):
        CrfSettings(crf_backend="pydensecrf").resolved()


def test_too_large_for_the_memory(crf: CrfSettings, monkeypatch: pytest.MonkeyPatch):
    free = SimpleNamespace(available=sum(dense.MEMORY[crf.crf_backend][i] * (1, 21)[i] for i in (0, 1)) * 3_000_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    image = np.broadcast_to(np.uint8(0), (3000, 4000, 3))
    with pytest.raises(InputError, match="4000x3000 pixels and 21 classes .* an image of 2000x1500 would do"):
        infer(image, np.broadcast_to(np.float32(0), (21, 3000 * 4000)), crf)
