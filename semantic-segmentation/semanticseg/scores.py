"""What an evaluation reports: IoU per class, tables, pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semanticseg.pseudolabels import VOID, Labelled, Labels
from spectralseg.drawing.charts import confusion_picture
from spectralseg.drawing.pictures import contact_sheet, overlay
from spectralseg.files.images import load_image
from spectralseg.files.label_maps import load_labels
from spectralseg.files.storage import make_folder, remove, save_picture
from spectralseg.mathematics.matching import class_iou, mean_iou, pixel_accuracy


def scores(confusion: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Figures in [0, 1] from a confusion matrix (classes, classes), rows predicted, columns true.

    ``miou`` is the mean over the classes that have a pixel in truth or prediction, which for VOC2012's validation set
    are all 21; ``miou_all_classes`` counts the others as 0; ``accuracy`` is the share of correct pixels; ``classes``
    has IoU and the share of the true pixels, by name, with None for the IoU of classes without a pixel.
    """
    ious = class_iou(confusion)
    shares = confusion.sum(axis=0) / max(1, confusion.sum())
    return {
        "miou": mean_iou(ious),
        "miou_all_classes": mean_iou(ious, undefined=0),
        "accuracy": pixel_accuracy(confusion),
        "classes": {
            name: {"iou": None if np.isnan(iou) else float(iou), "share": float(share)}
            for name, iou, share in zip(names, ious, shares, strict=True)
        },
    }


def as_table(result: dict[str, Any], clusters: dict[str, list[int]] | None = None) -> str:
    """The figures of :func:`scores` as text in percent; ``clusters`` of each class in a column of its own."""
    width = max(map(len, [*result["classes"], "accuracy"]))
    lines = [f"{'class'.ljust(width)}     IoU  % of pixels{'  clusters' if clusters else ''}"]
    for name, entry in result["classes"].items():
        iou = "-" if entry["iou"] is None else f"{100 * entry['iou']:.2f}"
        given = f"  {', '.join(map(str, clusters[name]))}" if clusters else ""
        lines.append(f"{name.ljust(width)}  {iou:>6}  {100 * entry['share']:11.2f}{given}".rstrip())
    lines.append(f"{'mIoU'.ljust(width)}  {100 * result['miou']:6.2f}")
    lines.append(f"{'accuracy'.ljust(width)}  {100 * result['accuracy']:6.2f}")
    empty = sum(entry["iou"] is None for entry in result["classes"].values())
    if empty:
        lines.append(
            f"({empty} classes have no pixel and are left out of the mean; as 0 they would make the mIoU"
            f" {100 * result['miou_all_classes']:.2f})"
        )
    return "\n".join(lines)


def save_confusion(path: Path, confusion: NDArray[np.int64], names: Sequence[str], title: str) -> None:
    """Draw the confusion matrix (classes, classes)."""
    save_picture(path, confusion_picture(confusion, names, names, title))


def save_overlays(
    folder: Path,
    files: Sequence[Labelled],
    count: int,
    names: Sequence[str],
    predict: Callable[[Labelled, Image.Image], Labels],
) -> None:
    """Draw ``count`` images, evenly spread over ``files``: <id>.png with the photograph, its truth and its prediction.

    ``predict(files, photograph)`` gives the class of each pixel, (H, W); captions name the classes, the largest first.
    Void is drawn as background. Pictures that an earlier run left are removed.
    """
    for path in folder.glob("*.png") if folder.is_dir() else ():
        remove(path)
    if not count:
        return
    make_folder(folder)
    for index in np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)):
        entry = files[index]
        photograph = load_image(entry.image)
        truth, prediction = load_labels(entry.truth), predict(entry, photograph)
        panels = [(entry.id, photograph)]
        for kind, labels in (("truth", truth), ("prediction", prediction)):
            panels.append((f"{kind}: {_named(labels, names)}", _painted(photograph, labels)))
        save_picture(folder / f"{entry.id}.png", contact_sheet(panels, columns=3))


def _painted(photograph: Image.Image, labels: Labels) -> Image.Image:
    return overlay(photograph, np.where(labels == VOID, 0, labels), alpha=0.7)


def _named(labels: Labels, names: Sequence[str]) -> str:
    """Names of the classes in a label map but for the background, the one of most pixels first."""
    counts = np.bincount(labels.ravel(), minlength=len(names))[1 : len(names)]
    present = [names[1 + index] for index in np.argsort(-counts, kind="stable") if counts[index]]
    return ", ".join(present) or names[0]
