"""One self-contained HTML page of pictures: thumbnails inside, nothing fetched, written card by card."""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from spectralseg.drawing.pictures import fit_height
from spectralseg.files.storage import atomic_write

MAX_RATIO = 6  # a panorama's thumbnail is at most this many times wider than its card is high


@dataclass(frozen=True)
class Card:
    """What a page shows of one image.

    Attributes
    ----------
    id
        The image's id, the card's heading; the page's filter searches it.
    panels
        (caption, picture) in reading order; transparency becomes a checkerboard.
    notes
        Short facts beside the heading, name -> value.
    link
        Path, relative to the page, of a larger picture or folder that the heading opens; none if empty.
    """

    id: str
    panels: Sequence[tuple[str, Image.Image]]
    notes: Mapping[str, object] = field(default_factory=dict)
    link: str = ""


def write_page(
    path: str | Path,
    title: str,
    cards: Iterable[Card],
    description: str = "",
    thumbnail_height: int = 180,
    quality: int = 80,
) -> None:
    """Write a page that works offline and alone: about 20 kB for a card of a photograph and five eigenvectors.

    Cards are written as they come, so that an iterator keeps one image in memory at a time; the page appears when the
    last one is written.

    Parameters
    ----------
    path
        The HTML file.
    title, description
        Plain text above the cards.
    cards
        In order of appearance.
    thumbnail_height
        Height of the embedded pictures in pixels.
    quality
        Of the WebP compression of photographs, 0 to 100; flat pictures (cells, segments) are kept without loss.

    Raises
    ------
    OutputError
        The page cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spectralseg.drawing", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_decodable,
    )
    environment.filters |= {
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "quoted": lambda link: quote(link, errors="surrogateescape"),
        "thumbnail": lambda picture: fit_height(picture, thumbnail_height, MAX_RATIO * thumbnail_height),
        "data_uri": lambda thumbnail: _data_uri(thumbnail, quality),
    }
    page = environment.get_template("page.html")
    with atomic_write(path) as file:
        for part in page.generate(title=title, description=description, cards=cards):
            file.write(part.encode())


def _decodable(value: object) -> object:
    """Bytes of a file name that are no UTF-8 become '?'. What the template itself writes is left as it is."""
    return value if isinstance(value, Markup) else str(value).encode("utf-8", "replace").decode()


def _data_uri(thumbnail: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    if _is_flat(thumbnail):
        thumbnail.save(buffer, "WEBP", lossless=True)
    else:
        thumbnail.save(buffer, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getbuffer()).decode()}"


def _is_flat(picture: Image.Image) -> bool:
    """Whether most pixels equal their right neighbour: such pictures are smaller, and sharper, without loss."""
    pixels = np.asarray(picture)
    return picture.width == 1 or bool((pixels[:, 1:] == pixels[:, :-1]).all(axis=-1).mean() > 0.5)
