"""Charts of scores: confusion matrices, precision over recall, bars."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    return _drawn(figure)


def precision_recall_picture(curves: Mapping[str, NDArray[np.float64]]) -> Image.Image:
    """Draw precision over recall: name of a curve -> precision in [0, 1] at as many recalls from 0 to 1; RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, precision in curves.items():
        axes.plot(np.linspace(0, 1, len(precision)), precision, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    return _drawn(figure)


def bars_picture(charts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Image.Image:
    """Draw bars beside each other, a chart below the other; RGB.

    Title of a chart -> ``bars`` and ``floors``, each name -> score in per cent; floors are lines across the chart.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widest = max((len(chart["bars"]) for chart in charts.values()), default=1)
    figure = Figure(figsize=(max(5, 1.2 + 0.7 * widest), 4.2 * max(1, len(charts))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, chart) in enumerate(charts.items(), 1):
        axes = figure.add_subplot(len(charts), 1, number)
        names, scores = list(chart["bars"]), list(chart["bars"].values())
        for place, score in enumerate(scores):
            axes.text(place, score, f"{score:.1f}", ha="center", va="bottom", fontsize=7)
        axes.bar(range(len(names)), scores, color="#4477aa")
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
        for style, (name, floor) in zip(("--", ":", "-."), chart["floors"].items(), strict=False):
            axes.axhline(floor, linestyle=style, color="#aa3333", label=f"{name} {floor:.1f}")
        axes.set(ylabel="%", title=title)
        if chart["floors"]:
            axes.legend(fontsize=7)
    return _drawn(figure)


def _drawn(figure: "Figure") -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return Image.open(buffer).convert("RGB")
