"""lab_hog: patch statistics without weights."""

import math

import pytest
import torch

from spectralseg.errors import InputError
from spectralseg.models import lab_hog
from spectralseg.models.backbones import load_backbone
from spectralseg.models.lab_hog import ORIENTATIONS, LabHog, rgb_to_lab

FIRST_ORIENTATION = 6  # after three means and three standard deviations


def grey(lightness: torch.Tensor) -> torch.Tensor:
    """(H, W) in [0, 1] -> (1, 3, H, W)."""
    return lightness.expand(1, 3, *lightness.shape)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # CIE 15 values of the corners of sRGB, as colour tables print them
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),  # linear light 0.21404, and 116 * 0.21404^(1/3) - 16 = 53.39
        ((0.02, 0.02, 0.02), (903.2963 * 0.02 / 12.92, 0, 0)),  # the straight parts of both curves
    ],
)
def test_rgb_to_lab_gives_the_known_values(rgb, lab):
    converted = rgb_to_lab(torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(converted, torch.tensor(lab, dtype=torch.float32), atol=0.02, rtol=0)


@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.3, 0.7, 0.123)])
def test_a_constant_image_has_zeros_and_no_blown_up_rounding(colour):
    images = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 48, 80)
    features = LabHog(16)(images)
    assert features.shape == (1, 15, 14)
    assert features.abs().max() < 1e-2


def test_statistics_are_standardised_over_the_image():
    features = LabHog(8)(torch.rand(2, 3, 40, 64, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (2, 40, 14)
    torch.testing.assert_close(features.mean(dim=1), torch.zeros(2, 14), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.square().mean(dim=1), torch.ones(2, 14), atol=1e-4, rtol=0)


def test_mean_and_deviation_of_two_patches():
    """Left patch black and white in halves, right patch of the lightness between them: L = 0, 100 and 53.39."""
    lightness = torch.full((16, 32), 0.5)
    lightness[:8, :16], lightness[8:, :16] = 0, 1
    features = LabHog(16)(grey(lightness))[0]
    # mean L: 50 and 53.39; deviation of L: 50 and 0. Standardised, two different numbers are always -1 and 1.
    assert torch.equal(features[:, 0].sign(), torch.tensor([-1.0, 1.0]))
    assert torch.equal(features[:, 3].sign(), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(features[:, [0, 3]].abs(), torch.ones(2, 2), atol=1e-4, rtol=0)
    # neutral greys have a = b = 0 up to rounding, which must stay small beside the ones above
    assert features[:, [1, 2, 4, 5]].abs().max() < 0.1


def ramp_histogram(degrees: float) -> torch.Tensor:
    """Histogram of the middle one of 3x3 patches on a ramp of slope 1 that rises in the direction ``degrees``."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    angle = math.radians(degrees)
    ramp = math.cos(angle) * x + math.sin(angle) * y
    return LabHog(8)._histogram(ramp[None, None])[0, :, 1, 1]


@pytest.mark.parametrize("index", range(ORIENTATIONS))
def test_a_ramp_fills_the_bin_of_its_orientation(index):
    step = 180 / ORIENTATIONS
    alone = torch.zeros(ORIENTATIONS)
    alone[index] = 1
    torch.testing.assert_close(ramp_histogram(index * step), alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(ramp_histogram(index * step + 180), alone, atol=1e-4, rtol=0)  # unsigned
    shared = torch.zeros(ORIENTATIONS)
    shared[index], shared[(index + 1) % ORIENTATIONS] = 0.75, 0.25  # a quarter of the way; the last bin borders on 0
    torch.testing.assert_close(ramp_histogram((index + 0.25) * step), shared, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("orientation", "line"),
    [
        (0, lambda row, column: row == 4),  # left and right of the tip, brightness changes along x
        (2, lambda row, column: row == column),  # below and to the right: 45 degrees, y pointing down
        (4, lambda row, column: column == 4),
        (6, lambda row, column: row + column == 8),
    ],
)
def test_orientations_around_the_tip_of_a_cone(orientation, line):
    y, x = torch.meshgrid(torch.arange(144.0) - 71.5, torch.arange(144.0) - 71.5, indexing="ij")
    features = LabHog(16)(grey((1 - torch.hypot(x, y) / 110).clamp(0, 1)))[0]
    row, column = divmod(int(features[:, FIRST_ORIENTATION + orientation].argmax()), 9)
    assert (row, column) != (4, 4)
    assert line(row, column)


def test_images_of_a_batch_do_not_see_each_other():
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 0.1, 0.5]).view(
        3, 1, 1, 1
    )
    together = LabHog(16)(images)
    for index in range(3):
        torch.testing.assert_close(together[index], LabHog(16)(images[index : index + 1])[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("pixels", [1, 48 * 16, 48 * 32])
def test_strips_of_a_large_image_see_their_neighbours(pixels, monkeypatch):
    images = torch.rand(2, 3, 80, 48, generator=torch.Generator().manual_seed(0))
    whole = LabHog(16)._statistics(images)
    monkeypatch.setattr(lab_hog, "STRIP", pixels)
    torch.testing.assert_close(LabHog(16)._statistics(images), whole, atol=1e-5, rtol=1e-5)


def test_backbone_needs_no_weights_and_says_so():
    backbone = load_backbone("lab_hog")
    assert (backbone.patch_size, backbone.weights, backbone.is_vit) == (16, "none", False)
    assert load_backbone("lab_hog8").patch_size == 8
    with pytest.raises(InputError, match="lab_hog has no weights; leave them out"):
        load_backbone("lab_hog", weights="random")


def test_summary_of_an_image_by_hand():
    """A white image: L = 100 on a scale of 50 + 25 x. Half black, half white: L = 50; the edge has gradient 50 in two
    of 32 columns, 3.125 on average, on a scale of 3."""
    expected = torch.zeros(2, 14)
    expected[0, 0], expected[1, FIRST_ORIENTATION] = 2, 3.125 / 3
    half = torch.zeros(16, 32)
    half[:, 16:] = 1
    images = torch.cat([grey(torch.ones(16, 32)), grey(half)])
    torch.testing.assert_close(LabHog(16).summary(images), expected, atol=1e-3, rtol=0)
