"""One HTML page of pictures, written card by card, that fetches nothing from elsewhere.

The thumbnails of up to 200 cards lie in the page itself. Those of more lie in a folder beside it, so that the browser
opens the page at once and reads what is on view.
"""

import base64
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from spectralseg.drawing.pictures import fit_height
from spectralseg.files.storage import atomic_write, make_folder
from spectralseg.progress import phase

EMBEDDED_CARDS = 200
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
    full
        Caption of a panel -> path, relative to the page, of the picture that a click shows in its place.
    scores
        Numbers by which the page can be sorted, the largest first.
    legends
        Caption of a panel -> its colours as CSS knows them, each with its meaning.
    """

    id: str
    panels: Sequence[tuple[str, Image.Image]]
    notes: Mapping[str, object] = field(default_factory=dict)
    link: str = ""
    full: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    legends: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)


@phase("writing the page")
def write_page(
    path: str | Path,
    title: str,
    cards: Iterable[Card],
    description: str = "",
    thumbnail_height: int = 180,
    quality: int = 80,
    facts: Mapping[str, object] | None = None,
    failed: Mapping[str, str] | None = None,
    count: int = 0,
) -> None:
    """Write a page that works offline: about 20 kB for a card of a photograph and five eigenvectors.

    Cards are written as they come, so that an iterator keeps one image in memory at a time; the page appears when the
    last one is written. A click on a picture enlarges it; arrow keys go on to the next image or picture.

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
    facts
        What all cards have in common (model, settings), name -> value.
    failed
        Id -> reason, of images that have no card.
    count
        Of cards. From 200 on, the thumbnails of <name>.html are files in <name>_files.

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
    path, names = Path(path), itertools.count()
    folder = make_folder(path.with_name(f"{path.stem}_files")) if count > EMBEDDED_CARDS else None

    def source(thumbnail: Image.Image) -> str:
        content = _webp(thumbnail, quality)
        if folder is None:
            return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        name = f"{next(names):06d}.webp"
        with atomic_write(folder / name) as file:
            file.write(content)
        return quote(f"{folder.name}/{name}", errors="surrogateescape")

    filters: dict[str, Callable[..., Any]] = {
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "quoted": lambda link: quote(link, errors="surrogateescape"),
        "thumbnail": lambda picture: fit_height(picture, thumbnail_height, MAX_RATIO * thumbnail_height),
        "source": source,
        "json": lambda scores: json.dumps({name: round(float(score), 6) for name, score in scores.items()}),
    }
    environment.filters |= filters
    page = environment.get_template("page.html")
    with atomic_write(path) as file:
        common = {"title": title, "description": description, "facts": facts or {}, "failed": failed or {}}
        for part in page.generate(**common, cards=cards):
            file.write(part.encode())


def _decodable(value: object) -> object:
    """Bytes of a file name that are no UTF-8 become '?'. What the template itself writes is left as it is."""
    return value if isinstance(value, Markup) else str(value).encode("utf-8", "replace").decode()


def _webp(thumbnail: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    if _is_flat(thumbnail):
        thumbnail.save(buffer, "WEBP", lossless=True)
    else:
        thumbnail.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def _is_flat(picture: Image.Image) -> bool:
    """Whether most pixels equal their right neighbour: such pictures are smaller, and sharper, without loss."""
    pixels = np.asarray(picture)
    return picture.width == 1 or bool((pixels[:, 1:] == pixels[:, :-1]).all(axis=-1).mean() > 0.5)
