"""Cut-outs: trimaps worked by hand, composites whose alpha is known, and ``extract_mattes`` from files to files."""

import json
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from running import contents, refused_here, run_here
from shared_data import SAMPLES
from spectralseg.errors import InputError
from spectralseg.files.label_maps import save_labels
from spectralseg.mathematics import matting
from spectralseg.mathematics.matting import cut_out, default_band, estimate_alpha, trimap
from spectralseg.mathematics.regions import CROSS


@pytest.fixture(scope="module")
def pymatting():
    """Imported as mattes do it: numba, left alone, gives torch as many threads as there are cores."""
    try:
        return matting.require_pymatting()
    except InputError as error:
        pytest.skip(str(error))


def drawn(picture):
    """'#' foreground, '?' unknown, '.' background -> array of 1, 0.5, 0."""
    values = {"#": 1.0, "?": 0.5, ".": 0.0}
    return np.array([[values[character] for character in row] for row in picture.split()])


# --- trimap -----------------------------------------------------------------------------------------------------------


def test_trimap_by_hand():
    """A block with a tail, at the lower border, which erodes nothing."""
    mask = drawn("""
        .........
        .........
        ..####...
        ..####...
        ..######.
        ..####...
    """)
    by_one = drawn("""
        .........
        ..????...
        .??????..
        .??##???.
        .??###???
        .??##???.
    """)
    for foreground in (mask, mask > 0, np.uint8(255 * mask)):  # whatever is not zero
        np.testing.assert_array_equal(trimap(foreground, 1, 1), by_one)
    wider_outside = drawn("""
        ..????...
        .??????..
        ????????.
        ???##????
        ???###???
        ???##????
    """)
    np.testing.assert_array_equal(trimap(mask, 1, 2), wider_outside)


def test_every_part_keeps_certain_pixels_however_wide_the_bands():
    """A bar, a pixel, a block, its hole and the surroundings: what lies deepest in each is spared.

    In the block that is its lower left corner, 3 steps from the hole; outside, two pixels 6 steps from the mask.
    """
    mask = drawn("""
        ............
        .#####....#.
        .#####......
        .#####......
        ............
        ######......
        ##.###......
        ######......
    """)
    known = trimap(mask, 50, 50)
    np.testing.assert_array_equal(np.argwhere(known == 1), [(1, 10), (2, 2), (2, 3), (2, 4), (7, 0)])
    np.testing.assert_array_equal(np.argwhere(known == 0), [(6, 2), (6, 11), (7, 11)])


@pytest.mark.parametrize("mask", [np.zeros((4, 7)), np.ones((4, 7)), np.eye(6, dtype=bool)], ids=["no", "all", "thin"])
def test_nothing_unknown_without_a_border_or_a_band(mask):
    width = 0 if mask.dtype == bool else 2
    np.testing.assert_array_equal(trimap(mask, width, width), mask)


