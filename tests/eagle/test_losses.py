"""The losses of EAGLE: what each of them moves, properties, and cases worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eagleseg.losses.correspondence import (
    CorrespondenceSettings,
    correspondence_loss,
    other_images,
    random_points,
    sample,
)
from eagleseg.losses.eicue import (
    code_affinity,
    colour_affinity,
    eicue_affinity,
    eicue_eigenvectors,
    laplacian_eigenvectors,
    normalise,
)
from eagleseg.losses.object_contrast import consecutive, means, medoids, object_contrast, token_weights
from eagleseg.losses.step import EagleStep, probe_losses, total_loss
from eagleseg.model.features import features_of_views
from eagleseg.model.heads import EagleModel
from eagleseg.training.settings import TrainSettings

CHANNELS, CLASSES, SIDE = 12, 3, 6


def model_and_terms(share: float = 0.5, **options: object) -> tuple[EagleModel, dict[str, Tensor]]:
    """All losses of a random batch."""
    torch.manual_seed(0)
    chosen = TrainSettings("", feature_samples=3, neg_samples=2, **options)
    learned = chosen.centroid_mode == "learned"
    model = EagleModel(CHANNELS, CLASSES, 2, dim=8, eigen_cluster_out=4, learned_prototypes=learned)
    rgb = torch.rand(4, 3, 32, 32)
    batch = {"img": rgb, "img_blur": rgb, "label": torch.randint(-1, CLASSES, (4, 32, 32))}
    features = torch.randn(4, CHANNELS, SIDE, SIDE)
    return model, EagleStep(model, chosen)(features, features + 0.1, batch, share)


def moved(model: EagleModel, loss: Tensor) -> set[str]:
    """Parts of the model that a loss changes."""
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    pairs = zip(parameters, gradients, strict=True)
    return {name.split(".")[0] for name, gradient in pairs if gradient is not None and gradient.abs().max() > 0}


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("correspondence_positive", {"head"}),
        ("correspondence_negative", {"head"}),
        ("contrast", {"head", "project_head"}),
        ("contrast_blur", {"head", "project_head"}),
        ("eigen", {"eigen_probe"}),
        ("eigen_blur", {"eigen_probe_blur"}),
        ("linear", {"linear_probe"}),
        ("cluster", {"cluster_probe"}),
    ],
)
def test_each_loss_moves_its_part_alone(term: str, parts: set[str]):
    model, terms = model_and_terms()
    assert moved(model, terms[term]) == parts


def test_learned_prototypes_are_trained():
    model, terms = model_and_terms(centroid_mode="learned")
    assert moved(model, terms["contrast"]) == {"head", "project_head", "prototypes"}


def test_before_the_schedule_there_is_no_contrast():
    model, terms = model_and_terms(share=0.0)
    assert "contrast" not in terms
    assert moved(model, total_loss(terms, 0.0, TrainSettings(""))) == {
        *("head", "eigen_probe", "eigen_probe_blur", "linear_probe", "cluster_probe"),
    }
    model.zero_grad()
    sum(terms.values()).backward()  # every parameter has a gradient, which processes that train together wait for
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_total_by_hand():
    names = ("eigen", "eigen_blur", "correspondence_positive", "correspondence_negative", "contrast", "contrast_blur")
    terms = {name: torch.tensor(10.0**power) for power, name in enumerate([*names, "cluster", "linear"])}
    settings = TrainSettings("", pos_inter_weight=0.5, neg_inter_weight=0.25)
    expected = (1 + 10) / 2 + 0.6 * (0.5 * 100 + 0.25 * 1000) + 0.85 * 0.4 * (1e4 + 1e5) + 1e6 + 1e7
    assert total_loss(terms, 0.4, settings).item() == pytest.approx(expected)


def test_a_batch_of_void_has_no_linear_loss():
    model = EagleModel(CHANNELS, CLASSES, dim=8)
    code = torch.randn(2, 8, 4, 4)
    assert probe_losses(model, code, torch.full((2, 16, 16), -1))["linear"] == 0
    assert "linear" not in probe_losses(model, code, None)


# correspondence


def test_identical_codes_where_features_agree_are_rewarded():
    torch.manual_seed(0)
    features = torch.randn(1, 16, 4, 4)
    config = CorrespondenceSettings()
    good, _ = correspondence_loss((features, features), (features, features), True, config)
    bad, _ = correspondence_loss((features, features), (features, features.roll(1, dims=-1)), True, config)
    assert good.mean() < bad.mean()


def test_features_get_no_gradient():
    features, code = (torch.randn(2, 5, 3, 3, requires_grad=True) for _ in range(2))
    loss, _ = correspondence_loss((features, features), (code, code), False, CorrespondenceSettings())
    loss.sum().backward()
    assert features.grad is None
    assert code.grad is not None


def test_clamps_of_the_code():
    one = torch.ones(1, 2, 1, 1)
    plain = CorrespondenceSettings(pointwise=False, zero_clamp=False, stabalize=False)
    held = CorrespondenceSettings(pointwise=False)
    # targets 1, code correlation -1; shift |1 + 1| = 2: -(-1) * (1 - 2) = -1, and 0 once negative correlations count 0
    assert correspondence_loss((one, one), (one, -one), True, plain)[0].item() == pytest.approx(-1)
    assert correspondence_loss((one, one), (one, -one), True, held)[0].item() == 0
    # negative pair, code correlation 1, held at 0.8; shift (1 + 1) * 3.5 = 7: -0.8 * (1 - 7)
    assert correspondence_loss((one, one), (one, one), False, held)[0].item() == pytest.approx(4.8)


@given(st.integers(2, 9), st.integers(0, 1000))
def test_partners_are_never_the_image_itself(count: int, seed: int):
    torch.manual_seed(seed)
    partners = other_images(count, torch.device("cpu"))
    assert (partners != torch.arange(count)).all()
    assert ((partners >= 0) & (partners < count)).all()


def test_sampling_at_corners():
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    corners = torch.tensor([[[[-1.0, -1.0], [1.0, -1.0]], [[-1.0, 1.0], [1.0, 1.0]]]])
    assert sample(maps, corners)[0, 0].tolist() == [[0, 3], [2, 5]]
    points = random_points(2, 5, torch.device("cpu"))
    assert points.shape == (2, 5, 5, 2)
    assert points.abs().max() <= 1


# object-centric contrast


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_medoids_against_brute_force(seed: int):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(30, 4, generator=generator)
    labels, count = consecutive(torch.randint(0, 6, (30,), generator=generator) * 3)
    chosen = medoids(tokens, labels, count)
    for label in range(count):
        own = tokens[labels == label]
        sums = torch.stack([(own - token).norm(dim=1).sum() for token in own])
        assert (own - chosen[label]).norm(dim=1).sum() <= sums.min() + 1e-4
        torch.testing.assert_close(means(tokens, labels, count)[label], own.mean(dim=0))


def test_weights_are_the_row_means_of_the_published_similarity():
    features = torch.randn(2, 5, 7)
    products = torch.einsum("bci,bcj->bij", features, features)
    expected = torch.stack(
        [(matrix / matrix.norm(dim=0, keepdim=True)).mean(dim=1) for matrix in products]
    )  # columns of norm 1
    torch.testing.assert_close(token_weights(features), expected.flatten())


def test_a_single_segment_has_no_contrast():
    tokens = torch.nn.functional.normalize(torch.randn(9, 4), dim=1)
    labels, count = consecutive(torch.full((9,), 7))
    for smoothing in (False, True):
        loss = object_contrast(
            tokens, tokens, labels, medoids(tokens, labels, count), torch.ones(9), label_smoothing=smoothing
        )
        assert loss.item() == pytest.approx(0, abs=1e-6)


@given(st.permutations(range(4)))
@settings(max_examples=10, deadline=None)
def test_names_of_segments_do_not_matter(order: list[int]):
    torch.manual_seed(0)
    own, other = (torch.nn.functional.normalize(torch.randn(40, 6), dim=1) for _ in range(2))
    segments, weights = torch.randint(0, 4, (40,)), torch.rand(40)

    def loss(numbers: Tensor) -> float:
        labels, count = consecutive(numbers)
        return object_contrast(own, other, labels, medoids(own, labels, count), weights).item()

    assert loss(torch.tensor(order)[segments] * 5) == pytest.approx(loss(segments), rel=1e-5)


def test_contrast_by_hand():
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    weights = torch.tensor([1.0, 3.0])
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    local, across = (right + 3 * right) / 2, (wrong + 3 * right) / 2
    loss = object_contrast(own, other, torch.tensor([0, 1]), own, weights, temperature=1.0, global_weight=0.25)
    assert loss.item() == pytest.approx((0.75 * local + 0.25 * across) / 2)


# EiCue


def test_two_blocks_give_their_indicator():
    affinity = torch.zeros(1, 6, 6)
    affinity[0, :2, :2] = affinity[0, 2:, 2:] = 1
    affinity += 1e-3
    values, vectors = laplacian_eigenvectors(affinity, 2)
    assert values[0, 0].abs() < 1e-6
    assert values[0, 1] < 0.01
    signs = vectors[0, 1].sign()
    assert signs.tolist() == [1, 1, -1, -1, -1, -1]  # the smaller side is positive


def test_eigenvectors_are_those_of_the_symmetric_laplacian():
    torch.manual_seed(0)
    affinity = eicue_affinity(torch.randn(2, 8, 16, 16), torch.rand(2, 3, 16, 16), "rgb")
    values, vectors = laplacian_eigenvectors(affinity, 4)
    scale = affinity.sum(dim=-1).rsqrt()
    image = vectors - (vectors * scale[:, None]) @ affinity * scale[:, None]  # D^-1/2 (D - W) D^-1/2 z
    torch.testing.assert_close(image, values[..., None] * vectors, rtol=0, atol=1e-5)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(4).expand(2, 4, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("colour", ["released", "rgb", "none"])
@pytest.mark.parametrize("kind", ["zero", "constant"])
@pytest.mark.parametrize("side", [2, 14])
def test_images_without_content(colour: str, kind: str, side: int):
    code = torch.zeros(1, 4, side, side) if kind == "zero" else torch.ones(1, 4, side, side)
    maps = eicue_eigenvectors(code, torch.full((1, 3, 28, 28), 0.5), 4, colour)
    assert maps.shape == (1, 3, side, side)
    assert maps.isfinite().all()


def test_released_colour_says_next_to_nothing():
    black, white = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    pair = torch.cat([black, white], dim=-1)[None]  # two pixels
    released = colour_affinity(normalise(pair))[0, 0, 1].item()
    assert released == pytest.approx(0.96, abs=0.01)
    assert colour_affinity(pair * 255)[0, 0, 1].item() < 1e-6


def test_affinities_are_scaled_to_one():
    code = torch.randn(2, 4, 5, 5)
    affinity = code_affinity(code)
    assert affinity.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1])
    assert affinity.min() >= 0
    assert code_affinity(code * 7).sub(affinity).abs().max() < 1e-5


# features of the two views


def counting(seen: list[int]) -> Callable[[Tensor], Tensor]:
    def features_of(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images[:, :, ::2, ::2] * 2

    return features_of


@pytest.mark.parametrize("changed", [[], [1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("stored", [False, True])
def test_no_image_passes_the_backbone_twice(changed: list[int], stored: bool):
    seen: list[int] = []
    features_of = counting(seen)
    images = torch.rand(3, 3, 4, 4)
    blurred = images.clone()
    blurred[changed] += 1
    batch = {"img": images, "img_blur": blurred}
    if stored:
        batch["features"] = features_of(images)
        seen.clear()
    clean, other = features_of_views(features_of, batch)
    assert sum(seen) == (0 if stored else 3) + len(changed)
    assert torch.equal(clean, images[:, :, ::2, ::2] * 2)
    assert torch.equal(other, blurred[:, :, ::2, ::2] * 2)
