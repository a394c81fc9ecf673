"""Files of a data set: found, paired, read at one size, one image at a time."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objectseg.dataset import View, pair, read, read_prediction, read_soft, read_truth
from objectseg.metrics import MeanScores
from running import touch
from spectralseg.errors import InputError
from spectralseg.files.label_maps import upscale_labels

CHECKS = np.indices((6, 8)).sum(axis=0) % 3 == 0


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(path)
    return path


def palette(pixels: np.ndarray, colours: list[int]) -> Image.Image:
    picture = Image.fromarray(pixels.astype(np.uint8))
    picture.putpalette(colours)
    return picture


# pairing


def test_pairs_by_stem(tmp_path: Path):
    images = touch(tmp_path / "images", "b.jpg", "a.png")
    masks = touch(tmp_path / "masks", "class/a.png", "class/b.bmp")
    run = touch(tmp_path / "run", "a.png", "b.png", "c.png", "stage.json")
    pairs, notes = pair(images, masks, run)
    assert [(p.id, p.image.name, p.truth.name, p.prediction.name, p.soft) for p in pairs] == [
        ("a", "a.png", "a.png", "a.png", None),
        ("b", "b.jpg", "b.bmp", "b.png", None),
    ]
    assert notes == [f"1 of the predictions in {run} belong to no image of {images}: c"]
    soft = touch(tmp_path / "soft", "a.png", "b.png")
    assert pair(images, masks, run, soft)[0][1].soft == soft / "b.png"


def test_a_file_that_is_missing_is_named(tmp_path: Path):
    images = touch(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    full, part = touch(tmp_path / "full", "a.png", "b.png", "c.png"), touch(tmp_path / "part", "a.png")
    with pytest.raises(InputError, match=r"the prediction .*part/b.png of the image .*b.jpg is missing.* 1 more of 3"):
        pair(images, full, part)
    with pytest.raises(InputError, match=r"the true mask .*part/b.png"):
        pair(images, part, full)
    with pytest.raises(InputError, match=r"the soft map .*part/b.png"):
        pair(images, full, full, part)


# reading


def test_true_masks_of_all_kinds(tmp_path: Path):
    grey = CHECKS.astype(np.uint8) * 255
    grey[~CHECKS] = 127
    grey[0, 0] = 128
    kinds = {
        "grey": Image.fromarray(grey),
        "one_bit": Image.fromarray(CHECKS),
        "colour": Image.fromarray(np.stack([grey, grey * 0 + 255, grey * 0], axis=-1)),  # the first channel decides
        "palette": palette(CHECKS, [0, 0, 0, 255, 255, 255]),
        "inverted_palette": palette(~CHECKS, [255, 255, 255, 0, 0, 0]),
        "voc_palette": palette(CHECKS, [0, 0, 0, 128, 0, 0]),
        "alpha": Image.fromarray(grey).convert("LA"),
        "sixteen_bit": Image.fromarray(CHECKS.astype(np.uint16) * 65535),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_truth(tmp_path / f"{name}.png"), CHECKS, err_msg=name)


def test_predictions_of_all_kinds(tmp_path: Path):
    kinds = {
        "one": Image.fromarray(CHECKS.astype(np.uint8)),
        "two_hundred_fifty_five": Image.fromarray(CHECKS.astype(np.uint8) * 255),
        "one_bit": Image.fromarray(CHECKS),
        "palette": palette(CHECKS, [0, 0, 0, 128, 0, 0]),
        "white_is_background": palette(CHECKS, [255, 255, 255, 0, 0, 0]),  # the value counts, not its colour
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / f"{name}.png")
        prediction = read_prediction(tmp_path / f"{name}.png", CHECKS.shape, None)
        np.testing.assert_array_equal(prediction, CHECKS, err_msg=name)
    for value in (0, 1, 255):
        path = save(tmp_path / f"all{value}.png", np.full((6, 8), value, np.uint8))
        assert (read_prediction(path, (6, 8), 16) == (value > 0)).all()


def test_predictions_that_are_no_masks(tmp_path: Path):
    for pixels, message in (
        (np.uint8([[0, 1, 2]]), "holds the values 0, 1, 2: a mask has"),
        (np.uint8([[0, 1, 255]]), "holds the values 0, 1, 255: a mask has"),
        (np.zeros((2, 2, 3), np.uint8), "is a picture"),
    ):
        with pytest.raises(InputError, match=f"a.png {message}"):
            read_prediction(save(tmp_path / "a.png", pixels), pixels.shape[:2], None)
    (tmp_path / "broken.png").write_text("no picture")
    for read_file in (read_prediction, read_soft):
        with pytest.raises(InputError, match="broken.png cannot be read"):
            read_file(tmp_path / "broken.png", (2, 2), None)


def test_predictions_at_patches_by_hand(tmp_path: Path):
    """5 x 7 pixels in patches of 2: a grid of 2 x 3; the last row and column belong to no patch."""
    path = save(tmp_path / "a.png", np.uint8([[1, 0, 0], [0, 0, 1]]))
    for enlarge, expected in (
        ("patches", ["##.....", "##.....", "....##.", "....###", ".....##"]),
        # over 5 x 7 pixels ###...., three times, then .....##, twice; of it rows 0, 1, 2, 3 and columns 0 to 5 are kept
        ("released", ["###....", "###....", "###....", ".....##", ".....##"]),
    ):
        prediction = read_prediction(path, (5, 7), 2, enlarge)
        assert ["".join("#" if cell else "." for cell in row) for row in prediction] == expected


def test_released_knows_only_the_square_of_the_truth(tmp_path: Path):
    # 6 x 10 pixels in patches of 4: one row of two, which cover 4 x 8 pixels. The square has 6 pixels: the map is
    # stretched to 6 x 8, and its square begins at column 1 instead of 2.
    path = save(tmp_path / "a.png", np.uint8([[0, 1]]))
    prediction = read_prediction(path, (6, 10), 4, "released", crop=True)
    assert prediction.shape == (6, 8)
    assert View(crop=True)(prediction).astype(int).tolist() == [[0, 0, 0, 1, 1, 1]] * 6
    assert View(crop=True)(read_prediction(path, (6, 10), 4)).astype(int)[0].tolist() == [0, 0, 1, 1, 1, 1]
    with pytest.raises(InputError, match="not with both"):
        list(read([], View(image_size=4, crop=True), 4, "released"))


def test_predictions_at_a_finer_grid_or_at_pixels(tmp_path: Path):
    random = np.random.default_rng(0)
    for shape in ((2, 3), (4, 6), (37, 50)):  # patches of 16, cells of 8, pixels
        labels = random.integers(0, 2, shape, dtype=np.uint8)
        path = save(tmp_path / "a.png", labels)
        prediction = read_prediction(path, (37, 50), 16)
        np.testing.assert_array_equal(prediction, upscale_labels(labels, 37, 50, 16) > 0)


def test_predictions_of_another_size(tmp_path: Path):
    for shape, downsample, message in (
        ((36, 50), None, "has 50x36 pixels, but its true mask has 50x37; for predictions at patches set"),
        ((2, 3), None, "has 3x2 pixels"),
        ((36, 50), 16, "which are 3x2 patches of 16 pixels"),
        ((3, 2), 16, "has 2x3 pixels"),
        ((4, 3), 16, "has 3x4 pixels"),
        ((1, 1), 64, "which are 0x0 patches of 64 pixels"),
    ):
        path = save(tmp_path / "a.png", np.zeros(shape, np.uint8))
        for read_file in (read_prediction, read_soft):
            with pytest.raises(InputError, match=f"a.png.*{message}"):
                read_file(path, (37, 50), downsample)


def test_soft_maps(tmp_path: Path):
    values = np.uint8([[0, 51, 255]])
    np.testing.assert_array_equal(read_soft(save(tmp_path / "a.png", values), (1, 3), None), [[0, 0.2, 1]])
    deep = save(tmp_path / "b.png", np.uint16([[0, 13107, 65535]]))
    np.testing.assert_array_equal(read_soft(deep, (1, 3), None), [[0, 0.2, 1]])
    np.testing.assert_array_equal(read_soft(tmp_path / "a.png", (2, 6), 2), [[0, 0, 0.2, 0.2, 1, 1]] * 2)
    Image.fromarray(CHECKS).save(tmp_path / "c.png")
    with pytest.raises(InputError, match="c.png is a picture of mode 1; a soft map is a grey PNG"):
        read_soft(tmp_path / "c.png", CHECKS.shape, None)


# views


def test_crop_by_hand():
    pixels = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(View(crop=True)(pixels), [[2, 3], [8, 9]])
    np.testing.assert_array_equal(View(crop=True)(pixels.T), pixels.T[2:4])
    assert View(crop=True)(np.zeros((5, 9, 3))).shape == (5, 5, 3)
    np.testing.assert_array_equal(View()(pixels), pixels)


def test_image_size_by_hand():
    pixels = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(View(image_size=1)(pixels), [[0, 2]])
    assert View(image_size=4)(pixels).shape == (4, 8)
    np.testing.assert_array_equal(View(image_size=1, crop=True)(pixels), [[0]])
    assert View(image_size=100)(np.zeros((300, 451))).shape == (100, 150)


# streaming


def test_memory_does_not_grow_with_the_images(tmp_path: Path):
    truth = np.random.default_rng(0).integers(0, 2, (200, 200), dtype=np.uint8)
    for index in range(12):
        for folder in ("images", "masks", "run"):
            save(tmp_path / folder / f"{index}.png", truth * 255)
    peaks = []
    for count in (3, 12):
        pairs = pair(*(tmp_path / folder for folder in ("images", "masks", "run")))[0][:count]
        means = MeanScores()
        tracemalloc.start()
        for _, true, prediction, _ in read(pairs, View(), None):
            means.add(prediction, true)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert means.images == count
        assert means.means()["miou"] == 1
    assert peaks[1] < peaks[0] + truth.size  # not even one mask more
