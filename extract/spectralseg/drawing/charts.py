"""Charts of scores: confusion matrices."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELL_INCHES = 0.3
MARGIN_INCHES = 2.2  # for the names
LARGEST_ANNOTATED = 32  # with more rows, percentages would be unreadable


def confusion_picture(
    confusion: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> Image.Image:
    """Draw a confusion matrix: colour and number are the share of each column, a true class, in percent.

    Parameters
    ----------
    confusion
        (rows, columns) pixel counts, rows predicted, columns true.
    rows, columns
        Their names. A column without pixels is left empty.
    title
        Above the chart.

    Returns
    -------
    PIL.Image.Image
        RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and looks for a display

    if confusion.shape != (len(rows), len(columns)):
        raise ValueError(f"a confusion matrix of {confusion.shape} with {len(rows)} rows and {len(columns)} columns")
    totals = confusion.sum(axis=0, keepdims=True)
    shares = np.divide(100 * confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)
    height, width = (MARGIN_INCHES + CELL_INCHES * count for count in confusion.shape)
    figure = Figure(figsize=(width + 0.8, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="equal")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xlabel("true class")
    axes.set_ylabel("predicted class")
    axes.set_title(title, fontsize=10)
    if max(confusion.shape) <= LARGEST_ANNOTATED:
        for row, column in np.argwhere(np.nan_to_num(shares) >= 0.5):
            share = shares[row, column]
            ink = "white" if share > 55 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6, color=ink)
    figure.colorbar(drawn, ax=axes, fraction=0.04, label="% of the true class")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return Image.open(buffer).convert("RGB")
