"""Pictures of what the stages hold: eigenvectors, attention, label maps, overlays, contact sheets.

Arrays in, Pillow images out. Sizes are (width, height) in pixels, as Pillow has them; arrays are (rows, columns).
"""

import base64
import functools
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from spectralseg.errors import printable
from spectralseg.files.label_maps import label_picture, stretch_labels, voc_palette

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
NO_DATA = (226, 226, 226)  # light grey: pixels outside the grid, and cells that are not finite
BOX, OUTLINE = (235, 25, 25), (255, 210, 0)
PAPER, INK = (255, 255, 255), (38, 38, 38)
CONSTANT = 1e-3  # a spread below this share of the largest magnitude is rounding, not structure
MAX_SHEET_WIDTH = 1600
GAP = 12
FONT_SIZE = 15


def eigenvector_picture(
    vector: ArrayLike, size: tuple[int, int], step: float | None = None, colormap: str = "viridis"
) -> Image.Image:
    """Draw an eigenvector over its image as a heat map, every cell of the grid a square of one colour.

    Colours run from the 1st to the 99th percentile, so that a few outliers do not flatten the rest. Where nearly all
    cells are equal, they run from the minimum to the maximum, so that the few others stay visible. A vector that is
    constant up to rounding (number 0 of a connected graph's Laplacian) has the middle colour throughout.

    Parameters
    ----------
    vector
        (rows, columns) values; cells that are not finite are drawn in light grey.
    size
        (width, height) of the picture in pixels.
    step
        Side of a cell in pixels of this picture. The grid starts at the top left; borders at the right and bottom,
        which belong to no whole patch, are light grey. None: the grid fills the picture.
    colormap
        A name that matplotlib knows.

    Returns
    -------
    PIL.Image.Image
        RGB, of that size.
    """
    return _heat_map(_colour_positions(_as_grid(vector), least_share=0.1), size, step, colormap)


def attention_picture(
    attention: ArrayLike,
    grid: tuple[int, int],
    size: tuple[int, int],
    step: float | None = None,
    colormap: str = "inferno",
) -> Image.Image:
    """Draw the attention of the [CLS] token to the patches, averaged over heads, as a heat map.

    Colours are linear from the 1st to the 99th percentile: a logarithm would lift the background's noise, and the
    maximum is often a single patch that collects attention (registers' artefacts).

    Parameters
    ----------
    attention
        (heads, T) or (T,) weights in [0, 1]; T = rows * columns, in row-major order.
    grid
        (rows, columns) of patches.
    size, step, colormap
        As in :func:`eigenvector_picture`.

    Raises
    ------
    ValueError
        T is not rows * columns.
    """
    weights = np.atleast_2d(np.asarray(attention, dtype=np.float64)).mean(axis=0)
    if weights.size != grid[0] * grid[1]:
        raise ValueError(f"attention to {weights.size} patches does not fit a grid of {grid[0]} x {grid[1]}")
    return _heat_map(_colour_positions(weights.reshape(grid)), size, step, colormap)


