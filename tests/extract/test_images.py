"""Image lists, decoding of every kind of file, and the views of images."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from running import picture, touch
from spectralseg.errors import InputError
from spectralseg.files.images import (
    by_id,
    crop_to_patches,
    find_image,
    find_images,
    list_images,
    load_image,
    patch_grid,
    read_images_list,
    to_tensor,
    view,
)
from spectralseg.files.label_maps import load_labels

RED, BLUE, GREEN, WHITE = (255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 255)


# --- lists ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"b.jpg\na.png\nsub/c.jpg\n",
        b"a.png\nb.jpg\nsub/c.jpg",
        b"\xef\xbb\xbfb.jpg\r\na.png\r\nsub/c.jpg\r\n",
        b"\n\nb.jpg\n \t\na.png \n\n  sub/c.jpg\n\n",
        b"b.jpg\nb.jpg\na.png\nsub/c.jpg\nb.jpg\n",
    ],
    ids=["plain", "no final line end", "Windows and BOM", "blanks", "duplicates"],
)
def test_lists_of_any_origin_mean_the_same(text, tmp_path):
    root = touch(tmp_path / "root", "a.png", "b.jpg", "sub/c.jpg", "not-asked-for.jpg")
    (tmp_path / "list.txt").write_bytes(text)
    files = read_images_list(tmp_path / "list.txt", root)
    assert list(files.items()) == [("a", "a.png"), ("b", "b.jpg"), ("c", "sub/c.jpg")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no image"),
        (b"\r\n \n", "names no image"),
        (b"a.jpg\nb.jpg\n", "1 of 2 images of .* are not in .*: b.jpg$"),
        (b"1.jpg\n2.jpg\n3.jpg\n4.jpg\n5.jpg", "5 of 5 images .*: 1.jpg, 2.jpg, 3.jpg and 2 more$"),
        (b"a.jpg\na.png\n", "'a.jpg' and 'a.png' have the same stem"),
        (b"a.jpg\nsub/a.jpg\n", "'a.jpg' and 'sub/a.jpg' have the same stem"),
        (b"sub\n", "are not in"),
        (b"x" * 5000, "are not in"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "cannot read the images_list"),
    ],
)
def test_lists_that_cannot_be_followed(content, message, tmp_path):
    root = touch(tmp_path / "root", "a.jpg", "a.png", "sub/a.jpg")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_images_list(tmp_path / "list.txt", root)
    assert "\n" not in str(error.value)


def test_absent_lists_and_roots(tmp_path):
    with pytest.raises(InputError, match="cannot read the images_list .*absent.txt: No such file"):
        read_images_list(tmp_path / "absent.txt", tmp_path)
    with pytest.raises(InputError, match="cannot read the images_list"):
        read_images_list(tmp_path, tmp_path)
    (tmp_path / "list.txt").write_text("a.jpg\n")
    with pytest.raises(InputError, match="no such images_root"):
        read_images_list(tmp_path / "list.txt", tmp_path / "absent")


def test_ids_are_file_stems():
    assert by_id(["a.jpg", "folder/b.c.png", "d"]) == {"a": "a.jpg", "b.c": "folder/b.c.png", "d": "d"}


# --- images of a folder ---------------------------------------------------------------------------------------------


def test_images_of_a_folder_to_any_depth(tmp_path):
    """Hidden files and folders are no images, nor are folders that look like one."""
    root = touch(
        tmp_path / "root", "b.jpg", "a.PNG", "notes.txt", "._b.jpg", ".cache/c.jpg", "one/d.jpg", "one/two/e.gif"
    )
    (root / "folder.jpg").mkdir()
    shown = ["a.PNG", "b.jpg", "one/d.jpg", "one/two/e.gif"]
    for depth, count in ((0, 2), (1, 3), (2, 4), (None, 4)):
        assert list_images(root, depth) == shown[:count]
    assert find_images(root, depth=1) == {"a": root / "a.PNG", "b": root / "b.jpg", "d": root / "one" / "d.jpg"}
    assert list(find_images(root, suffixes={".jpg"})) == ["b", "d"]


def test_folders_that_cannot_be_used(tmp_path):
    for look in (list_images, find_images):
        with pytest.raises(InputError, match="no such folder: .*absent"):
            look(tmp_path / "absent")
    empty = touch(tmp_path / "empty", "notes.txt")
    assert list_images(empty) == []
    with pytest.raises(InputError, match=r"^no image in .*empty"):
        find_images(empty)
    with pytest.raises(InputError, match=r"^no .png file in .*empty"):
        find_images(empty, suffixes={".png"})
    with pytest.raises(InputError, match=r"twice: 'a/x.jpg' and 'b/x.jpg' have the same stem"):
        find_images(touch(tmp_path / "twice", "a/x.jpg", "b/x.jpg"))


# --- images by name or id -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.jpg", "a.jpg"),
        ("a", "a.jpg"),
        ("a.png", "a.jpg"),  # the list named a PNG, and now there is a JPEG of it
        ("scene.01", "scene.01.PNG"),
        ("scene.01.jpg", "scene.01.PNG"),
        ("x[1]", "x[1].webp"),
        ("sub/b", "sub/b.tif"),
        ("elsewhere/a.jpg", "a.jpg"),
    ],
)
def test_images_are_found(name, found, tmp_path):
    touch(tmp_path, "a.jpg", "a.txt", "scene.01.PNG", "scene.02.PNG", "x[1].webp", "x1.webp", "sub/b.tif")
    assert find_image(tmp_path, name) == tmp_path / found


@pytest.mark.parametrize("name", ["scene", "scene.03", "c", "b", "*", "/absent/folder/c.jpg"])
def test_images_that_only_look_similar_are_not_taken(name, tmp_path):
    touch(tmp_path, "a.jpg", "scene.01.png", "scene.jpg.txt", "c.xml", "sub/b.tif")
    with pytest.raises(InputError, match="no image"):
        find_image(tmp_path, name)


def test_several_candidates_are_an_error(tmp_path):
    touch(tmp_path, "a.jpg", "a.png")
    with pytest.raises(InputError, match="several images for 'a' .*: a.jpg, a.png"):
        find_image(tmp_path, "a")
    assert find_image(tmp_path, "a.png").name == "a.png"


# --- decoding -------------------------------------------------------------------------------------------------------


def loaded(image, path, **options):
    image.save(path, **options)
    return np.array(load_image(path))


@pytest.mark.parametrize(
    ("mode", "pixel", "rgb"),
    [
        ("L", 200, (200, 200, 200)),
        ("1", 1, WHITE),
        ("LA", (90, 0), (90, 90, 90)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),  # transparency is dropped, not blended
        ("I;16", 255, (0, 0, 0)),
        ("I;16", 256, (1, 1, 1)),
        ("I;16", 0x8123, (0x81, 0x81, 0x81)),
        ("I;16", 65535, WHITE),
    ],
)
def test_modes_of_png(mode, pixel, rgb, tmp_path):
    assert np.array_equal(loaded(Image.new(mode, (3, 2), pixel), tmp_path / "x.png"), np.tile(rgb, (2, 3, 1)))


def test_palette_png(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    image.putpalette([*RED, *GREEN, *BLUE])
    assert np.array_equal(loaded(image, tmp_path / "x.png"), [[RED, GREEN], [BLUE, GREEN]])
    transparent = loaded(image, tmp_path / "y.png", transparency=1)
    assert np.array_equal(transparent, [[RED, GREEN], [BLUE, GREEN]])


def test_cmyk_jpeg(tmp_path):
    pixels = loaded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "x.jpg", quality=95)
    assert np.abs(pixels.astype(int) - RED).max() <= 3


def test_float_tiff(tmp_path):
    image = Image.fromarray(np.array([[0, 700.5, 1e9]], dtype=np.float32))
    assert loaded(image, tmp_path / "x.tif")[0, :, 0].tolist() == [0, 2, 255]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: np.swapaxes(a, 0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(np.swapaxes(a, 0, 1), 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation(orientation, upright, tmp_path):
    """EXIF 2.3, tag 0x0112: where the 0th row and column are to be shown."""
    image = picture(0, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(loaded(image, tmp_path / "x.png", exif=exif), upright(np.array(image)))


def test_files_that_are_no_images(tmp_path):
    """Others are among good ones in test_bad_input.py."""
    with pytest.raises(InputError, match="no such image"):
        load_image(tmp_path / "absent.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        load_image(tmp_path)


@pytest.mark.parametrize("limit", ["100", "0", "1e9", "999999999999"])
def test_pixels_are_counted_before_decoding(limit, tmp_path, monkeypatch):
    picture(0, 10, 10).save(tmp_path / "x.png")
    Image.new("L", (1, 101)).save(tmp_path / "y.png")
    assert load_image(tmp_path / "y.png").size == (1, 101)
    monkeypatch.setenv("SPECTRALSEG_MAX_PIXELS", limit)
    if limit == "100":
        assert load_image(tmp_path / "x.png").size == (10, 10)
    expected = {"100": "it has more than 100 pixels; make it smaller, or set SPECTRALSEG_MAX_PIXELS$"}
    for read in (load_image, load_labels):
        with pytest.raises(InputError, match=expected.get(limit, "give a whole number from 1 to 178956970$")):
            read(tmp_path / "y.png")


def test_tensor_is_rgb_in_0_1():
    image = Image.new("RGB", (3, 2), (255, 51, 0))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 3)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, torch.tensor([1.0, 0.2, 0.0]).view(3, 1, 1).expand(3, 2, 3))


# --- views ----------------------------------------------------------------------------------------------------------

sides = st.integers(1, 70)


@given(sides, sides, st.none() | st.integers(1, 50), st.none() | st.integers(1, 50))
def test_view_is_torchvisions(width, height, resize, center_crop):
    image = picture(0, width + 2, height + 2).crop((0, 0, width, height))
    steps = [] if resize is None else [v2.Resize(resize, v2.InterpolationMode.NEAREST)]
    assume(center_crop is None or center_crop <= (min(width, height) if resize is None else resize))
    steps += [] if center_crop is None else [v2.CenterCrop(center_crop)]
    expected = np.array(v2.Compose(steps)(image)) if steps else np.array(image)
    assert np.array_equal(np.array(view(image, resize, center_crop)), expected)


def test_view_of_an_image_that_is_too_small():
    with pytest.raises(InputError, match="an image of 30x20 pixels is smaller than center_crop=21"):
        view(picture(0, 30, 20), None, 21)
    assert view(picture(0, 30, 20), 21, 21).size == (21, 21)


@given(sides, sides, st.integers(1, 20))
def test_crop_keeps_the_top_left_in_whole_patches(width, height, patch_size):
    assume(min(width, height) >= patch_size)
    image = torch.arange(3 * height * width).view(3, height, width)
    cropped = crop_to_patches(image, patch_size)
    rows, columns = patch_grid(height, width, patch_size)
    assert cropped.shape == (3, rows * patch_size, columns * patch_size)
    assert 0 <= height - rows * patch_size < patch_size
    assert 0 <= width - columns * patch_size < patch_size
    assert torch.equal(cropped, image[:, : cropped.shape[1], : cropped.shape[2]])


@pytest.mark.parametrize("size", [(15, 99), (99, 15), (1, 1)])
def test_less_than_a_patch(size):
    with pytest.raises(InputError, match="smaller than one patch of 16 pixels"):
        patch_grid(*size, 16)
