"""``vis_segmentations``: look through images, their boxes and segmentations, on a page that Streamlit serves.

Streamlit runs the whole script again whenever something on the page is clicked. What takes long is kept between runs
(see :mod:`spectralseg.commands.viewer_sources`), and files are opened for the images on view only; choosing a label
reads label maps until the page is full.
"""

import contextlib
import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from spectralseg.commands.viewer_sources import Box, LabelIndex, Sources, load_sources, missing_label_maps, time_stamp
from spectralseg.drawing.pictures import caption_font, fit_height, overlay
from spectralseg.errors import InputError, printable, some_of
from spectralseg.files.images import load_image
from spectralseg.files.label_maps import find_step, label_picture, load_labels, upscale_labels, voc_palette

ALL = "all images"
PAGE_SIZES = (4, 8, 16, 32, 64)
MOST_NAMES = 20  # of images without segmentation, in the list above the page
MAX_RATIO = 4  # a panorama is at most this many times wider than the pictures are high
PALETTE = voc_palette()
INDEX = LabelIndex()  # one for all who look at the page


def enlarge(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Label map (rows, columns) to (height, width), at whatever patch size its rows and columns fit."""
    return upscale_labels(labels, height, width, find_step(labels.shape, height, width) or 1)


def draw_boxes(picture: Image.Image, boxes: Sequence[Box], scale: float) -> Image.Image:
    """A copy with boxes in VOC colours; ``scale``: pixels of the picture for a pixel of the photograph."""
    picture, font = picture.copy(), caption_font(12)
    draw = ImageDraw.Draw(picture)
    corners = [tuple(scale * side for side in box.corners) for box in boxes]
    colours = [tuple(PALETTE[3 * box.label : 3 * box.label + 3]) for box in boxes]
    for (left, top, right, bottom), colour in zip(corners, colours, strict=True):
        right, bottom = max(left + 3, right - 1), max(top + 3, bottom - 1)
        draw.rectangle((left, top, right, bottom), outline="white", width=4)
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=2)
    for box, (left, top, _, _), colour in zip(boxes, corners, colours, strict=True):  # over all frames
        width = draw.textlength(box.text, font) + 8
        left = max(0, min(left, picture.width - width))
        draw.rectangle((left, top, left + width, top + 16), fill=colour)
        ink = "black" if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 110 else "white"
        draw.text((left + 4, top + 8), box.text, fill=ink, font=font, anchor="lm")
    return picture


def panels(
    thumbnail: Image.Image, size: tuple[int, int], labels: np.ndarray | None, boxes: Sequence[Box], alpha: float | None
) -> list[tuple[str, Image.Image]]:
    """Pictures of an image, of the thumbnail's size, with captions; ``size`` (width, height) is the photograph's.

    Boxes are drawn on the photograph and its overlay; no overlay if ``alpha`` is None.
    """
    scale = thumbnail.height / size[1]
    count = f", {len(boxes)} box{'es' if len(boxes) != 1 else ''}" if boxes else ""
    pictures = [(f"image{count}", draw_boxes(thumbnail, boxes, scale))]
    if labels is not None:
        full = Image.fromarray(enlarge(labels, size[1], size[0]))
        small = np.asarray(full.resize(thumbnail.size, Image.Resampling.NEAREST))
        pictures.append(("segmentation", label_picture(small).convert("RGB")))
        if alpha is not None:
            pictures.append((f"overlay{count}", draw_boxes(overlay(thumbnail, small, alpha), boxes, scale)))
    return pictures


def heading(image_id: str, size: tuple[int, int], labels: np.ndarray | None) -> str:
    """HTML: the id, the sizes, and a legend of the labels that the map holds, with their shares of the image."""
    facts = f"{size[0]} × {size[1]}"
    chips = ""
    if labels is not None:
        facts += f", label map {labels.shape[1]} × {labels.shape[0]}"
        for label, cells in enumerate(np.bincount(labels.ravel()).tolist()):
            if cells:
                colour = "rgb({},{},{})".format(*PALETTE[3 * label : 3 * label + 3])
                chips += (
                    '<span style="margin-right:14px;white-space:nowrap"><span style="display:inline-block;width:13px;'
                    f"height:13px;margin-right:5px;vertical-align:-1px;border:1px solid #8888;border-radius:3px;"
                    f'background:{colour}"></span>label {label} <span style="opacity:.6">'
                    f"{100 * cells / labels.size:.0f} %</span></span>"
                )
    name = escape(printable(image_id))
    return f'<div><b>{name}</b> <span style="opacity:.6;margin-left:8px">{facts}</span></div><div>{chips}</div>'


def is_page() -> bool:
    """Whether Streamlit runs this script, rather than Python alone."""
    if "streamlit" not in sys.modules:
        return False
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    return get_script_run_ctx(suppress_warning=True) is not None


def show_error(message: str) -> None:
    """On a page, show the message and end this run of the script, as no exit would; elsewhere do nothing."""
    if is_page():
        import streamlit as st

        st.error(plain(message))
        st.stop()


def open_page(command: str, flags: Mapping[str, str | None]) -> None:
    """Let Streamlit serve a command's page, and open it in the browser, until Ctrl-C. Flags that are None are left out.

    No statistics of use are sent, nor is an address asked for: ``.streamlit/config.toml`` beside ``extract.py`` sees to
    it where Streamlit is started by hand.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise InputError(f"{command} is a page for the browser and needs Streamlit: pip install -e '.[viewer]'")
    script = sys.argv[0] if sys.argv[0].endswith(".py") else str(Path(__file__).with_name("cli.py"))
    words = [sys.executable, "-m", "streamlit", "run", "--browser.gatherUsageStats", "false"]
    words += ["--server.showEmailPrompt", "false", "--client.toolbarMode", "minimal", script, command, "--"]
    words += [part for name, value in flags.items() if value is not None for part in (f"--{name}", value)]
    with contextlib.suppress(KeyboardInterrupt):
        status = subprocess.run(words).returncode
        if status:
            sys.exit(status)


def vis_segmentations(images_list: str, images_root: str, segmentations_dir: str, bbox_file: str | None = None) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    if not is_page():
        flags = {"images_list": images_list, "images_root": images_root, "segmentations_dir": segmentations_dir}
        return open_page("vis_segmentations", flags | {"bbox_file": bbox_file})
    import streamlit as st

    st.set_page_config(page_title="Segmentations", layout="wide")
    try:
        _page(st, load_sources(images_list, images_root, segmentations_dir, bbox_file))
    except InputError as error:
        show_error(f"error: {error}")


def _page(st: Any, sources: Sources) -> None:
    """Draw the page. What the widgets say is in the session's state before they are drawn.

    The label and the page are set there again, because a widget whose options have changed would start afresh.
    """
    state = st.session_state
    state["label"] = state.get("label", ALL)
    paths, missing = sources.label_maps, missing_label_maps(sources)
    status, label = st.container(), None
    try:
        label = _label(state["label"])
    except InputError as error:
        status.error(plain(str(error)))
    if state.get("unknown"):
        status.error(plain(f"no image whose id holds '{state['unknown']}'"))
    size, number = state.get("size", PAGE_SIZES[1]), state.get("page", 1)
    if state.get("read_all"):
        _search(status, paths, -1, len(paths))  # no map holds it: all are read
    all_read = INDEX.seen(paths.values())[0] >= len(paths) - len(missing)
    enough = len(paths) if all_read else number * size + 1
    found = list(paths) if label is None else _search(status, paths, label, enough)
    all_found = label is None or all_read or len(found) < enough
    pages = max(1, -(-len(found) // size))
    state["page"] = number = min(number, pages)
    shown = found[(number - 1) * size : number * size]
    for image_id in shown:
        INDEX.labels(paths[image_id])
    read, labels = INDEX.seen(paths.values())
    with st.sidebar:
        view = _controls(
            st,
            list(paths),
            labels,
            is_complete=read >= len(paths) - len(missing),
            pages=pages if all_found else None,
            has_boxes=sources.records is not None,
        )

    which = f" with label {label}" if label is not None else ""
    if shown:
        last = (number - 1) * size + len(shown)
        total, more = (f" of {len(found)}", "") if all_found else ("", "; there are more")
        status.markdown(f"Images {last - len(shown) + 1} to {last}{total}{which}{more}")
    else:
        status.info(f"No image{which}.")
    if missing:
        status.warning(plain(f"Without segmentation: {some_of(missing, MOST_NAMES)}"))
    for image_id in shown:
        with st.container(border=True):
            _card(st, sources, image_id, **view)


def _search(status: Any, paths: dict[str, Path], label: int, count: int) -> list[str]:
    """Ids with a label, with a progress bar while label maps have to be read."""
    slot = status.empty()
    text = f"reading label maps, for {len(paths)} images"
    found = INDEX.find(paths, label, count, lambda done: slot.progress(done / len(paths), text=text))
    slot.empty()
    return found


def _controls(
    st: Any, ids: list[str], labels: list[int], is_complete: bool, pages: int | None, has_boxes: bool
) -> dict[str, Any]:
    """The widgets; how the images are to be shown, as arguments of :func:`_card`."""
    state = st.session_state

    def turn(by: int) -> None:
        state["page"] = max(1, state["page"] + by)

    def first() -> None:
        state["page"] = 1

    def jump() -> None:
        sought = state["sought"].strip()
        found = [name for name in ids if name == sought] or [name for name in ids if sought in name]
        state["unknown"] = None if found else sought
        if found:
            state["label"], state["page"] = ALL, 1 + ids.index(found[0]) // state["size"]

    st.text_input("Go to image", key="sought", on_change=jump, help="Its id, or a part of it.")
    options = [ALL, *(f"label {label}" for label in labels)]
    hint = "Labels of the images seen so far; any other can be typed."
    st.selectbox("Show", options, key="label", on_change=first, accept_new_options=True, help=hint)
    if not is_complete:
        st.button("Find all labels", key="read_all", help="Reads all label maps, once.")
    st.number_input("Page" if pages is None else f"Page (of {pages})", 1, pages, step=1, key="page")
    buttons = st.columns(2)
    buttons[0].button("Previous", on_click=turn, args=(-1,), disabled=state["page"] == 1, width="stretch")
    buttons[1].button("Next", on_click=turn, args=(1,), disabled=state["page"] == pages, width="stretch")
    st.selectbox("Images on a page", PAGE_SIZES, index=1, key="size", on_change=first)
    height = st.slider("Height of pictures", 100, 700, 180, step=20, key="height")
    boxes = st.toggle("Boxes", has_boxes, key="boxes", disabled=not has_boxes, help="Those of --bbox_file.")
    shows_overlay = st.toggle("Overlay", True, key="overlay")
    alpha = st.slider("Strength of overlay", 0.0, 1.0, 0.5, step=0.05, key="alpha", disabled=not shows_overlay)
    return {"height": height, "boxes": boxes, "alpha": alpha if shows_overlay else None}


def _card(st: Any, sources: Sources, image_id: str, height: int, boxes: bool, alpha: float | None) -> None:
    """One image; what cannot be read is said in place."""
    photograph, labels_path = sources.photographs[image_id], sources.label_maps[image_id]
    labels, drawn, problems = None, [], []
    try:
        labels = load_labels(labels_path)
    except InputError as error:
        problems.append(str(error) if labels_path.exists() else f"no segmentation: {labels_path} is missing")
    try:
        drawn = sources.boxes(image_id) if boxes else []
    except InputError as error:
        problems.append(str(error))
    try:
        thumbnail, size = _reduced(photograph, height, sources.view(image_id), time_stamp(photograph))
        st.html(heading(image_id, size, labels))
        with st.container(horizontal=True):
            for caption, picture in panels(thumbnail, size, labels, drawn, alpha):
                st.image(picture, caption, output_format="PNG" if caption == "segmentation" else "JPEG")
    except InputError as error:
        problems.append(str(error))
    for problem in problems:
        st.warning(plain(problem))


@functools.lru_cache(maxsize=256)
def _reduced(
    path: Path, height: int, view: tuple[tuple[str, Any], ...], _stamp: int
) -> tuple[Image.Image, tuple[int, int]]:
    """A photograph at the height of the pictures, and its (width, height) as its boxes have it."""
    photograph = load_image(path, **dict(view))
    return fit_height(photograph, height, MAX_RATIO * height), photograph.size


def _label(choice: str) -> int | None:
    """What was chosen or typed under "Show": a label, or None for all images."""
    if choice == ALL:
        return None
    match = re.fullmatch(r"\s*(?:label)?\s*(\d{1,3})\s*", choice)
    if match is None:
        raise InputError(f"'{choice}' is no label: type a number from 0 to 255")
    return int(match[1])


def plain(text: str) -> str:
    """Text that Streamlit, which takes it for Markdown, shows as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", printable(text))
