"""``vis_segmentations``: its logic without a browser, then the page itself in headless Chromium."""

import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from spectralseg.commands import cli, viewer, viewer_sources
from spectralseg.commands.viewer import draw_boxes, enlarge, panels
from spectralseg.commands.viewer_sources import Box, LabelIndex, load_sources, missing_label_maps
from spectralseg.errors import InputError
from spectralseg.files.label_maps import label_picture, save_labels, upscale_labels
from streamlit_pages import open_app, open_tab, settled

COUNT, WIDTH, HEIGHT = 40, 100, 70
NO_MAP, NO_PNG, NO_PHOTOGRAPH, RARE = "image_03", "image_05", "image_06", "image_37"


def colour(label):
    return tuple(label_picture([[label]]).convert("RGB").getpixel((0, 0)))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """40 grey photographs of 100x70 pixels; label maps at patches of 16: 0 and, on the right, 1 + (number modulo 4).

    One map is missing, one is no PNG, one holds label 9 too; one photograph is damaged; two boxes for each.
    """
    root = tmp_path_factory.mktemp("gallery")
    (root / "images").mkdir()
    (root / "maps").mkdir()
    names, records = [], []
    for number in range(COUNT):
        name = f"image_{number:02d}"
        names.append(f"{name}.png")
        Image.new("RGB", (WIDTH, HEIGHT), (150 + number, 150, 150)).save(root / "images" / f"{name}.png")
        labels = np.zeros((4, 6), dtype=np.uint8)
        labels[:, 3:] = 1 + number % 4
        labels[0, 0] = 9 if name == RARE else 0
        save_labels(root / "maps" / f"{name}.png", labels)
        boxes = [[48, 0, 96, 64], [8, 20, 40, 60]]
        records.append({"id": name, "bboxes_original_resolution": boxes, "segment_indices": [1 + number % 4, 9]})
    (root / "maps" / f"{NO_MAP}.png").unlink()
    (root / "maps" / f"{NO_PNG}.png").write_bytes(b"no picture")
    (root / "images" / f"{NO_PHOTOGRAPH}.png").write_bytes(b"no picture")
    (root / "list.txt").write_text("\n".join(names))
    torch.save(records, root / "bboxes.pth")
    return root


def flags(root, with_boxes=True):
    arguments = {"images_list": root / "list.txt", "images_root": root / "images", "segmentations_dir": root / "maps"}
    arguments |= {"bbox_file": root / "bboxes.pth"} if with_boxes else {}
    return {name: str(path) for name, path in arguments.items()}


def command_line(root, with_boxes=True):
    return [part for name, value in flags(root, with_boxes).items() for part in (f"--{name}", value)]


# --- what the page is made of -----------------------------------------------------------------------------------------


def test_label_maps_of_any_grid_are_enlarged():
    """At patches of 16, 8 or 14, four times finer than those of 16, at pixels, at half of them, at nothing known."""
    for grid, size in (
        *(((4, 6), 16), ((8, 12), 8), ((5, 7), 14), ((16, 24), 16)),
        *(((70, 100), 1), ((35, 50), 1), ((3, 3), 1)),
    ):
        labels = np.random.default_rng(0).integers(0, 5, grid).astype(np.uint8)
        np.testing.assert_array_equal(enlarge(labels, HEIGHT, WIDTH), upscale_labels(labels, HEIGHT, WIDTH, size))


def test_boxes_are_frames_in_the_colour_of_their_label():
    picture = draw_boxes(Image.new("RGB", (200, 140), "white"), [Box((10, 40, 90, 60), "3", 3)], scale=2)
    assert picture.getpixel((100, 117)) == colour(3)  # inside the white line at the lower edge, 2 * 60 exclusive
    assert picture.getpixel((100, 119)) == picture.getpixel((100, 122)) == (255, 255, 255)
    assert picture.getpixel((100, 100)) == (255, 255, 255)  # not filled
    assert picture.getpixel((22, 82)) == colour(3)  # the ground of the text
    for corners in ((0, 0, 1, 1), (99, 69, 100, 70), (5, 5, 5, 5), (-3, -3, 500, 500)):
        assert draw_boxes(Image.new("RGB", (100, 70)), [Box(corners, "12, cluster 7", 44)], 1).size == (100, 70)


