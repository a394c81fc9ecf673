"""The function interface of EAGLE gives what ``demo_segmentation.py`` gives, and covers large pictures with tiles."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eagle_runs import NAMES, write_checkpoint
from eagleseg.api import SemanticSegmenter
from eagleseg.evaluation.photographs import in_tiles, whole
from eagleseg.evaluation.pictures import colour_of
from running import picture
from spectralseg.errors import InputError


@pytest.fixture
def segment(tmp_path: Path) -> SemanticSegmenter:
    return SemanticSegmenter(write_checkpoint(tmp_path / "model.pth"), device="cpu")


def test_equals_the_script(segment, tmp_path, run_script):
    picture(0, 96, 64).save(tmp_path / "a.png")
    overrides = {"model_path": tmp_path / "model.pth", "image_dir": tmp_path, "res": 48, "device": "cpu"}
    folder = run_script("demo_segmentation", *(f"{name}={value}" for name, value in overrides.items()))
    found, again = segment([tmp_path / "a.png", picture(0, 96, 64)], res=48)
    cluster, linear = (np.array(Image.open(folder / probe / "a.png")) for probe in ("cluster", "linear"))
    np.testing.assert_array_equal(np.where(found.labels < 0, 3, found.labels), cluster)
    np.testing.assert_array_equal(found.labels, again.labels)
    np.testing.assert_array_equal(segment(picture(0, 96, 64), res=48, probe="linear").labels, linear)
    assert found.picture().tobytes() == Image.open(folder / "overlays" / "a.png").tobytes()
    assert found.colours == {NAMES[label]: colour_of(label) for label in range(3) if (found.labels == label).any()}
    found.save(tmp_path / "shown.png")
    assert found._repr_html_().startswith('<img src="data:image/png;base64,')


def test_one_tile_is_the_whole_and_tiles_cover_everything(segment):
    image = picture(1, 64, 64)
    for name, values in whole(segment.trained, image, 64, True, 64).probes.items():
        np.testing.assert_allclose(in_tiles(segment.trained, image, 64, True).probes[name], values, atol=1e-5)
    large = picture(2, 150, 101)
    found = in_tiles(segment.trained, large, 40, False)
    for values in found.probes.values():
        assert values.shape[1:] == (101, 150)
        np.testing.assert_allclose(values.exp().sum(dim=0), 1, atol=1e-5)
    corner = large.crop((110, 61, 150, 101))  # seen by the last tile alone at its end
    alone = in_tiles(segment.trained, corner, 40, False).probes["linear"][:, -1, -1]
    np.testing.assert_allclose(found.probes["linear"][:, -1, -1], alone, atol=1e-5)
    assert segment(large, tile=40, crf=False).labels.shape == (101, 150)


def test_colours_are_unlike():
    colours = np.array([colour_of(label) for label in range(27)], dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours, axis=-1) + 999 * np.eye(27)
    assert distances.min() > 60


def test_what_is_refused(segment, tmp_path):
    for options, message in (
        ({"tile": 4}, "smaller than a patch"),
        ({"res": 0}, "res=0"),
        ({"probe": "both"}, "no probe 'both'"),
    ):
        with pytest.raises(InputError, match=message):
            segment(picture(0), **options)
    unlabelled = SemanticSegmenter(write_checkpoint(tmp_path / "unlabelled.pth", match={}), device="cpu")
    with pytest.raises(InputError, match="has learned nothing"):
        unlabelled(picture(0), probe="linear")
