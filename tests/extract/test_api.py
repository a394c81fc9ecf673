"""The function interface gives what the command line gives."""

import base64
import doctest
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import spectralseg.api
from running import extracted, picture, run_here
from shared_data import PROJECT, SAMPLES
from spectralseg.api import Segmenter, object_box
from spectralseg.errors import InputError


def test_equals_the_stages(tmp_path):
    extracted(SAMPLES / "images", tmp_path)
    made = ("--features_dir", tmp_path / "features", "--eigs_dir", tmp_path / "eigs")
    run_here("extract_single_region_segmentations", *made, "--output_dir", tmp_path / "m")
    run_here("extract_multi_region_segmentations", *made, "--output_dir", tmp_path / "s")
    names = ("coffee", "rocket")
    results = Segmenter("lab_hog")([Image.open(SAMPLES / "images" / f"{name}.jpg") for name in names])
    for name, result in zip(names, results, strict=True):
        record = torch.load(tmp_path / "eigs" / f"{name}.pth", weights_only=True)
        np.testing.assert_allclose(result.eigenvectors.reshape(5, -1), record["eigenvectors"], atol=1e-5)
        mask, segments_map = (np.array(Image.open(tmp_path / kind / f"{name}.png")) for kind in "ms")
        step, (rows, columns) = result.step, record["grid"]
        covered = slice(0, rows * step, step), slice(0, columns * step, step)
        np.testing.assert_array_equal(result.mask[covered], mask)
        np.testing.assert_array_equal(result.segments[covered], segments_map)
        assert result.box == object_box(result.mask)


def test_crf_and_colour():
    image = Image.open(SAMPLES / "images" / "chelsea.jpg")
    result = Segmenter("lab_hog")(image, color_lambda=10.0, crf=True)
    assert result.mask.shape == result.segments.shape == (300, 451)
    assert result.mask.any()


def test_what_a_result_shows_and_saves(tmp_path):
    photographs = [SAMPLES / "images" / f"{name}.jpg" for name in ("coffee", "rocket")]
    one, other = Segmenter("lab_graph")([*photographs, photographs[0]])[1:]
    assert other.image.size == (600, 400)
    cutout = other.cutout()
    np.testing.assert_array_equal(np.array(cutout)[..., 3] > 0, other.mask)
    one.save(tmp_path / "deep" / "er", "rocket")
    kinds = {
        kind: Image.open(tmp_path / "deep" / "er" / f"rocket_{kind}.png") for kind in ("mask", "segments", "cutout")
    }
    np.testing.assert_array_equal(np.array(kinds["mask"]) > 0, one.mask)
    np.testing.assert_array_equal(np.array(kinds["segments"]), one.segments)
    assert kinds["cutout"].mode == "RGBA"
    data = re.fullmatch(r'<img src="data:image/png;base64,([^"]+)" alt="segmentation">', one._repr_html_())
    with (
        Image.open(io.BytesIO(base64.b64decode(data[1]))) as shown,
        Image.open(tmp_path / "deep/er/rocket_picture.png") as saved,
    ):
        assert shown.size == saved.size == one.picture().size


def test_reduced_pictures_give_masks_of_their_own_size():
    photograph = picture(3, 400, 320)
    small = photograph.resize((160, 128), Image.Resampling.LANCZOS)
    reduced, expected = Segmenter("lab_hog")([photograph, small], max_size=160)
    assert (reduced.mask.shape, expected.mask.shape) == ((320, 400), (128, 160))
    assert np.abs(reduced.eigenvalues - expected.eigenvalues).max() < 1e-2
    assert (np.array(Image.fromarray(reduced.mask).resize((160, 128), 0)) == expected.mask).mean() > 0.95
    with pytest.raises(InputError, match="max_size=0: must be at least 1"):
        Segmenter("lab_hog")(small, max_size=0)


def test_an_image_without_a_whole_patch():
    with pytest.raises(InputError, match="smaller than one patch"):
        Segmenter("lab_hog")(Image.new("RGB", (10, 40)))


def test_example_of_the_docstring(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(PROJECT)
    assert doctest.testmod(spectralseg.api).failed == 0


def test_box_of_the_largest_component():
    mask = np.zeros((6, 8), dtype=bool)
    mask[0, 0] = mask[2:5, 3:7] = True
    assert object_box(mask) == (3, 2, 7, 5)
    assert object_box(np.zeros((2, 2), dtype=bool)) is None