def test_panels_have_the_size_of_the_thumbnail():
    thumbnail, labels = Image.new("RGB", (200, 140), (90, 90, 90)), np.array([[0, 1], [2, 0]], dtype=np.uint8)
    pictures = panels(thumbnail, (100, 70), labels, [Box((0, 0, 50, 35), "1", 1)], 0.5)
    assert [caption for caption, _ in pictures] == ["image, 1 box", "segmentation", "overlay, 1 box"]
    assert {picture.size for _, picture in pictures} == {(200, 140)}
    segmentation, overlaid = pictures[1][1], pictures[2][1]
    assert [segmentation.getpixel(at) for at in ((150, 35), (50, 105), (150, 105))] == [*map(colour, (1, 2, 0))]
    assert overlaid.getpixel((150, 105)) == (90, 90, 90)  # label 0 veils nothing
    assert overlaid.getpixel((150, 35))[0] == pytest.approx((90 + 128) / 2, abs=1)
    assert [caption for caption, _ in panels(thumbnail, (100, 70), labels, [], None)] == ["image", "segmentation"]
    assert [caption for caption, _ in panels(thumbnail, (100, 70), None, [], 0.5)] == ["image"]


def test_names_cannot_inject_anything():
    assert "<script" not in viewer.heading("<script>\udcff", (1, 1), None)
    assert viewer.plain("a_b*c<d>[e](f) :red[g] $h$") == r"a\_b\*c\<d\>\[e\]\(f\) \:red\[g\] \$h\$"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (None, [5, 6]),  # a folder that tells nothing, and one of segments: colours of segments
        ({"seed": 0}, [5, 6]),
        ({"cluster_offset": 1, "bbox_clusters": {}}, [3, 12]),  # semantic maps: clusters, as they are numbered there
        ({"cluster_offset": 0}, [2, 11]),
        ({"w1": 10, "segmentations": {"cluster_offset": 1}}, [3, 12]),  # these, sharpened
    ],
)
def test_boxes_take_the_labels_of_the_maps_beside_them(tmp_path, arguments, expected):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png")
    (tmp_path / "maps").mkdir()
    if arguments is not None:
        description = {"command": "extract_something", "arguments": arguments}
        (tmp_path / "maps" / "stage.json").write_text(json.dumps(description))
    published = {  # tensors and arrays, as the published code stores them
        "id": "a",
        "bboxes_original_resolution": np.array([[0, 0, 4, 4], [1, 1, 8, 8]]),
        "segment_indices": np.array([5, 6]),
        "clusters": torch.tensor([2, 11]),
    }
    torch.save([published], tmp_path / "clusters.pth")
    paths = (tmp_path / "list.txt", tmp_path, tmp_path / "maps", tmp_path / "clusters.pth")
    boxes = load_sources(*map(str, paths)).boxes("a")
    assert [box.label for box in boxes] == expected
    assert [box.text for box in boxes] == ["5, cluster 2", "6, cluster 11"]
    assert boxes[1].corners == (1, 1, 8, 8)


def test_records_that_are_no_use_are_named(gallery, tmp_path):
    for boxes, message in [
        ({}, "has no field 'bboxes_original_resolution'"),
        (
            {"bboxes_original_resolution": [[0, 0, 1, 1]], "segment_indices": []},
            "has 1 bboxes.*, 0 segment",
        ),
        ({"bboxes_original_resolution": [], "segment_indices": []}, "has no entry for image_02"),
    ]:
        torch.save([{"id": "image_01", **boxes}], path := tmp_path / f"{len(boxes)}{len(message)}.pth")
        with pytest.raises(InputError, match=message):
            load_sources(**flags(gallery, with_boxes=False), bbox_file=str(path)).boxes("image_02")


