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
from spectralseg.mathematics.meanfield import bilateral_filter

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
    pixels = torch.from_numpy(image)
    plain = infer(pixels, torch.from_numpy(energies(np.arange(num_classes), ones)), crf)
    merged = infer(pixels, torch.from_numpy(energies(classes, copies)), crf, torch.from_numpy(copies))
    np.testing.assert_allclose(merged.numpy() / copies[:, None], plain.numpy()[classes], atol=1e-4)


def labels_of_all_classes(image: np.ndarray, labels: np.ndarray, num_classes: int, crf: CrfSettings) -> np.ndarray:
    """:func:`dense_crf` written out, each class for itself."""
    given_labels = labels.ravel() == np.arange(num_classes)[:, None]
    unary = -np.log(np.where(given_labels, 0.99, 1 - 0.99)).astype(np.float32)
    return infer(torch.from_numpy(image), torch.from_numpy(unary), crf).argmax(0).reshape(labels.shape).numpy()


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
    soft = torch.log_softmax(logits, dim=1)[0]
    ours, theirs = (
        refine_probabilities(torch.from_numpy(image), soft, dataclasses.replace(published, crf_backend=backend))
        for backend in ("torch", "pydensecrf")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert (ours.argmax(0) != theirs.argmax(0)).float().mean() <= 1e-5


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_classes_in_another_order(seed: int, classes: int):
    random = np.random.default_rng(seed)
    image = torch.from_numpy(random.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    soft = torch.from_numpy(random.dirichlet(np.ones(classes), 9 * 13).T.reshape(classes, 9, 13)).log().float()
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
    image = torch.zeros(1, dtype=torch.uint8).expand(3000, 4000, 3)
    with pytest.raises(InputError, match="4000x3000 pixels and 21 classes .* an image of 2000x1500 would do"):
        infer(image, torch.zeros(1).expand(21, 3000 * 4000), crf)


def test_a_batch_is_sharpened_like_its_images(crf: CrfSettings):
    """Images that hold other classes: what is absent from all stands as one, and the rest is computed."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    labels = random.choice([0, 2], (3, 20, 30)).astype(np.uint8)
    labels[1] //= 2
    together = dense_crf(images, labels, 5, crf)
    np.testing.assert_array_equal(together, [dense_crf(*each, 5, crf) for each in zip(images, labels, strict=True)])


def test_images_of_one_lattice_do_not_mix():
    """As on a GPU: one lattice for a batch, of which two images are the same and lie at both ends."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 20, 30, 3), dtype=np.uint8))
    images = torch.cat([image, 255 - image, image])
    values = torch.rand(3 * 600, 2, generator=torch.Generator().manual_seed(0))
    together = bilateral_filter(images, 5, 20)(values).view(3, 600, 2)
    alone = [
        bilateral_filter(each[None], 5, 20)(part) for each, part in zip(images, values.view(3, 600, 2), strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(alone))
