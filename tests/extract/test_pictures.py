"""Pictures: geometry and colours worked out by hand, and what must hold for any input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spectralseg.drawing.pictures import (
    GAP,
    MAX_SHEET_WIDTH,
    NO_DATA,
    attention_picture,
    caption_font,
    contact_sheet,
    eigenvector_picture,
    fit_height,
    on_checkerboard,
    overlay,
)
from spectralseg.files.label_maps import label_picture

VIRIDIS_LOW, VIRIDIS_MIDDLE, VIRIDIS_HIGH = (68, 1, 84), (33, 145, 140), (253, 231, 37)


def test_overlay_mixes_labelled_pixels_and_leaves_label_0():
    photograph = Image.new("RGB", (4, 2), (200, 100, 0))
    mixed = overlay(photograph, [[0, 1]], alpha=0.5)  # the map is enlarged: left half 0, right half 1
    assert mixed.size == (4, 2)
    assert mixed.getpixel((1, 1)) == (200, 100, 0)
    assert mixed.getpixel((2, 0)) == pytest.approx((164, 50, 0), abs=1)  # half of (200, 100, 0), half of (128, 0, 0)
    assert overlay(photograph, [[0, 1]], alpha=0).getpixel((3, 0)) == (200, 100, 0)
    assert overlay(photograph, [[0, 1]], alpha=1).getpixel((3, 0)) == (128, 0, 0)


# Heat maps


def test_eigenvector_cells_are_squares_and_the_border_without_patches_is_grey():
    picture = eigenvector_picture([[0.0, 1.0, 0.5]], (35, 12), step=10)
    assert picture.size == (35, 12)
    pixels = np.array(picture)
    for column, colour in enumerate((VIRIDIS_LOW, VIRIDIS_HIGH, VIRIDIS_MIDDLE)):
        cell = pixels[:10, 10 * column : 10 * (column + 1)].reshape(-1, 3)
        assert np.abs(cell - np.array(colour)).max() <= 2
    assert (pixels[10:] == NO_DATA).all()
    assert (pixels[:, 30:] == NO_DATA).all()


def test_eigenvector_without_a_step_fills_the_picture():
    pixels = np.array(eigenvector_picture([[0.0], [1.0]], (7, 9)))
    assert (pixels[0] == VIRIDIS_LOW).all()
    assert (pixels[-1] == VIRIDIS_HIGH).all()


@pytest.mark.parametrize(
    "vector", [np.zeros((4, 4)), np.full((1, 1), -7.0), 1e-3 + 1e-9 * np.arange(16.0).reshape(4, 4)]
)
def test_a_constant_eigenvector_is_one_colour_and_rounding_is_not_magnified(vector):
    assert (np.array(eigenvector_picture(vector, (8, 8))) == VIRIDIS_MIDDLE).all()


@given(st.floats(1e-6, 1e6), st.floats(-1, 1))
def test_an_eigenvectors_unit_and_origin_do_not_matter(scale, offset):
    vector = np.random.default_rng(0).normal(size=(6, 5))
    expected = np.array(eigenvector_picture(vector, (5, 6))).astype(int)
    result = np.array(eigenvector_picture(scale * (vector + offset), (5, 6)))
    assert np.abs(result - expected).max() <= 1


def test_outliers_do_not_flatten_the_rest_but_a_few_marked_cells_stay_visible():
    ramp = np.linspace(0, 1, 400).reshape(20, 20)
    ramp[0, 0] = 3
    assert np.array(eigenvector_picture(ramp, (20, 20)))[-1, -1] == pytest.approx(VIRIDIS_HIGH, abs=3)
    marked = np.zeros((20, 20))  # two cells of 400 are beyond the 99th percentile
    marked[3, 4:6] = 1
    pixels = np.array(eigenvector_picture(marked, (20, 20)))
    assert (pixels[3, 4:6] == VIRIDIS_HIGH).all()
    assert (pixels == VIRIDIS_LOW).all(axis=-1).sum() == 398


def test_cells_that_are_not_finite_are_grey():
    pixels = np.array(eigenvector_picture([[0.0, np.nan, np.inf, 1.0]], (4, 1)))
    assert pixels[0].tolist() == [list(VIRIDIS_LOW), list(NO_DATA), list(NO_DATA), list(VIRIDIS_HIGH)]
    assert (np.array(eigenvector_picture([[np.nan]], (2, 2))) == NO_DATA).all()


def test_attention_is_the_mean_over_heads():
    heads = [[0.9, 0.1, 0.0, 0.0], [0.0, 0.8, 0.1, 0.1]]
    picture = attention_picture(heads, (2, 2), (2, 2))
    np.testing.assert_array_equal(
        np.array(picture), np.array(attention_picture(np.mean(heads, axis=0), (2, 2), (2, 2)))
    )
    brightness = np.array(picture.convert("L")).astype(int)
    assert (brightness[0] > 200).any()  # patches 0 and 1 get most
    assert brightness[1].max() < 20
    with pytest.raises(ValueError, match="4 patches does not fit a grid of 2 x 3"):
        attention_picture(heads, (2, 3), (6, 6))


# Sheets


def test_contact_sheet_geometry():
    panels = [
        (name, Image.new("RGB", (200, 100), colour))
        for name, colour in zip("abc", ("red", "lime", "blue"), strict=True)
    ]
    sheet = contact_sheet(panels, columns=2, height=50)  # pictures of 100 x 50 in two rows
    line = (sheet.height - GAP // 2) // 2 - 50 - GAP
    assert sheet.width == GAP + 2 * (100 + GAP)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    tops = [GAP // 2 + row * (line + 50 + GAP) + line for row in (0, 1)]
    pixels = np.array(sheet)
    for left, top, colour in ((GAP, tops[0], "red"), (GAP + 112, tops[0], "lime"), (GAP, tops[1], "blue")):
        expected = np.array(Image.new("RGB", (100, 50), colour))
        np.testing.assert_array_equal(pixels[top : top + 50, left : left + 100], expected)
    assert (pixels[tops[1] :, GAP + 100 :] == 255).all()  # the empty fourth place
    assert pixels[GAP // 2 : tops[0], GAP : GAP + 100].min() < 100  # its caption is drawn


@given(st.integers(1, 24), st.integers(20, 3000), st.integers(20, 900))
def test_a_sheet_is_never_wider_than_its_limit(count, width, height):
    sheet = contact_sheet([("caption", Image.new("L", (width, height)))] * count, height=60)
    assert sheet.width <= MAX_SHEET_WIDTH


def test_captions_are_shortened_to_their_column_and_lambda_can_be_drawn():
    font = caption_font(15)
    missing = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
    assert (font.getmask("λ").getbbox(), bytes(font.getmask("λ"))) != missing
    narrow = Image.new("RGB", (10, 100), "red")
    sheet = contact_sheet([("x" * 300, narrow), ("", narrow)], columns=2, height=100)
    assert sheet.width == GAP + 2 * (100 + GAP)  # a caption widens its column to the pictures' height at most
    assert (np.array(sheet)[:30, GAP + 100 : GAP + 112] == 255).all()
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_label_maps_are_enlarged_without_mixing_and_transparency_shows_checks():
    enlarged = fit_height(label_picture([[0, 1], [2, 3]]), 50)
    assert len(enlarged.getcolors()) == 4
    checks = on_checkerboard(Image.new("RGBA", (16, 8), (255, 0, 0, 0)))
    assert (checks.getpixel((0, 0)), checks.getpixel((8, 0))) == ((255, 255, 255), (214, 214, 214))
    assert fit_height(Image.new("L", (1000, 10)), 100, max_width=500).size == (500, 5)