def test_missing_label_maps_are_found_without_opening_any(gallery, monkeypatch):
    monkeypatch.setattr(viewer_sources, "load_labels", None)
    assert missing_label_maps(load_sources(**flags(gallery))) == [NO_MAP]


def test_label_index_reads_as_far_as_need_be_and_again_what_changed(tmp_path, monkeypatch):
    paths = {}
    for number in range(10):
        paths[str(number)] = tmp_path / f"{number}.png"
        save_labels(paths[str(number)], np.full((2, 2), number % 3))
    opened = []
    load = viewer_sources.load_labels
    monkeypatch.setattr(viewer_sources, "load_labels", lambda path: opened.append(path.stem) or load(path))
    index = LabelIndex()
    assert index.find(paths, 1, 2) == ["1", "4"]
    assert opened == ["0", "1", "2", "3", "4"]
    assert index.seen(paths.values()) == (5, [0, 1, 2])
    assert index.find(paths, 1, 2) == ["1", "4"]
    assert len(opened) == 5  # none again
    assert index.find(paths, 7, 1) == []
    assert len(opened) == 10
    save_labels(paths["1"], np.full((2, 2), 7))
    os.utime(paths["1"], ns=(1, 1))
    paths["2"].unlink()
    assert index.find(paths, 7, 9) == ["1"]
    assert opened[10:] == ["1"]
    assert index.find(paths, 2, 9) == ["5", "8"]


# --- the page, without a browser --------------------------------------------------------------------------------------


@pytest.fixture
def page(gallery, monkeypatch):
    """A function that opens the page; it has Streamlit's test interface."""
    monkeypatch.setattr(viewer, "INDEX", LabelIndex())

    def opened(*argv, with_boxes=True):
        return open_app(monkeypatch, *(argv or ["vis_segmentations", *command_line(gallery, with_boxes)]))

    return opened


def captions(at):
    return [element.proto.imgs[0].caption for element in [*at.get("image"), *at.get("imgs")]]  # newer, older Streamlit


def names(at):
    """Ids of the images on view."""
    return [element.proto.body.split("<b>")[1].split("</b>")[0] for element in at.get("html")]


def button(at, label):
    return next(button for button in at.button if button.label == label)


def status(at):
    return at.markdown[0].value


def test_pages_of_images(page):
    at = page()
    assert not at.exception
    assert status(at) == "Images 1 to 8 of 40"
    assert names(at) == [f"image_{number:02d}" for number in range(8) if f"image_{number:02d}" != NO_PHOTOGRAPH]
    assert button(at, "Previous").disabled
    button(at, "Next").click().run()
    assert status(at) == "Images 9 to 16 of 40"
    at.number_input(key="page").set_value(5).run()
    assert names(at) == [f"image_{number}" for number in range(32, 40)]
    assert button(at, "Next").disabled
    at.selectbox(key="size").set_value(32).run()
    assert status(at) == "Images 1 to 32 of 40"
    at.number_input(key="page").set_value(2).run()
    assert len(names(at)) == 8
    button(at, "Previous").click().run()
    assert status(at) == "Images 1 to 32 of 40"


def test_only_the_images_on_view_are_opened(page, monkeypatch):
    opened = []
    for module, name in ((viewer, "load_image"), (viewer, "load_labels"), (viewer_sources, "load_labels")):
        load = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, load=load: opened.append(path.stem) or load(path))
    at = page()
    assert set(opened) == {f"image_{number:02d}" for number in range(8)} - {NO_MAP} | {NO_MAP}
    opened.clear()
    at.number_input(key="page").set_value(4).run()
    assert set(opened) == {f"image_{number:02d}" for number in range(24, 32)}


