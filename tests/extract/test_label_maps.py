"""Label maps: enlarging and colours by hand, through files, refused where they are none."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spectralseg.errors import InputError
from spectralseg.files.label_maps import label_picture, stretch_labels, upscale_labels, voc_palette


def test_upscaling_by_hand():
    # 5x5 pixels, patches of 2: the 4x4 at the top left patch by patch, the rest from the map stretched to 5x5
    upscaled = upscale_labels(np.array([[1, 2], [3, 4]], dtype=np.uint8), 5, 5, 2)
    expected = [
        [1, 1, 2, 2, 2],
        [1, 1, 2, 2, 2],
        [3, 3, 4, 4, 2],
        [3, 3, 4, 4, 4],
        [3, 3, 3, 4, 4],
    ]
    np.testing.assert_array_equal(upscaled, expected)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3))
def test_upscaling_repeats_whole_patches(rows: int, columns: int, below: int, right: int):
    labels = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns)
    upscaled = upscale_labels(labels, 4 * rows + below, 4 * columns + right, 4)
    np.testing.assert_array_equal(upscaled[: 4 * rows : 4, : 4 * columns : 4], labels)
    np.testing.assert_array_equal(upscaled[3 : 4 * rows : 4, 3 : 4 * columns : 4], labels)


def test_full_size_maps_stay_and_small_images_work():
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(upscale_labels(labels, 2, 3, 16), labels)
    np.testing.assert_array_equal(upscale_labels(labels[:1, :1], 3, 5, 16), np.zeros((3, 5)))


def test_maps_and_sizes_that_cannot_be_enlarged():
    for labels, size, step in (
        (np.zeros((2, 3)), (0, 9), 4),
        (np.zeros((0, 3)), (9, 9), 4),
        (np.zeros((2, 2)), (9, 9), 0),
    ):
        with pytest.raises(InputError):
            upscale_labels(labels, *size, step)


def test_stretching_is_opencv_s():
    """Pixel 53 of 106 lies where column 6 of 12 begins; OpenCV's rounding gives it column 5. Recorded with 5.0.0."""
    stretched = stretch_labels(np.arange(12)[None], 1, 106)[0]
    assert np.flatnonzero(stretched != np.arange(106) * 12 // 106).tolist() == [53]
    assert stretched[53] == 5


def test_voc_palette_begins_with_the_published_colours():
    palette = np.array(voc_palette()).reshape(256, 3).tolist()
    assert palette[:8] == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
    ]
    assert palette[8] == [64, 0, 0]  # bit 3 is the second bit of red
    assert palette[15] == [192, 128, 128]  # person
    assert palette[255] == [224, 224, 192]  # void
    assert len({tuple(colour) for colour in palette}) == 256


@given(st.integers(0, 2**32 - 1))
def test_label_picture_keeps_the_labels_through_a_file(seed):
    labels = np.random.default_rng(seed).integers(0, 256, (3, 5))
    file = io.BytesIO()
    label_picture(labels).save(file, "PNG")
    read = Image.open(file)
    assert read.mode == "P"
    np.testing.assert_array_equal(np.array(read), labels)
    colours = np.array(voc_palette()).reshape(256, 3)
    np.testing.assert_array_equal(np.array(read.convert("RGB")), colours[labels])


def test_label_picture_of_a_mask_shows_and_holds_ones():
    picture = label_picture(np.array([[False, True]]))
    assert np.array(picture).tolist() == [[0, 1]]
    assert picture.convert("RGB").getpixel((1, 0)) == (128, 0, 0)


@pytest.mark.parametrize("labels", [[[256]], [[-1]], [[0.5]], [0, 1], [[[0]]]])
def test_label_picture_refuses_what_is_no_label_map(labels):
    with pytest.raises(InputError):
        label_picture(np.array(labels))
