"""``demo``: its runs without a page, the page without a browser, then in headless Chromium."""

import shlex

import numpy as np
import pytest
from PIL import Image

from shared_data import PROJECT
from spectralseg.commands import cli
from spectralseg.commands.demo_runs import Choices, Workplace, command_lines
from spectralseg.commands.features import FeatureSettings
from spectralseg.commands.objects import ObjectSettings
from spectralseg.commands.run import RunSettings
from spectralseg.errors import InputError
from spectralseg.running.fire_app import main
from streamlit_pages import open_app, open_tab, settled


@pytest.fixture
def photographs(tmp_path):
    """A small photograph of an unusual name, and a file that is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    with Image.open(PROJECT / "data" / "samples" / "images" / "coffee.jpg") as image:
        image.resize((150, 100)).save(folder / "a cup's.jpg")
    (folder / "damaged.jpg").write_bytes(b"no picture")
    return folder


def choices_of(photograph, model_name="lab_graph", feature="k", objects=None, **run):
    settings = {"K": 20, "which_matrix": "local", "foreground": "robust"} | run
    features = FeatureSettings(model_name, which_features=(feature,))
    return Choices(photograph, features, RunSettings(which_features=feature, **settings), objects)


@pytest.mark.parametrize(
    "settings",
    [
        {"objects": ObjectSettings("segments", max_objects=2, crf=False)},
        {"foreground": "ranking", "which_matrix": "laplacian", "image_color_lambda": 3, "K": 6, "crf": False},
    ],
)
def test_files_are_those_of_the_command_lines(photographs, tmp_path, monkeypatch, settings):
    photograph, work = photographs / "a cup's.jpg", Workplace()
    work.result(choices_of(photograph, num_segments=3))  # what it shares is linked
    choices = choices_of(photograph, **settings)
    work.result(choices)
    monkeypatch.chdir(tmp_path)
    for line in command_lines(choices, "spectralseg", "photographs/a cup's.jpg").splitlines():
        main(cli.COMMANDS, shlex.split(line)[1:])
    stem, maps = choices.photograph.stem, "crf" if choices.run.crf else "patches"
    names = [f"{kind}/{stem}.png" for kind in ("cutouts", "masks", f"multi_region_segmentation/{maps}")]
    names += [f"features/{stem}.pth", f"eigs/{stem}.pth", *(["objects/objects.json"] if choices.objects else [])]
    for name in names:
        assert work.file(choices, name) == (tmp_path / stem / name).read_bytes(), name


def test_only_what_changes_is_computed(photographs):
    work = Workplace()
    photograph = work.keep("C:\\pictures\\cup.jpg", (photographs / "a cup's.jpg").read_bytes())
    for segments in (3, 5):
        result = work.result(choices_of(photograph, num_segments=segments, crf=False))
        assert len(np.unique(result.segmentation.segments)) == segments
    first, second = (
        {str(path.relative_to(folder).parent): path.stat().st_ino for path in folder.rglob("cup.p*")}
        for folder in sorted(work.root.glob("run*"), key=lambda folder: folder.stat().st_mtime_ns)
    )
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == ["multi_region_segmentation/patches"]
    with pytest.raises(InputError, match="begins with a dot"):
        work.keep("../.hidden.jpg", b"")


def widget(widgets, label):
    return next(one for one in widgets if one.label == label)


def test_the_page(photographs, monkeypatch):
    at = open_app(monkeypatch, "demo", "--images", str(photographs), "--model_name", "lab_graph")
    assert not at.exception
    assert "looked at as 150 × 100 pixels" in at.markdown[1].value.replace("\\", "")
    widget(at.slider, "K, eigenvectors").set_value(7)
    widget(at.selectbox, "Several objects").set_value("maskcut").run()
    run, objects = at.code[0].value.splitlines()
    assert run.endswith("--model_name=lab_graph --K=7")
    assert objects.startswith("spectralseg extract_objects --images_list=")
    assert widget(at.slider, "Colour weight").disabled
    widget(at.selectbox, "Photograph").set_value("damaged.jpg").run()
    assert not at.exception
    (error,) = at.error
    assert "damaged.jpg cannot be read as an image" in error.value.replace("\\", "")


@pytest.mark.slow
def test_in_a_browser(photographs, tmp_path, browser):
    (photographs / "damaged.jpg").unlink()
    arguments = ("demo", "--images", str(photographs), "--model_name", "lab_graph")
    with open_tab(browser, tmp_path / "log", *arguments, width=390, height=844) as tab:
        settled(tab, "The same files by the command line:")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        with tab.expect_download() as download:
            tab.get_by_text("Cut-out (PNG)").click()
        with Image.open(download.value.path()) as cutout:
            assert (cutout.size, cutout.mode) == ((150, 100), "RGBA")
