"""``demo``: photographs and settings to try, on a page that Streamlit serves (see :mod:`~.viewer` for how it works)."""

import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spectralseg.api import preset_of
from spectralseg.commands.demo_runs import Choices, Result, Workplace, backbone_of, command_lines
from spectralseg.commands.features import FeatureSettings
from spectralseg.commands.objects import ALL, ObjectSettings
from spectralseg.commands.run import RunSettings
from spectralseg.commands.viewer import is_page, open_page, plain, show_error
from spectralseg.drawing.pictures import draw_outlines, fit_height
from spectralseg.errors import InputError, OutputError
from spectralseg.files.images import EXTENSIONS, list_images
from spectralseg.files.places import project_folder
from spectralseg.mathematics.eigen import LAPLACIANS, LOCAL
from spectralseg.mathematics.objects import METHODS
from spectralseg.mathematics.ranking import FOREGROUNDS
from spectralseg.models.backbones import AUTO, LAB_GRAPH, SOURCES, STATISTICS

HEIGHT, MAX_RATIO = 180, 3  # of pictures
CHART_WIDTH = 320
NARROW = "<style>@media (max-width: 640px) {[data-testid=stImage] img {width: 42vw !important}}</style>"  # two in a row
NONE = "none"


def demo(images: str | None = None, model_name: str = AUTO, weights: str | None = None, device: str = "auto") -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    if not is_page():
        flags = {"images": images, "model_name": model_name, "weights": weights, "device": device}
        return open_page("demo", flags)
    import streamlit as st

    st.set_page_config(page_title="Deep spectral segmentation", layout="wide")
    try:
        _page(st, _workplace(device), images, model_name, weights)
    except (InputError, OutputError) as error:
        show_error(f"error: {error}")


@functools.cache
def _workplace(device: str) -> Workplace:
    return Workplace(device)


def _page(st: Any, work: Workplace, images: str | None, model_name: str, weights: str | None) -> None:
    st.markdown("#### Objects and segments without labels")
    kinds = sorted(suffix.removeprefix(".") for suffix in EXTENSIONS)
    uploads = st.file_uploader("Drop photographs, or choose one below", kinds, accept_multiple_files=True)
    photographs = {upload.name: upload for upload in uploads}
    folder = Path(images) if images else project_folder() / "data" / "samples" / "images"
    samples = list_images(folder) if images or folder.is_dir() else []
    photographs |= {name: folder / name for name in samples if name not in photographs}
    if not photographs:
        st.info("Drop a photograph.")
        return
    name = st.selectbox("Photograph", list(photographs))
    chosen = photographs[name]
    path = chosen if isinstance(chosen, Path) else work.keep(chosen.name, chosen.getvalue())
    with st.sidebar:
        choices, shown = _controls(st, path, model_name, weights, work.device)
    with st.spinner("computing"):
        result = work.result(choices)
    found, backbone = result.segmentation, choices.features.model_name
    box = "no object" if found.box is None else f"box ({', '.join(map(str, found.box))})"
    facts = f"{name}: looked at as {found.image.width} × {found.image.height} pixels, {box}, "
    st.markdown(plain(f"{facts}object {100 * found.mask.mean():.0f} % of it, backbone {backbone}"))
    mask, panels = Image.fromarray(found.mask * np.uint8(255)), found.panels(shown, HEIGHT)
    panels.insert(2, ("mask", mask))
    if result.objects:
        panels.append((f"objects: {len(result.objects)}", draw_outlines(found.image, result.objects)))
    st.html(NARROW)
    with st.container(horizontal=True):
        for caption, picture in panels:
            st.image(fit_height(picture, HEIGHT, MAX_RATIO * HEIGHT), plain(caption), output_format="PNG")
    _values(st, result)
    spent = [f"{step.removeprefix('extract_').replace('_', ' ')} {s:.2f}" for step, s in result.seconds.items()]
    st.caption(plain(f"Seconds, by stage: {', '.join(spent)}; together {sum(result.seconds.values()):.2f}"))
    _downloads(st, work, choices)
    program = "python extract.py" if Path(sys.argv[0]).name == "extract.py" else "spectralseg"
    st.caption("The same files by the command line:")
    commands = command_lines(choices, program, os.path.relpath(path) if path is chosen else path.name)
    st.code(commands, "bash", wrap_lines=True)