def _as_grid(vector: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(vector, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected (rows, columns) values, got shape {values.shape}")
    return values


def _colour_positions(values: NDArray[np.float64], least_share: float = 0.0) -> NDArray[np.float64]:
    """Positions in [0, 1] along a colour map, NaN where ``values`` are not finite.

    The percentiles are used unless they span no more than ``least_share`` of the whole range.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.full(values.shape, np.nan)
    smallest, largest = float(finite.min()), float(finite.max())
    low, high = np.percentile(finite, [1, 99])
    if largest - smallest <= CONSTANT * max(abs(smallest), abs(largest)):
        positions = np.full(values.shape, 0.5)
    else:
        if high - low <= least_share * (largest - smallest):
            low, high = smallest, largest
        positions = np.clip((values - low) / (high - low), 0, 1)
    return np.where(np.isfinite(values), positions, np.nan)


def _heat_map(positions: NDArray[np.float64], size: tuple[int, int], step: float | None, colormap: str) -> Image.Image:
    rows, columns = positions.shape
    colours = matplotlib.colormaps[colormap](np.nan_to_num(positions))[..., :3]
    pixels = np.where(np.isfinite(positions)[..., None], np.rint(colours * 255), NO_DATA).astype(np.uint8)
    covered = size if step is None else (max(1, round(columns * step)), max(1, round(rows * step)))
    shrinks = covered[0] < columns or covered[1] < rows
    resampling = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    picture = Image.new("RGB", size, NO_DATA)
    picture.paste(Image.fromarray(pixels).resize(covered, resampling))
    return picture


def overlay(image: Image.Image, label_map: ArrayLike, alpha: float = 0.5) -> Image.Image:
    """The photograph with its labels as a veil of VOC colours; label 0 leaves the photograph as it is.

    Parameters
    ----------
    image
        The photograph, of any mode.
    label_map
        (rows, columns) labels in [0, 255]; enlarged to the whole image by nearest neighbour if it is smaller.
    alpha
        Weight of the colours: 0 shows the photograph alone, 1 the colours alone.

    Returns
    -------
    PIL.Image.Image
        RGB, of the image's size.
    """
    labels = label_picture(stretch_labels(np.asarray(label_map), image.height, image.width))
    weights = Image.fromarray(np.where(np.asarray(labels) > 0, round(255 * alpha), 0).astype(np.uint8))
    return Image.composite(labels.convert("RGB"), image.convert("RGB"), weights)


def draw_outlines(image: Image.Image, masks: Sequence[NDArray[np.bool_]]) -> Image.Image:
    """Outline masks (H, W), each in a colour of VOC's palette, and number them from 1 where they are widest."""
    picture = np.array(image.convert("RGB"))
    palette = np.array(voc_palette()).reshape(-1, 3)
    width = max(1, round(max(image.size) / 150))
    for number, mask in enumerate(masks, 1):
        inner = ndimage.binary_erosion(mask, iterations=width, border_value=0)
        picture[mask & ~inner] = palette[number % len(palette)]
    drawn = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(drawn), caption_font(max(FONT_SIZE, max(image.size) // 24))
    for number, mask in enumerate(masks, 1):
        row, column = divmod(int(ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].argmax()), mask.shape[1])
        colour = tuple(int(value) for value in palette[number % len(palette)])
        draw.text((column, row), str(number), colour, font, anchor="mm", stroke_width=2, stroke_fill="white")
    return drawn


def draw_object(image: Image.Image, mask: NDArray[np.bool_], box: Iterable[float] | None) -> Image.Image:
    """The photograph with the outline of a mask (H, W), yellow on black, and a box, red."""
    picture, width = np.array(image.convert("RGB")), line_width(image)
    inside = ndimage.binary_erosion(mask, iterations=width, border_value=0)
    picture[ndimage.binary_dilation(mask, iterations=max(1, width // 2)) & ~inside] = 0
    picture[mask & ~inside] = OUTLINE
    drawn = Image.fromarray(picture)
    if box is not None:
        draw_box(drawn, box, BOX, width)
    return drawn


def line_width(image: Image.Image) -> int:
    """Pixels of a line that is seen at any size."""
    return max(3, round(min(image.size) / 90))


def draw_box(picture: Image.Image, box: Iterable[float], colour: tuple[int, int, int], width: int) -> None:
    """Draw a box (maxima exclusive) along the inside of its border, cased in white to stand out from the photograph."""
    xmin, ymin, xmax, ymax = (round(float(side)) for side in box)
    xmin, ymin = max(0, xmin), max(0, ymin)
    xmax, ymax = max(xmin + 1, min(xmax, picture.width)), max(ymin + 1, min(ymax, picture.height))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((xmin, ymin, xmax - 1, ymax - 1), outline=(255, 255, 255), width=width + 2)
    inner = (min(xmin + 1, xmax - 1), min(ymin + 1, ymax - 1), max(xmin, xmax - 2), max(ymin, ymax - 2))
    if inner[0] <= inner[2] and inner[1] <= inner[3]:
        draw.rectangle(inner, outline=colour, width=width)


def on_checkerboard(picture: Image.Image, square: int = 8) -> Image.Image:
    """An RGB picture; what is transparent shows a light checkerboard of ``square`` pixels, as image editors do."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rows, columns = np.indices((picture.height, picture.width)) // square
    board = np.where((rows + columns) % 2 == 0, 255, 214).astype(np.uint8)
    return Image.alpha_composite(Image.fromarray(board).convert("RGBA"), picture.convert("RGBA")).convert("RGB")


def fit_height(picture: Image.Image, height: int, max_width: int = MAX_SHEET_WIDTH) -> Image.Image:
    """Scale to ``height`` pixels, or less where it would be wider than ``max_width``; RGB, transparency as checks.

    Palette and two-valued pictures are label maps: their colours are not mixed.
    """
    scale = min(height / picture.height, max_width / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    is_label_map = picture.mode in ("1", "P")
    picture = on_checkerboard(picture) if not picture.has_transparency_data else picture
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.NEAREST if is_label_map else Image.Resampling.LANCZOS)
    return on_checkerboard(picture)


def contact_sheet(
    panels: Sequence[tuple[str, Image.Image]], columns: int | None = None, height: int = 240
) -> Image.Image:
    """Pictures of one height in rows on white paper, each under its caption.

    Parameters
    ----------
    panels
        (caption, picture) in reading order. A caption wider than its column ends in an ellipsis.
    columns
        Pictures in a row. None: rows of equal length, as few as keep the sheet narrower than ``MAX_SHEET_WIDTH``.
    height
        Height of each picture in pixels.

    Returns
    -------
    PIL.Image.Image
        RGB.
    """
    if not panels:
        raise ValueError("a contact sheet needs at least one picture")
    font = caption_font(FONT_SIZE)
    pictures = [fit_height(picture, height, MAX_SHEET_WIDTH - 2 * GAP) for _, picture in panels]
    caption_width = min(max(math.ceil(font.getlength(caption)) for caption, _ in panels), height)
    height = max(picture.height for picture in pictures)
    cell = max(caption_width, *(picture.width for picture in pictures))
    if columns is None:
        fitting = max(1, (MAX_SHEET_WIDTH - GAP) // (cell + GAP))
        columns = math.ceil(len(panels) / math.ceil(len(panels) / fitting))
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    line = round(1.5 * FONT_SIZE)
    sheet = Image.new("RGB", (GAP + columns * (cell + GAP), GAP // 2 + rows * (line + height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, ((caption, _), picture) in enumerate(zip(panels, pictures, strict=True)):
        row, column = divmod(index, columns)
        left, top = GAP + column * (cell + GAP), GAP // 2 + row * (line + height + GAP)
        draw.text((left, top + line / 2), _shortened(printable(caption), font, cell), fill=INK, font=font, anchor="lm")
        sheet.paste(picture, (left, top + line))
    return sheet


def _shortened(caption: str, font: Font, width: int) -> str:
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(caption + "…") > width:
        caption = caption[:-1]
    return caption.rstrip() + "…"


def as_html(picture: Image.Image, alt: str) -> str:
    """An <img> that holds the picture itself, as notebooks show it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="{alt}">'


@functools.cache
def caption_font(size: int) -> Font:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has no Greek letters, so no λ."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size) if path.is_file() else ImageFont.load_default(size)