def test_a_label_is_chosen(page):
    at = page()
    show = at.selectbox(key="label")
    assert show.options == ["all images", "label 0", "label 1", "label 2", "label 3", "label 4"]
    at.number_input(key="page").set_value(3).run()
    at.selectbox(key="label").set_value("label 2").run()
    assert status(at) == "Images 1 to 8 with label 2; there are more"  # on its first page
    assert names(at) == [f"image_{number:02d}" for number in range(1, 36, 4) if number != 5]
    button(at, "Next").click().run()
    assert status(at) == "Images 9 to 9 of 9 with label 2"
    assert at.number_input(key="page").label == "Page (of 2)"
    at.number_input(key="page").set_value(2).run()
    assert names(at) == ["image_37"]


def test_it_jumps_to_an_image(page):
    at = page()
    at.selectbox(key="label").set_value("label 2").run()
    at.text_input(key="sought").set_value("_37").run()
    assert status(at) == "Images 33 to 40 of 40"
    assert RARE in names(at)
    at.text_input(key="sought").set_value("cat").run()
    assert [error.value.replace("\\", "") for error in at.error] == ["no image whose id holds 'cat'"]
    at.text_input(key="sought").set_value("image_00").run()
    assert not at.error
    assert status(at) == "Images 1 to 8 of 40"


def type_label(at, text):
    """Enter what is not in the list; Streamlit's test interface knows only what is."""
    show = at.selectbox(key="label")
    show.options.append(text)
    show.set_value(text).run()


def test_any_label_can_be_typed(page):
    at = page()
    type_label(at, "9")
    assert status(at) == "Images 1 to 1 of 1 with label 9"
    assert names(at) == [RARE]
    assert "label 9" in at.selectbox(key="label").options
    type_label(at, "label 77")
    assert [info.value for info in at.info] == ["No image with label 77."]
    assert not names(at)
    type_label(at, "cats")
    assert [error.value for error in at.error] == [r"\'cats\' is no label\: type a number from 0 to 255"]
    assert status(at) == "Images 1 to 8 of 40"  # and one can choose again
    at.selectbox(key="label").set_value("all images").run()
    assert not at.error


def test_all_labels_on_request(page):
    at = page()
    assert "label 9" not in at.selectbox(key="label").options
    at.button(key="read_all").click().run()
    assert "label 9" in at.selectbox(key="label").options
    assert "Find all labels" not in [button.label for button in at.button]
    at.selectbox(key="label").set_value("label 0").run()
    assert status(at) == "Images 1 to 8 of 38 with label 0"  # one map is missing, one is damaged


def test_boxes_and_overlay_can_be_turned_off(page):
    at = page()
    assert captions(at)[:3] == ["image, 2 boxes", "segmentation", "overlay, 2 boxes"]
    at.toggle(key="boxes").set_value(False).run()
    assert captions(at)[:3] == ["image", "segmentation", "overlay"]
    at.toggle(key="overlay").set_value(False).run()
    assert captions(at)[:4] == ["image", "segmentation", "image", "segmentation"]
    assert at.slider(key="alpha").disabled
    at.toggle(key="boxes").set_value(True).run()
    assert captions(at)[:2] == ["image, 2 boxes", "segmentation"]
    without = page(with_boxes=False)
    assert without.toggle(key="boxes").disabled
    assert captions(without)[0] == "image"