def _controls(st: Any, photograph: Path, model_name: str, weights: str | None, device: str) -> tuple[Choices, int]:
    """The settings, and how many eigenvectors are shown; what a backbone is good for comes first."""
    models = list(dict.fromkeys([model_name, AUTO, *SOURCES, *STATISTICS]))
    asked = st.selectbox("Backbone", models, accept_new_options=True, help="Or any plain ViT of timm, by its name.")
    own_weights = weights if asked == model_name else None
    with st.spinner("loading the backbone"):
        backbone = backbone_of(asked, own_weights, device)
    name, preset = backbone.name, preset_of(backbone.name)
    if asked == AUTO:
        st.caption(plain(f"auto is {name} here"))
    of_colours = name == LAB_GRAPH

    def choose(label: str, options: list[str], usual: str) -> str:
        return st.selectbox(label, options, options.index(usual), key=f"{label}, {name}")  # of each backbone its own

    feature = choose("Feature", ["k", "q", "v", "out"] if backbone.is_vit else ["k"], "k")
    matrices = ["laplacian", "affinity", "affinity_svd", *([LOCAL] if of_colours else [])]
    matrix = choose("Matrix", matrices, preset.which_matrix)
    has_colour = matrix in LAPLACIANS
    colour = st.slider("Colour weight", 0.0, 50.0, 0.0, 1.0, "%g", disabled=not has_colour, help="For Laplacians.")
    K = st.slider("K, eigenvectors", 2, 50, preset.K, key=f"K, {name}")
    foreground = choose("Object by", [one for one in FOREGROUNDS if one != "robust" or of_colours], preset.foreground)
    num_segments = st.slider("Segments", 1, 20, RunSettings.num_segments)
    crf = st.toggle("Sharpen by the CRF", True)
    method = st.selectbox("Several objects", [NONE, *METHODS])
    max_objects = st.slider("Objects at most", 1, 10, ObjectSettings.max_objects, disabled=method == NONE)
    shown = st.slider("Eigenvectors shown", 1, 19, 4)
    features = FeatureSettings(name, which_features=(feature,), weights=own_weights)
    graph: dict[str, Any] = {"which_features": feature, "which_matrix": matrix}
    graph |= {"image_color_lambda": colour} if has_colour else {}
    run = RunSettings(K, num_segments, crf=crf, foreground=foreground, **graph)
    objects = None if method == NONE else ObjectSettings(method, feature, max_objects, crf=crf)
    return Choices(photograph, features, run, objects), shown


def _values(st: Any, result: Result) -> None:
    """A map whose values are seen under the pointer."""
    found = result.segmentation
    maps = {f"eigenvector {number}": vector for number, vector in enumerate(found.eigenvectors)}
    maps |= {} if found.soft is None else {"map of the object": found.soft}
    chosen = st.selectbox("Values under the pointer", list(maps), min(1, len(maps) - 1))
    values, step = maps[chosen], found.step
    rows, columns = (side.ravel() for side in np.indices(values.shape))
    cells = {"row": rows, "column": columns, "value": values.ravel().astype(float)}
    places = {"type": "ordinal", "axis": None, "scale": {"padding": 0}}
    colour = {"field": "value", "type": "quantitative", "scale": {"scheme": "viridis"}, "legend": None}
    encoding = {"x": {"field": "column"} | places, "y": {"field": "row"} | places, "fill": colour, "stroke": colour}
    encoding["tooltip"] = [{"field": "row"}, {"field": "column"}, {"field": "value", "format": ".4g"}]
    spec = {"mark": "rect", "encoding": encoding, "autosize": "pad", "config": {"view": {"stroke": None}}}
    height = round(CHART_WIDTH * values.shape[0] / values.shape[1])
    st.vega_lite_chart(cells, spec | {"height": height}, width=CHART_WIDTH, key="values")
    scale = f"violet {values.min():.4g} to yellow {values.max():.4g}, cells of {step} pixels"
    eigenvalues = ", ".join(f"{value:.4g}" for value in found.eigenvalues[:10])
    st.caption(plain(f"{scale}; first eigenvalues: {eigenvalues}"))


def _downloads(st: Any, work: Workplace, choices: Choices) -> None:
    """Buttons; a file at the size of the photograph is made when its button is clicked."""
    one, maps = choices.photograph.stem, "crf" if choices.run.crf else "patches"
    files = {"Cut-out (PNG)": f"cutouts/{one}.png", "Mask (PNG)": f"masks/{one}.png"}
    files |= {"Segments (PNG)": f"multi_region_segmentation/{maps}/{one}.png"}
    files |= {"Eigenvectors (.pth)": f"eigs/{one}.pth", "Features (.pth)": f"features/{one}.pth"}
    files |= {} if choices.objects is None else {"Objects (COCO JSON)": f"objects/{ALL}"}
    with st.container(horizontal=True):
        for label, name in files.items():
            kind = label.partition(" ")[0].lower()
            saved = f"{one}_{kind}{Path(name).suffix}"
            st.download_button(label, functools.partial(work.file, choices, name), saved, on_click="ignore")
