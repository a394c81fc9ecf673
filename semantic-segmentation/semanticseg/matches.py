"""Which class each cluster is: read what a user gives, and rename label maps."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralseg.errors import InputError
from spectralseg.files.storage import load_json
from spectralseg.mathematics.matching import Match

IDENTITY = "identity"
UNMATCHED = 255
EXAMPLE = "'\"[(0, 0), (1, 5)]\"'"


def read_match(given: Any, num_clusters: int, num_classes: int) -> Match | None:
    """The setting ``matching``, without executing anything of it.

    Parameters
    ----------
    given
        ``[(0, 0), (1, 5)]`` as text, the same as lists, ``identity``, the path of a results.json that an evaluation
        wrote, or None.
    num_clusters, num_classes
        Of the label maps and the truth, the background included.

    Returns
    -------
    list of (cluster, class) or None
        Clusters ascending; None where None was given.

    Raises
    ------
    InputError
        It is none of these, names a cluster or class that there is not, or a cluster twice.
    """
    if given is None:
        return None
    if given == IDENTITY:
        return [(number, number) for number in range(min(num_clusters, num_classes))]
    if isinstance(given, str):
        given = _from_file(Path(given)) if given.endswith(".json") else _from_text(given)
    pairs = sorted((_pair(entry) for entry in _sequence(given)), key=lambda pair: pair[0])
    if not pairs:
        raise InputError("matching names no cluster")
    seen: set[int] = set()
    for cluster, label in pairs:
        if not (0 <= cluster < num_clusters and 0 <= label < num_classes):
            raise InputError(
                f"matching: ({cluster}, {label}) is beyond clusters 0 to {num_clusters - 1} and classes 0 to"
                f" {num_classes - 1}"
            )
        if cluster in seen:
            raise InputError(f"matching names cluster {cluster} twice")
        seen.add(cluster)
    return pairs


def _from_text(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise InputError(f"matching={shown} cannot be read; it looks like {EXAMPLE}") from None


def _from_file(path: Path) -> Any:
    content = load_json(path)
    if content is None:
        raise InputError(f"matching: no such file: {path}")
    if not isinstance(content, dict) or "matching" not in content:
        raise InputError(f"matching: {path} has no entry 'matching', as results.json of an evaluation (of a seed) has")
    return content["matching"]


def _sequence(given: Any) -> Sequence[Any]:
    if isinstance(given, list | tuple):
        return given
    raise InputError(f"matching must be a list of (cluster, class) such as {EXAMPLE}, not {given!r}")


def _pair(entry: Any) -> tuple[int, int]:
    if isinstance(entry, list | tuple) and len(entry) == 2 and all(type(number) is int for number in entry):
        return entry[0], entry[1]
    raise InputError(f"matching: {entry!r} is no pair (cluster, class) of whole numbers; it looks like {EXAMPLE}")


def renaming(match: Match) -> NDArray[np.uint8]:
    """Table (256,) from cluster to class; ``UNMATCHED`` where the match says nothing. ``table[labels]`` renames."""
    table = np.full(256, UNMATCHED, dtype=np.uint8)
    for cluster, label in match:
        table[cluster] = label
    return table
