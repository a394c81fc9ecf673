"""One self-contained HTML page of pictures: thumbnails inside, nothing fetched, written card by card."""

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from spectralseg.drawing.pictures import fit_height
from spectralseg.files.storage import atomic_write

MAX_RATIO = 6  # a panorama's thumbnail is at most this many times wider than its card is high

STYLE = """
:root{color-scheme:light dark;--page:#f3f4f6;--card:#fff;--text:#1c2024;--quiet:#60656d;--line:#dfe2e6;--link:#0b5cad}
@media (prefers-color-scheme:dark){:root{--page:#101215;--card:#191c20;--text:#e7e9ec;--quiet:#9aa1ab;--line:#2c3138;
--link:#7ab8ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1720px;padding:0 24px 48px;background:var(--page);color:var(--text);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
h1{margin:28px 0 4px;font-size:26px;line-height:1.2;font-weight:650;overflow-wrap:anywhere}
.description{margin:0;max-width:75ch;color:var(--quiet);overflow-wrap:anywhere}
.filter{position:sticky;top:0;z-index:1;display:flex;gap:14px;align-items:center;padding:14px 0 12px;
background:var(--page)}
.filter[hidden]{display:none}
.filter input{flex:0 1 340px;min-width:0;padding:8px 12px;font:inherit;color:inherit;background:var(--card);
border:1px solid var(--line);border-radius:8px}
.filter output{color:var(--quiet);white-space:nowrap;font-variant-numeric:tabular-nums}
article{margin:0 0 16px;padding:14px 16px 16px;background:var(--card);border:1px solid var(--line);border-radius:12px;
content-visibility:auto;contain-intrinsic-size:auto 270px}
.head{display:flex;flex-wrap:wrap;gap:2px 18px;align-items:baseline;margin-bottom:10px}
h2{margin:0;font-size:16px;font-weight:600;overflow-wrap:anywhere}
a{color:var(--link);text-decoration:none}
a:hover,a:focus-visible{text-decoration:underline}
dl{display:flex;flex-wrap:wrap;gap:0 14px;margin:0;font-size:13px;color:var(--quiet)}
dl div{display:flex;gap:5px}
dd{margin:0;color:var(--text);overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.panels{--gap:10px;display:flex;flex-wrap:wrap;gap:12px var(--gap)}
figure{margin:0;--least:max(88px,.6*var(--width));width:min(100%,max(88px,var(--width)),WIDTHS)}
img{display:block;width:100%;max-width:var(--width);height:auto;border-radius:4px}
figcaption{margin-top:5px;font-size:12.5px;line-height:1.3;color:var(--quiet);font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
@media (max-width:600px){body{padding:0 10px 32px}h1{margin-top:18px;font-size:22px}article{padding:12px}
.panels{display:grid;grid-template-columns:1fr 1fr}figure{width:auto}img{max-width:none}}
@media print{.filter{display:none}article{break-inside:avoid;content-visibility:visible}}
"""

# Panels of a card stand in as few rows of equal length as let each have 60 % of its width: --rows-k is the number of
# panels in each of k rows, and the width for k rows takes part in the minimum only if it is large enough.
_WIDTH = "({share}) + 9999*max(0px,var(--least) - ({share}))"
_SHARE = "(100% - 1px - (var(--rows-{k}) - 1)*var(--gap))/var(--rows-{k})"
MOST_ROWS = 5
STYLE = STYLE.replace("WIDTHS", ",".join(_WIDTH.format(share=_SHARE.format(k=k)) for k in range(1, MOST_ROWS + 1)))

SCRIPT = """
const cards = [...document.querySelectorAll("article")];
const names = cards.map(card => card.querySelector("h2").textContent.toLowerCase());
const input = document.querySelector(".filter input");
const output = document.querySelector(".filter output");
function show() {
  const words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  cards.forEach((card, index) => {
    card.hidden = !words.every(word => names[index].includes(word));
    shown += !card.hidden;
  });
  const all = cards.length + (cards.length === 1 ? " image" : " images");
  output.textContent = shown === cards.length ? all : shown + " of " + all;
}
input.addEventListener("input", show);
document.querySelector(".filter").hidden = false;
show();
"""

# The policy is the browser's guarantee that the page fetches nothing and that no name in it can run as a script.
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{script_hash}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="description">{description}</p>
</header>
<div class="filter" role="search" hidden><input type="search" placeholder="Filter by name" aria-label="Filter by name" \
autocomplete="off"><output aria-live="polite"></output></div>
<main>
"""

CARD = """<article>
<div class="head"><h2>{name}</h2>{notes}</div>
<div class="panels" style="{rows}">
{figures}
</div>
</article>
"""

FIGURE = (
    '<figure style="--width:{width}px"><img src="{source}" width="{width}" height="{height}" alt="{alt}" '
    'loading="lazy" decoding="async"><figcaption>{caption}</figcaption></figure>'
)


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
) -> int:
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

    Returns
    -------
    int
        Number of cards.

    Raises
    ------
    OutputError
        The page cannot be written.
    """
    count = 0
    with atomic_write(path) as file:
        script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        head = HEAD.format(title=_text(title), description=_text(description), style=STYLE, script_hash=script_hash)
        file.write(head.encode())
        for card in cards:
            file.write(_card(card, thumbnail_height, quality).encode())
            count += 1
        file.write(f"</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n".encode())
    return count


def _card(card: Card, thumbnail_height: int, quality: int) -> str:
    name = _text(card.id)
    if card.link:
        name = f'<a href="{quote(card.link, errors="surrogateescape")}">{name}</a>'
    notes = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in card.notes.items())
    figures = []
    for caption, picture in card.panels:
        thumbnail = fit_height(picture, thumbnail_height, MAX_RATIO * thumbnail_height)
        figures.append(
            FIGURE.format(
                width=thumbnail.width,
                height=thumbnail.height,
                source=_data_uri(thumbnail, quality),
                alt=_text(f"{caption} of {card.id}"),
                caption=_text(caption).replace(" = ", "&nbsp;=&nbsp;"),
            )
        )
    notes = f"<dl>{notes}</dl>" if notes else ""
    rows = ";".join(f"--rows-{k}:{max(1, math.ceil(len(figures) / k))}" for k in range(1, MOST_ROWS + 1))
    return CARD.format(name=name, notes=notes, rows=rows, figures="\n".join(figures))


def _text(value: object) -> str:
    """HTML of plain text, also inside quoted attributes; bytes of a file name that are no UTF-8 become '?'."""
    return escape(str(value).encode("utf-8", "replace").decode())


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
