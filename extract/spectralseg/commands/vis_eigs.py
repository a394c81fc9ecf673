"""``vis_eigs``: look at eigenvectors. A PNG sheet per image, and one page of all images."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spectralseg.drawing.page import Card, write_page
from spectralseg.drawing.pictures import CONSTANT, attention_picture, contact_sheet, eigenvector_picture, fit_height
from spectralseg.errors import InputError
from spectralseg.files.images import find_image, load_image, patch_grid, read_images_list, view_of
from spectralseg.files.label_maps import infer_grid
from spectralseg.files.records import load_eigs, load_features, patch_features
from spectralseg.files.storage import list_ids, save_picture
from spectralseg.progress import progress_bar, say
from spectralseg.running.stage import Stage, provenance
from spectralseg.settings import check_range

SHEET_HEIGHT, THUMBNAIL_HEIGHT = 240, 180  # pixels
MAX_CARDS = 1000  # about 20 MB of page
DEFAULT_EIGENVECTORS = 8


@dataclass(frozen=True)
class Sources:
    """Where the pictures of an image come from, and how many eigenvectors are drawn at most."""

    images_root: Path
    eigs_dir: Path
    features_dir: Path | None = None
    num_eigenvectors: int = DEFAULT_EIGENVECTORS
    names: dict[str, str] = field(default_factory=dict)  # id -> name below images_root, from an images_list


def vis_eigs(
    images_root: str,
    eigs_dir: str,
    output_dir: str,
    features_dir: str | None = None,
    images_list: str | None = None,
    num_eigenvectors: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    multiprocessing: int = 0,
) -> None:
    """The command ``vis_eigs``; see its documentation in ``extract.py``. Prints the path of the page last."""
    check_range("num_eigenvectors", num_eigenvectors, least=1)
    check_range("limit", limit, least=1)
    if not Path(images_root).is_dir():
        raise InputError(f"no such images_root: {images_root}")
    for folder in (images_root, eigs_dir, features_dir):
        if folder is not None and Path(folder).resolve() == Path(output_dir).resolve():
            raise InputError(f"output_dir must be a folder of its own, not {folder}, which holds the inputs")
    num_eigenvectors = num_eigenvectors or DEFAULT_EIGENVECTORS
    names = {} if images_list is None else read_images_list(images_list, images_root)
    ids = (sorted(names) or list_ids(eigs_dir, ".pth"))[:limit]
    features = None if features_dir is None else Path(features_dir)
    sources = Sources(Path(images_root), Path(eigs_dir), features, num_eigenvectors, names)
    arguments = {
        "eigs": provenance(eigs_dir),
        "features": None if features is None else provenance(features),
        "num_eigenvectors": num_eigenvectors,
    }
    stage = Stage("vis_eigs", output_dir, ".png", arguments, overwrite)
    pending = stage.begin(ids)
    stage.run(functools.partial(draw_sheet, sources=sources, folder=stage.folder), pending, multiprocessing)
    try:
        stage.finish()
    finally:  # also where images failed: the page shows the others
        drawn = [image_id for image_id in ids if stage.output(image_id).exists()]
        print(write_index(drawn, sources, stage.folder))


def draw_sheet(image_id: str, sources: Sources, folder: Path) -> None:
    """Write ``<folder>/<id>.png``: the photograph, its eigenvectors, the [CLS] attention if there is one."""
    sheet = contact_sheet(load_card(image_id, sources, SHEET_HEIGHT).panels, height=SHEET_HEIGHT)
    save_picture(folder / f"{image_id}.png", sheet)


def write_index(ids: list[str], sources: Sources, folder: Path) -> Path:
    """Write ``<folder>/index.html`` with a card for each of the first ``MAX_CARDS`` ids."""
    path = folder / "index.html"
    description = (
        "Each image and its first eigenvectors, counted from 0, which is left out where it is constant. Colours run "
        "from the lowest values (violet) to the highest (yellow) of each; grey borders belong to no whole patch."
    )
    if len(ids) > MAX_CARDS:
        description += f" Here are the first {MAX_CARDS} of {len(ids)} images; the others are PNG files in this folder."
    ids = ids[:MAX_CARDS]
    write_page(path, "Eigenvectors", _cards(ids, sources), description, THUMBNAIL_HEIGHT, count=len(ids))
    return path


def _cards(ids: list[str], sources: Sources) -> Iterator[Card]:
    for image_id in progress_bar(ids, desc="index.html", unit="image"):
        try:
            yield load_card(image_id, sources, THUMBNAIL_HEIGHT)
        except InputError as error:
            say(f"vis_eigs: {image_id} is not on the page: {error}")


def load_card(image_id: str, sources: Sources, height: int) -> Card:
    """Read one image's records and draw its panels, each ``height`` pixels high.

    Raises
    ------
    InputError
        A record or the photograph is missing or damaged, or they do not belong together.
    """
    path = sources.eigs_dir / f"{image_id}.pth"
    record = load_eigs(path)
    features_path = None if sources.features_dir is None else sources.features_dir / f"{image_id}.pth"
    features = {} if features_path is None else load_features(features_path)
    view = {**features, **record}
    name = sources.names.get(image_id) or view.get("file") or image_id
    image = load_image(find_image(sources.images_root, name), **view_of(view))
    if "shape" in view and tuple(view["shape"][-2:]) != (image.height, image.width):
        rows, columns = view["shape"][-2:]
        raise InputError(
            f"{path} is of an image of {columns}x{rows} pixels, but {name} has {image.width}x{image.height}"
        )

    grid, step = _grid_and_step(record, features, image, path)
    photograph = fit_height(image, height)
    scale = photograph.height / image.height
    panels = [("image", photograph)]
    vectors = record["eigenvectors"].numpy()
    first = 1 if np.ptp(vectors[0]) <= CONSTANT * np.abs(vectors[0]).max() else 0  # that of a Laplacian says nothing
    for index in range(first, min(first + sources.num_eigenvectors, len(vectors))):
        picture = eigenvector_picture(vectors[index].reshape(grid), photograph.size, step * scale)
        value = float(record["eigenvalues"][index])
        panels.append((_caption(index, value, record.get("which_matrix", "")), picture))
    if "attn_cls" in features:
        panels.append(("[CLS] attention", _attention(features, image, photograph.size, scale, features_path)))
    return Card(image_id, panels, _notes(view, image, grid, step), link=f"{image_id}.png")


def _grid_and_step(
    record: dict[str, Any], features: dict[str, Any], image: Image.Image, path: Path
) -> tuple[tuple[int, int], int]:
    """(rows, columns) and pixels per cell: as recorded, else from the features' patches, else from the image's size."""
    cells = record["eigenvectors"].shape[1]
    if "grid" in record and "step" in record:
        return record["grid"], record["step"]
    if "patch_size" in features:
        step = features["patch_size"]
        grid = (image.height // step, image.width // step)
        if grid[0] * grid[1] == cells:
            return grid, step
    return infer_grid(image.height, image.width, cells)


def _attention(
    features: dict[str, Any], image: Image.Image, size: tuple[int, int], scale: float, path: Path | None
) -> Image.Image:
    patch_size = features["patch_size"]
    grid = patch_grid(features["shape"][2], features["shape"][3], patch_size)
    attention = patch_features(features, "attn_cls", str(path)).float().numpy()
    return attention_picture(attention, grid, size, patch_size * scale)


def _notes(view: dict[str, Any], image: Image.Image, grid: tuple[int, int], step: int) -> dict[str, object]:
    """Facts beside the id on the page."""
    notes: dict[str, object] = {
        "size": f"{image.width} × {image.height}",
        "grid": f"{grid[1]} × {grid[0]} cells of {step} pixels",
    }
    notes |= {word: view[key] for word, key in (("matrix", "which_matrix"), ("model", "model_name")) if key in view}
    if str(view.get("weights", "")).startswith("random"):
        notes["weights"] = view["weights"]
    return notes


def _caption(index: int, value: float, which_matrix: str) -> str:
    """The eigenvalue with three decimals, or two digits where those would hide a small one."""
    digits = (
        f"{value:.2g}" if 1e-4 <= abs(value) < 1e-2 else f"{round(value, 3) + 0.0:.3f}"
    )  # + 0.0 turns -0.0 into 0.0
    if which_matrix == "affinity_svd":
        return f"singular vector {index}, σ = {digits}"
    return f"eigenvector {index}, λ = {digits}"
