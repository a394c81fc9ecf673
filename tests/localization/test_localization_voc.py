"""Real photographs with real boxes: part of VOC2007's test set."""

from pathlib import Path

import pytest

from shared_data import shared, voc2007_images

IMAGES = 24


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of the set, in VOC's layout."""
    source = shared() / "data" / "VOC2007" / "VOCdevkit" / "VOC2007"
    root = tmp_path_factory.mktemp("voc")
    target = root / "VOC2007" / "VOCdevkit" / "VOC2007"
    (target / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("JPEGImages", "Annotations"):
        (target / name).symlink_to(source / name)
    ids = [path.stem for path in voc2007_images()[:IMAGES]]
    (target / "ImageSets" / "Main" / "test.txt").write_text("\n".join(ids))
    return root


def test_trivial_boxes_of_all_of_them(localization):
    """Measured figures: what any detector must beat on these 300 images."""
    flags = ["--data_root", shared() / "data", "--set", "test"]
    whole = localization(*flags, "--trivial", "whole")
    central = localization(*flags, "--trivial", "central", name="central")
    assert whole.error is central.error is None
    assert (whole.summary["images"], whole.summary["correct"]) == (300, 94)
    assert (central.summary["images"], central.summary["correct"]) == (300, 113)


@pytest.mark.parametrize("mode", [[], ["--tokencut"], ["--eigenseg"]], ids=["lost", "tokencut", "eigenseg"])
def test_detectors_run_on_all_sizes(localization, data_root, mode):
    found = localization("--data_root", data_root, "--set", "test", *mode, "--arch", "lab_hog")
    assert found.error is None, found.complained
    assert found.summary["images"] == IMAGES
    assert (found.folder / "results.txt").read_text() == f"corloc,{found.summary['corloc']:.1f},,\n"
    assert 0 < found.summary["correct"] < IMAGES