@given(seed=st.integers(0, 1000), num_erode=st.integers(0, 4), num_dilate=st.integers(0, 4))
def test_as_repeated_erosion_and_dilation(seed, num_erode, num_dilate):
    """One large object and one large background: no part can vanish."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((40, 60)), 4)
    rows, columns = np.indices(noise.shape)
    mask = 30 * noise + 14 - np.hypot(rows - 20, columns - 30) > 0
    parts = [ndimage.label(side, np.ones((3, 3))) for side in (mask, ~mask)]
    known = trimap(mask, num_erode, num_dilate)
    for (components, count), certain, times in zip(
        parts, (known == 1, known == 0), (num_erode, num_dilate), strict=True
    ):
        for component in range(1, count + 1):
            part = components == component
            eroded = part
            for _ in range(times):
                smaller = ndimage.binary_erosion(eroded, CROSS, border_value=1)
                eroded = smaller if smaller.any() else eroded
            np.testing.assert_array_equal(certain & part, eroded)
    assert ((known == 0.5) == ~((known == 0) | (known == 1))).all()


def test_default_band_grows_with_the_image_and_the_cells():
    assert default_band(100, 5000) == 3
    assert default_band(1000, 2000) == 15
    assert default_band(300, 400, cell=16) == 8
    assert default_band(300, 400, cell=1) == 4


# --- alpha and colours ------------------------------------------------------------------------------------------------

ORANGE, BLUE = np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.2, 0.7])


def composite(height=60, width=80, soft=10, noise=0.0):
    """An orange disc whose edge fades over ``soft`` pixels into blue: image (uint8), alpha, trimap of its mask."""
    rows, columns = np.indices((height, width))
    distance = np.hypot(rows - height / 2, columns - width / 2)
    alpha = np.clip((20 - distance) / soft + 0.5, 0, 1)
    shade = 0.9 + 0.1 * np.sin(columns / 15)[..., None]  # colours are not constant
    image = alpha[..., None] * ORANGE * shade + (1 - alpha[..., None]) * BLUE * shade
    image = image + noise * np.random.default_rng(0).standard_normal(image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), alpha, trimap(alpha > 0.5, soft, soft)


@pytest.mark.parametrize(
    ("method", "tolerance", "noise"), [("closed_form", 0.03, 0), ("closed_form", 0.06, 0.01), ("knn", 0.08, 0)]
)
def test_known_alpha_is_recovered(pymatting, method, tolerance, noise):
    image, alpha, known = composite(noise=noise)
    estimated = estimate_alpha(image, known, method)
    unknown = known == 0.5
    assert unknown.mean() > 0.2
    np.testing.assert_array_equal(estimated[~unknown], known[~unknown])
    assert np.abs(estimated - alpha)[unknown].mean() < tolerance
    assert np.abs(np.where(unknown, 0.5, known) - alpha)[unknown].mean() > 3 * tolerance  # the task is not trivial


def test_the_old_background_is_gone_from_the_colours(pymatting):
    image, alpha, known = composite()
    cut = cut_out(image, known)
    assert (cut.shape, cut.dtype) == ((60, 80, 4), np.uint8)
    assert np.abs(cut[..., 3] / 255 - alpha).mean() < 0.02
    opaque = cut[..., 3] == 255
    assert opaque.any()
    np.testing.assert_array_equal(cut[opaque, :3], image[opaque])
    blends = (alpha > 0.2) & (alpha < 0.8)
    blue_before, blue_after = image[blends, 2].mean() / 255, cut[blends, 2].mean() / 255
    assert blue_before > 0.3  # half of the background's 0.7
    assert blue_after < 0.16  # the foreground has 0.1
    assert cut[cut[..., 3] == 0, 2].max() < 0.3 * 255  # also where nothing is to be seen


def test_large_images_are_solved_small(pymatting, monkeypatch):
    image, alpha, known = composite(240, 320, soft=30)
    solved = []
    solve = matting._solve
    monkeypatch.setattr(matting, "_solve", lambda colours, *rest: solved.append(colours.shape) or solve(colours, *rest))
    full = estimate_alpha(image, known)
    monkeypatch.setitem(matting.MOST_PIXELS, "closed_form", 60 * 80)
    reduced = estimate_alpha(image, known)
    assert solved == [(240, 320, 3), (60, 80, 3)]
    np.testing.assert_array_equal(reduced[known != 0.5], known[known != 0.5])
    assert np.abs(reduced - full).mean() < 0.01
    assert cut_out(image, known).shape == (240, 320, 4)


def test_thin_objects_survive_the_reduction(pymatting, monkeypatch):
    """Of a line only 2 pixels are certain, where 8 become one; the colours beside it say nothing (all zeros in b)."""
    image = np.full((160, 160, 3), (30, 60, 160), dtype=np.uint8)
    image[:, 77:83] = (220, 120, 30)
    monkeypatch.setitem(matting.MOST_PIXELS, "closed_form", 20 * 20)
    known = trimap(image[..., 0] > 100, 10, 10)
    assert 0 < (known == 1).mean() < 0.02
    alpha = estimate_alpha(image, known)
    assert alpha[:, 79:81].min() == 1
    assert alpha[:, :60].max() == 0


@pytest.mark.parametrize("value", [0, 1])
def test_nothing_unknown_needs_no_pymatting(monkeypatch, value):
    monkeypatch.setitem(sys.modules, "pymatting", None)
    image = composite()[0]
    cut = cut_out(image, np.full(image.shape[:2], float(value)))
    assert (cut[..., 3] == 255 * value).all()
    np.testing.assert_array_equal(cut[..., :3], image * value)  # fully transparent: no colours either


def test_pymatting_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymatting", None)
    image, _, known = composite()
    with pytest.raises(InputError, match=r"mattes need pymatting \(.*\): pip install -e"):
        cut_out(image, known)


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (3, 3), (9, 4)])
def test_tiny_images(pymatting, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    known = np.full(size, 0.5)
    known[0, 0], known[-1, -1] = 1, 0
    if min(size) < 3 and known.size > 1:
        with pytest.raises(InputError, match="too narrow for matting"):
            cut_out(image, known)
    else:
        assert cut_out(image, known).shape == (*size, 4)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_image_of_one_colour(pymatting, level):
    cut = cut_out(np.full((30, 30, 3), level, dtype=np.uint8), composite(30, 30, 4)[2])
    assert np.abs(cut[..., :3].astype(int) - level)[cut[..., 3] > 128].max() <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"known": np.full((5, 5), 0.5)}, r"a trimap of \(5, 5\) does not fit an image of \(60, 80\)"),
        ({"known": np.where(composite()[2] == 1, 1, 0.5)}, "closed_form matting failed: Trimap did not contain back"),
        ({"known": np.where(composite()[2] == 0, 0, 0.5), "method": "knn"}, "knn matting failed: Trimap did not conta"),
    ],
)
def test_what_cannot_be_solved_is_said(pymatting, change, message):
    image, _, known = composite()
    with pytest.raises(InputError, match=message):
        cut_out(image, **{"known": known} | change)


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    run_here("extract_mattes", *arguments)


def refused(capsys, *arguments):
    return refused_here(capsys, "extract_mattes", *arguments)


def given_samples(masks, output, root=SAMPLES):
    images = ("--images_list", root / "images.txt", "--images_root", root / "images")
    return (*images, "--segmentations_dir", masks, "--output_dir", output)


@pytest.fixture
def details(tmp_path):
    """The middles of the sample photographs and of their masks, 60 x 60 pixels, with their list."""
    for path in (*(SAMPLES / "images").iterdir(), *(SAMPLES / "masks").iterdir()):
        with Image.open(path) as picture:
            left, top = (picture.width - 60) // 2, (picture.height - 60) // 2
            (tmp_path / path.parent.name).mkdir(exist_ok=True)
            picture.crop((left, top, left + 60, top + 60)).save(tmp_path / path.parent.name / path.name)
    shutil.copy(SAMPLES / "images.txt", tmp_path)
    return tmp_path


def test_processes_give_equal_files_and_a_rerun_does_nothing(pymatting, details, tmp_path, capsys):
    flags = {name: given_samples(details / "masks", tmp_path / name, details) for name in ("one", "two")}
    run(*flags["one"])
    run(*flags["two"], "--multiprocessing", 2)
    files = contents(tmp_path / "one")
    assert len(files) == 4 + 1
    assert contents(tmp_path / "two") == files
    capsys.readouterr()
    run(*flags["one"])
    assert "0 written, 4 already there" in capsys.readouterr().err
    assert contents(tmp_path / "one") == files
    description = json.loads(files["stage.json"])
    assert description["command"] == "extract_mattes"
    assert description["arguments"]["method"] == "closed_form"
    message = refused(capsys, *flags["one"], "--num_erode", 3)
    assert "but with num_erode=null instead of 3; choose another output folder" in message


def test_masks_at_patches_and_other_values(pymatting, tmp_path):
    """A mask of 0 and 1 at patches of 16 pixels gives what its enlarged copy of 0 and 255 gives, with equal bands."""
    masks, large = tmp_path / "masks", tmp_path / "large"
    masks.mkdir()
    large.mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images.txt").write_text("chelsea.jpg\n")
    with Image.open(SAMPLES / "images" / "chelsea.jpg") as image:
        image.crop((0, 0, 240, 160)).save(tmp_path / "images" / "chelsea.jpg")
    mask = np.zeros((10, 15), dtype=np.uint8)
    mask[:, :11] = 1
    save_labels(masks / "chelsea.png", mask)
    Image.fromarray(np.kron(255 * mask, np.ones((16, 16), dtype=np.uint8))).save(large / "chelsea.png")
    run(*given_samples(masks, tmp_path / "a", tmp_path))
    run(*given_samples(large, tmp_path / "b", tmp_path), "--num_erode", 8, "--num_dilate", 8)
    run(*given_samples(large, tmp_path / "c", tmp_path))  # narrower bands at full size
    a, b, c = ((tmp_path / folder / "chelsea.png").read_bytes() for folder in "abc")
    assert a == b != c
    assert Image.open(tmp_path / "a" / "chelsea.png").size == (240, 160)


def test_empty_and_full_masks(pymatting, details, tmp_path, capsys):
    save_labels(details / "masks" / "chelsea.png", np.zeros((60, 60)))
    save_labels(details / "masks" / "coffee.png", np.ones((3, 3)))
    run(*given_samples(details / "masks", tmp_path / "out", details))
    assert "chelsea: its mask is empty, so its cut-out is fully transparent" in capsys.readouterr().err
    assert not np.array(Image.open(tmp_path / "out" / "chelsea.png")).any()
    full = np.array(Image.open(tmp_path / "out" / "coffee.png"))
    assert (full[..., 3] == 255).all()
    np.testing.assert_array_equal(full[..., :3], np.array(Image.open(details / "images" / "coffee.jpg")))


def test_what_is_missing_or_damaged_is_reported_and_the_others_go_on(pymatting, details, tmp_path, capsys):
    masks = details / "masks"
    (masks / "astronaut.png").unlink()
    (masks / "coffee.png").write_bytes(b"no picture")
    Image.open(details / "images" / "rocket.jpg").save(masks / "rocket.png")
    message = refused(capsys, *given_samples(masks, tmp_path / "out", details))
    assert f"astronaut failed: no such label map: {masks / 'astronaut.png'}" in message
    assert "coffee failed:" in message
    assert "rocket.png is a picture of mode RGB, not a label map" in message
    assert "3 of 4 images failed in extract_mattes" in message
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["chelsea.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "levin"), "no method 'levin'; known are closed_form, knn"),
        (("--num_erode", -1), "num_erode=-1: must be at least 0"),
        (("--num_dilate", -1), "num_dilate=-1: must be at least 0"),
        (("--downsample_factor", 0), "downsample_factor=0: must be at least 1"),
        (("--segmentations_dir", "nowhere"), "no such segmentations_dir: nowhere"),
        (("--images_list", "nowhere.txt"), "cannot read the images_list nowhere.txt: No such file"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(tmp_path, capsys, flags, message):
    output = tmp_path / "out"
    assert f"error: {message}" in refused_here(
        capsys, "extract_mattes", *given_samples(SAMPLES / "masks", output), *flags
    )
    assert not output.exists()


def test_without_pymatting_nothing_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymatting", None)
    message = refused(capsys, *given_samples(SAMPLES / "masks", tmp_path / "out"))
    assert message.startswith("error: mattes need pymatting (")
    assert "pip install -e '.[matting]'" in message
    assert not (tmp_path / "out").exists()
