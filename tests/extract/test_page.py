"""The page of pictures needs nothing else and is safe; ``vis_eigs`` from records and photographs to page."""

import base64
import io
import json
import re
import weakref
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from spectralseg.commands import vis_eigs as command
from spectralseg.commands.vis_eigs import vis_eigs
from spectralseg.drawing.page import Card, write_page
from spectralseg.drawing.pictures import NO_DATA
from spectralseg.errors import InputError, OutputError
from spectralseg.files.label_maps import label_picture
from spectralseg.files.storage import save_record


class _Reader(HTMLParser):
    """Collects tags with their attributes, and the text of headings and captions."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def _page(tmp_path, cards, **options):
    write_page(tmp_path / "index.html", "Title", cards, **options)
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else_and_its_thumbnails_can_be_decoded(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    html = _page(
        tmp_path, [Card("one", [("image", noise), ("mask", label_picture(np.eye(50)))], {"size": "400 × 300"})]
    )
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    reader = _Reader(html)
    assert not reader.all("link")
    images = reader.all("img")[:-1]
    assert [image["alt"] for image in images] == ["image of one", "mask of one"]
    for image, size in zip(images, ((240, 180), (180, 180)), strict=True):
        kind, data = image["src"].split(",")
        assert kind == "data:image/webp;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == size
        assert (int(image["width"]), int(image["height"])) == size
        assert (image["loading"], image["decoding"]) == ("lazy", "async")
    mask = Image.open(io.BytesIO(base64.b64decode(images[1]["src"].split(",")[1]))).convert("RGB")
    assert {colour for _, colour in mask.getcolors()} == {(0, 0, 0), (128, 0, 0)}  # flat: kept without loss


def test_names_cannot_inject_anything(tmp_path):
    name = "<script>alert('x')</script> \"&\" \udcff"  # the last: a byte of a file name that is no UTF-8
    card = Card(name, [(name, Image.new("RGB", (4, 4)))], {name: name}, link=name + "?#:.png")
    write_page(tmp_path / "index.html", name, [card], description=name)
    reader = _Reader((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert len(reader.all("script")) == 1  # the page's own
    shown = name.replace("\udcff", "?")
    assert reader.text.count(shown) == 7  # <title>, heading, description, id, note (2), caption
    assert reader.all("img")[0]["alt"] == f"{shown} of {shown}"
    assert re.fullmatch(r"[\w%./~-]+", reader.all("a")[0]["href"])  # no scheme, query or fragment


def test_what_a_click_and_sorting_need(tmp_path):
    picture = Image.new("RGB", (4, 4))
    full, legends = {"mask": "masks/a b.png"}, {"mask": [("#800000", "1 & more")]}
    card = Card("one", [("image", picture), ("mask", picture)], full=full, scores={"size": 1 / 3}, legends=legends)
    html = _page(tmp_path, [card], facts={"model": "<none>"}, failed={"two": "no <image>"})
    reader = _Reader(html)
    image, mask, _ = reader.all("img")  # the last is the large view's
    assert "data-full" not in image
    assert mask["data-full"] == "masks/a%20b.png"
    assert json.loads(reader.all("article")[0]["data-scores"]) == {"size": 0.333333}
    assert {"style": "background:#800000", "class": "swatch"} in reader.all("span")
    assert {"1 & more", "<none>", "two", ": no <image>", "1 image failed"} <= set(reader.text)


def test_thumbnails_of_many_cards_lie_beside_the_page(tmp_path):
    cards = [Card(str(index), [("image", Image.new("RGB", (4, 3)))]) for index in range(201)]
    images = _Reader(_page(tmp_path, cards, count=len(cards))).all("img")[:-1]
    assert len({image["src"] for image in images}) == len(list((tmp_path / "index_files").iterdir())) == 201
    with Image.open(tmp_path / images[-1]["src"]) as thumbnail:
        assert thumbnail.size == (240, 180)


def test_in_a_browser(tmp_path, browser):
    """Sorted, filtered, enlarged; arrow keys go to the next image on view and to the next picture of it."""
    panels = [("image", Image.new("RGB", (40, 30))), ("mask", Image.new("1", (40, 30)))]
    Image.new("RGB", (80, 60)).save(tmp_path / "large.png")
    sizes = {"b10": 0.2, "b9": 0.3, "a": 0.1}
    cards = [Card(name, panels, scores={"size": size}, full={"mask": "large.png"}) for name, size in sizes.items()]
    write_page(tmp_path / "index.html", "Title", cards)
    tab, problems = browser.new_page(), []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text))
    tab.goto((tmp_path / "index.html").as_uri())
    for order, expected in (("name", ["a", "b9", "b10"]), ("size", ["b9", "b10", "a"]), ("", [*sizes])):
        tab.select_option("select", order)
        assert tab.locator("h2").all_text_contents() == expected
    tab.fill("input", "b")
    assert tab.locator("output").inner_text() == "2 of 3 images"
    tab.locator("figure button").nth(1).click()
    large = tab.locator("dialog img")
    large.evaluate("image => image.decode()")
    assert large.evaluate("image => image.naturalWidth") == 80
    for key, name, caption in (("Right", "b9", "mask"), ("Up", "b9", "image"), ("Right", "b9", "image")):
        tab.keyboard.press(f"Arrow{key}")
        assert (tab.locator("dialog h3").inner_text(), tab.locator("dialog p").inner_text()) == (name, caption)
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").is_visible()
    assert problems == []


def test_cards_are_written_one_by_one(tmp_path):
    references = []

    def cards():
        for index in range(5):
            picture = Image.new("RGB", (40, 30))
            references.append(weakref.ref(picture))
            yield Card(str(index), [("image", picture)])
            del picture
            assert sum(reference() is not None for reference in references) <= 1

    write_page(tmp_path / "index.html", "Title", cards())
    assert _Reader((tmp_path / "index.html").read_text()).text.count("image") == 5


def test_a_page_that_fails_leaves_the_old_one(tmp_path):
    def cards():
        yield Card("good", [])
        raise InputError("no more")

    before = _page(tmp_path, [])
    with pytest.raises(InputError):
        write_page(tmp_path / "index.html", "Title", cards())
    assert (tmp_path / "index.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    with pytest.raises(OutputError):
        write_page(tmp_path / "absent" / "index.html", "Title", [])


# vis_eigs


@pytest.fixture
def folders(tmp_path):
    """Photographs of 40 x 35 pixels, records of 8-pixel cells on them (4 x 5, three rows of pixels uncovered)."""
    images, eigs, features = (tmp_path / name for name in ("images", "eigs", "features"))
    for folder in (images, eigs, features):
        folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("b.jpg", "a.png"):
        Image.new("RGB", (40, 35), "orange").save(images / name)
        about = {"id": name[0], "shape": (1, 3, 35, 40), "file": name}
        vectors = torch.randn(3, 20, generator=generator)
        vectors[0] = 0.2  # constant: not drawn
        record = {"eigenvalues": torch.tensor([-1e-9, 0.00123, 0.5]), "eigenvectors": vectors}
        save_record(eigs / f"{name[0]}.pth", record | about | {"grid": (4, 5), "step": 8, "which_matrix": "laplacian"})
        attention = {"k": torch.zeros(1, 20, 4), "attn_cls": torch.rand(6, 20, generator=generator), "patch_size": 8}
        save_record(
            features / f"{name[0]}.pth", attention | about | {"model_name": "lab_hog8", "weights": "random, seed 0"}
        )
    return {"images_root": str(images), "eigs_dir": str(eigs), "output_dir": str(tmp_path / "out")}


def _captions(path):
    reader = _Reader(path.read_text())
    return [image["alt"] for image in reader.all("img")][:-1], reader  # without the large view's


def test_vis_eigs_draws_sheets_and_prints_the_page_last(folders, tmp_path, capsys):
    vis_eigs(**folders, features_dir=str(tmp_path / "features"))
    out = tmp_path / "out"
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png", "index.html", "stage.json"]
    captions, reader = _captions(out / "index.html")
    parts = (
        "image",
        "eigenvector 1, λ = 0.0012",
        "eigenvector 2, λ = 0.500",
        "[CLS] attention",
    )
    assert captions == [f"{part} of {name}" for name in "ab" for part in parts]
    assert [link["href"] for link in reader.all("a")] == ["a.png", "b.png"]
    for fact in ("40 × 35", "5 × 4 cells of 8 pixels", "laplacian", "lab_hog8", "random, seed 0"):
        assert fact in reader.text
    sheet = np.array(Image.open(out / "a.png"))
    assert (sheet == NO_DATA).all(axis=-1).any()  # the three rows of pixels that no cell covers


def test_vis_eigs_goes_on_where_it_stopped_and_redoes_on_demand(folders, tmp_path):
    out = tmp_path / "out"
    vis_eigs(**folders, limit=1)
    assert [path.name for path in out.glob("*.png")] == ["a.png"]
    (out / "a.png").write_bytes(b"kept")
    vis_eigs(**folders)
    assert (out / "a.png").read_bytes() == b"kept"
    assert (out / "b.png").exists()
    with pytest.raises(InputError, match="num_eigenvectors=8 instead of 2"):
        vis_eigs(**folders, num_eigenvectors=2)
    vis_eigs(**folders, num_eigenvectors=2, overwrite=True)
    assert (out / "a.png").read_bytes() != b"kept"
    assert len(_captions(out / "index.html")[0]) == 2 * 3


def test_vis_eigs_reads_published_records_and_lists_with_sub_folders(folders, tmp_path):
    record = {"eigenvalues": torch.tensor([0.1]), "eigenvectors": torch.randn(1, 20)}
    save_record(tmp_path / "eigs" / "c.pth", record)
    (tmp_path / "images" / "deep").mkdir()
    Image.new("L", (40, 35)).save(tmp_path / "images" / "deep" / "c.bmp")
    (tmp_path / "list.txt").write_text("deep/c.bmp\n")
    vis_eigs(**folders, images_list=str(tmp_path / "list.txt"))
    assert _captions(tmp_path / "out" / "index.html")[0] == ["image of c", "eigenvector 0, λ = 0.100 of c"]


def test_vis_eigs_shows_what_it_can_and_names_what_it_cannot(folders, tmp_path, capsys):
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(InputError, match="1 of 2 images failed"):
        vis_eigs(**folders)
    output = capsys.readouterr()
    assert "a failed: no image 'a.png'" in output.err
    assert output.out.endswith("index.html\n")
    assert len(_captions(tmp_path / "out" / "index.html")[0]) == 3
    Image.new("RGB", (35, 40)).save(tmp_path / "images" / "a.png")
    with pytest.raises(InputError):
        vis_eigs(**folders)
    assert "is of an image of 40x35 pixels, but a.png has 35x40" in capsys.readouterr().err


def test_vis_eigs_says_on_the_page_that_it_shows_the_first_images_only(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "MAX_CARDS", 1)
    vis_eigs(**folders)
    captions, reader = _captions(tmp_path / "out" / "index.html")
    assert captions[0] == "image of a"
    assert len(captions) == 3
    assert any("first 1 of 2 images" in text for text in reader.text)
    assert (tmp_path / "out" / "b.png").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limit": 0}, "limit=0: must be at least 1"),
        ({"num_eigenvectors": -1}, "num_eigenvectors=-1: must be at least 1"),
        ({"images_root": "nowhere"}, "no such images_root"),
        ({"eigs_dir": "nowhere"}, "no such folder"),
        ({"output_dir": "images"}, "which holds the inputs"),
        ({"output_dir": "eigs", "overwrite": True}, "which holds the inputs"),
    ],
)
def test_vis_eigs_refuses_wrong_arguments_before_any_work(folders, tmp_path, wrong, message):
    wrong = {key: str(tmp_path / value) if isinstance(value, str) else value for key, value in wrong.items()}
    with pytest.raises(InputError, match=message):
        vis_eigs(**folders | wrong)
    assert not (tmp_path / "out").exists()