def test_what_is_missing_or_damaged_is_named_in_place(page, gallery):
    warnings = [warning.value.replace("\\", "") for warning in page().warning]
    assert warnings[0] == f"Without segmentation: {NO_MAP}"
    assert warnings[1] == f"no segmentation: {gallery / 'maps' / NO_MAP}.png is missing"
    assert f"{NO_PNG}.png cannot be read as a label map" in warnings[2]
    assert f"{NO_PHOTOGRAPH}.png cannot be read as an image" in warnings[3]
    assert len(warnings) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("vis_segmentations --imagelist x", "error: vis_segmentations has no flag --imagelist"),
        ("vis_segmentations --images_list no --images_root no --segmentations_dir no", "error: no such segmentations"),
        ("--help", "see the terminal"),
    ],
)
def test_errors_are_one_line_on_the_page(page, arguments, message):
    """Where ``sys.exit`` alone would leave an empty page that runs forever."""
    at = page(*arguments.split())
    assert not at.exception
    (error,) = at.error
    assert error.value.replace("\\", "").startswith(message)
    assert "\n" not in error.value


def test_the_commands_start_streamlit(gallery, monkeypatch):
    started = []
    monkeypatch.setattr(sys, "argv", ["extract.py"])
    monkeypatch.setattr(subprocess, "run", lambda words: started.append(words) or subprocess.CompletedProcess(words, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    cli.main(["vis_segmentations", *command_line(gallery)])
    cli.main(["demo", "--model_name", "lab_hog"])
    assert all(words[1:6] == ["-m", "streamlit", "run", "--browser.gatherUsageStats", "false"] for words in started)
    after = [words[words.index("extract.py") + 1 :] for words in started]
    assert after[0] == ["vis_segmentations", "--", *command_line(gallery)]
    assert after[1] == ["demo", "--", "--model_name", "lab_hog", "--device", "auto"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["vis_segmentations", *command_line(gallery)])
    message = "error: vis_segmentations is a page for the browser and needs Streamlit: pip install -e '.[viewer]'"
    assert stop.value.code == message


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tab(gallery, tmp_path, browser):
    with open_tab(
        browser, tmp_path / "log", "vis_segmentations", *command_line(gallery), width=1400, height=1000
    ) as tab:
        yield tab


def pictures(tab):
    """(caption, picture) of all images on the page, as the browser got them."""
    figures = []
    for figure in tab.locator("[data-testid=stImage]").all():
        source = figure.locator("img").get_attribute("src")
        response = tab.request.get(f"{tab.url.rstrip('/')}{source}" if source.startswith("/") else source)
        figures.append((figure.inner_text().strip(), Image.open(io.BytesIO(response.body())).convert("RGB")))
    return figures


def close(pixel, expected):
    return np.abs(np.subtract(pixel, expected)).max() <= 12  # JPEG


@pytest.mark.slow
def test_in_a_browser(tab):
    settled(tab, "Images 1 to 8 of 40")
    assert tab.title() == "Segmentations"

    # boxes are on, then off
    (first, image), (second, segmentation), (third, overlaid) = pictures(tab)[:3]
    assert (first, second, third) == ("image, 2 boxes", "segmentation", "overlay, 2 boxes")
    scale = image.height / HEIGHT
    right, left = (round(70 * scale), round(30 * scale)), (round(12 * scale), round(10 * scale))
    frame = (round(24 * scale), round(60 * scale) - 3)  # lower edge of the second box
    assert close(segmentation.getpixel(right), colour(1))
    assert close(segmentation.getpixel(left), colour(0))
    assert close(overlaid.getpixel(right), np.add((150, 150, 150), colour(1)) // 2)
    assert close(overlaid.getpixel(left), (150, 150, 150))
    assert not close(image.getpixel(frame), (150, 150, 150))
    tab.get_by_text("Boxes", exact=True).click()
    tab.get_by_text("image, 2 boxes").first.wait_for(state="detached")
    settled(tab, "Images 1 to 8 of 40")
    assert close(pictures(tab)[0][1].getpixel(frame), (150, 150, 150))

    # a label that is not in the list can be typed
    show = tab.get_by_role("combobox").first
    show.click()
    show.fill("9")
    show.press("Enter")
    settled(tab, "Images 1 to 1 of 1 with label 9")
    tab.get_by_text(RARE, exact=True).wait_for()
