"""Every file of ours that is read again: its fields, and what they may hold. Files of the published code pass too.

What a file holds is checked once, here; whoever reads it can rely on types, shapes and finite values.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectralseg.errors import InputError, some_of
from spectralseg.files.images import VIEW, patch_grid
from spectralseg.files.names import check_id
from spectralseg.files.storage import DAMAGED, LAB_GRAPH, field, load_pth, load_record

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
REMEDY = "delete it and make it anew"


@dataclass(frozen=True)
class Maybe:
    """A field that may be absent, or also None."""

    form: Any
    none: bool = False


@dataclass(frozen=True)
class Each:
    """A list, tuple or tensor of up to two dimensions (lists when passed) or, with a form of ``keys``, a dict."""

    form: Any
    count: int | None = None
    keys: Any = None


@dataclass(frozen=True)
class Floats:
    """A tensor of finite floating point numbers, with one of these numbers of dimensions (none: any)."""

    dimensions: tuple[int, ...] = ()


NUMBER, WHOLE, SIDE, WIDTH = (int, float), range(2**31), range(1, 10**6), range(1, 4096)  # pixels; channels
TENSORS = Each(Tensor, keys=str)
OF_IMAGE = {"id": str, "indices": Maybe(WHOLE), "resize": Maybe(SIDE, True), "center_crop": Maybe(SIDE, True)}
OF_IMAGE["max_size"] = Maybe(SIDE, True)
OF_IMAGE |= {name: Maybe(str) for name in ("file", "model_name", "weights", "which_matrix")}
FEATURES = OF_IMAGE | {"shape": Each(SIDE, 4), "patch_size": SIDE}
EIGENVECTORS = {
    "eigenvalues": Floats(),
    "eigenvectors": Floats((2,)),
    "grid": Maybe(Each(SIDE, 2)),
    "step": Maybe(SIDE),
}
EIGENVECTORS |= OF_IMAGE | {"shape": Maybe(Each(SIDE, 4))}
CORNERS = Each(Each(float, 4))
BOXES = {
    **{"bboxes": CORNERS, "bboxes_original_resolution": CORNERS, "segment_indices": Each(range(256))},
    **{"features": Floats((2,)), "clusters": Each(WHOLE)},
}
VIEWED = {name: OF_IMAGE[name] for name in VIEW}
FOUND_BOX = {"file": str, "height": SIDE, "width": SIDE, "box": Each(float, 4)}
OBJECT = {"segmentation": {"size": Each(SIDE, 2), "counts": str}, "bbox": Each(float, 4), "score": float}
OBJECTS = {"file": str, "width": SIDE, "height": SIDE, "objects": Each(OBJECT)}
OBJECTS_FILE = {"images": Each({"id": range(2**63), "file_name": str})}
OBJECTS_FILE |= {"annotations": Each({"image_id": range(2**63)} | OBJECT)}
METRICS_LINE = {"step": WHOLE}
EAGLE_SIZES = {name: Maybe(WIDTH) for name in ("dim", "eigen_cluster", "eigen_cluster_out")}
EAGLE_SIZES |= {"extra_clusters": Maybe(range(4096))}
EAGLE = {
    "model": TENSORS,
    "settings": EAGLE_SIZES | {"backbone": Maybe(str), "weights": Maybe(str, True)},
    **{"backbone": Maybe(TENSORS, True), "class_names": Maybe(Each(str)), "step": Maybe(WHOLE, True)},
    "match": Maybe(Each(WHOLE, keys=WHOLE)),
}
EAGLE_RUN = {"step": WHOLE, "model": TENSORS, "optimizer": dict, "losses": Each(NUMBER)}
EAGLE_RUN |= {"ranking": Each(Each(Each(NUMBER, 2)), keys=str)}
SELF_TRAINING = {
    "settings": {
        "model": {"name": str, "backbone": str, "unfrozen_backbone_layers": Maybe(range(-1, 100))},
        "data": {"num_classes": range(1, 255)},
    },
    **{"normalisation": Each(Each(float, 3), 2), "step": WHOLE, "model": TENSORS, "ema": Maybe(TENSORS, True)},
}
SELF_TRAINING_RUN = {
    **{"ema_updates": WHOLE, "optimizer": dict, "scaler": Maybe(dict, True)},
    "history": Each({"step": WHOLE, "epoch": WHOLE, "miou": NUMBER}),
}
STAGE = {"arguments": dict, "command": Maybe(str)}
SIZES = {"patch_size": Maybe(SIDE, True), "image_downsample_factor": Maybe(SIDE, True), "cluster_offset": Maybe(WHOLE)}


def check(value: Any, form: Any, where: str | Path, remedy: str = REMEDY) -> Any:
    """A value of the given form, as readers want it.

    Parameters
    ----------
    value
        What was read.
    form
        A dict of the forms of a record's fields (others are kept as they are), one of the classes above, a range of
        whole numbers, ``float`` for a finite number, ``str``, or other types.
    where, remedy
        The file, and what to do about it, for messages.

    Raises
    ------
    InputError
        The value is not of this form; file and field are named.
    """
    if isinstance(form, Maybe):
        return None if value is None and form.none else check(value, form.form, where, remedy)
    if isinstance(form, dict) and isinstance(value, dict):
        checked = dict(value)
        for name, inner in form.items():
            if name in value:
                checked[name] = check(value[name], inner, f"{where}: {name}", remedy)
            elif not isinstance(inner, Maybe):
                some = some_of(sorted(map(str, value)), 8)
                raise InputError(f"{where} has no field '{name}' (it has: {some}); {remedy}")
        return checked
    if isinstance(form, Each) and form.keys is not None and isinstance(value, dict):
        pairs = [(check(key, form.keys, where, remedy), key, inner) for key, inner in value.items()]
        return {passed: check(inner, form.form, f"{where}: {key}", remedy) for passed, key, inner in pairs}
    plain: Any = value
    if isinstance(value, Tensor) and (value.numel() == 1 or (isinstance(form, Each) and value.ndim in (1, 2))):
        plain = value.tolist()
    if isinstance(plain, list | tuple) and len(plain) == 1 and (form is str or isinstance(form, range)):
        (plain,) = plain  # the published code stores batches of one
    listed = isinstance(form, Each) and form.keys is None and isinstance(plain, list | tuple)
    if listed and form.count in (None, len(plain)):
        return [check(one, form.form, f"{where}[{index}]", remedy) for index, one in enumerate(plain)]
    if isinstance(form, range) and type(plain) is int and plain in form:
        return plain
    if form is float and type(plain) in NUMBER and abs(plain) < 1e300:
        return plain
    if form is str and isinstance(plain, str) and "\0" not in plain and len(plain) < 4096:
        return plain
    if isinstance(form, Floats) and isinstance(value, Tensor) and value.dtype in FLOATS:
        if not torch.isfinite(value).all():
            raise InputError(f"{where} holds NaN or infinite values; {remedy}")
        if value.ndim in (form.dimensions or (value.ndim,)):
            return value
    if isinstance(form, type | tuple) and form not in (float, str) and isinstance(value, form):
        return value
    seen = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else reprlib.repr(value)
    raise InputError(f"{where} must be {_words(form)}, not {seen}; {remedy}")


def _words(form: Any) -> str:
    if isinstance(form, range):
        return f"a whole number from {form[0]} to {form[-1]}"
    if isinstance(form, Floats):
        return f"a tensor of numbers with {' or '.join(map(str, form.dimensions)) or 'any'} dimensions"
    if isinstance(form, Each):
        return "a dict" if form.keys else "a list" if form.count is None else f"a list of {form.count}"
    if isinstance(form, dict) or form is dict:
        return "a dict"
    return {str: "a text", float: "a finite number", Tensor: "a tensor"}.get(form, "a number")


def check_arguments(arguments: dict[str, Any], where: str) -> None:
    """Check the arguments in a ``stage.json``, and in them those of the stages before, at any depth."""
    check(arguments, SIZES, where, DAMAGED)
    for name, inner in arguments.items():
        if isinstance(inner, dict):
            check_arguments(inner, f"{where}: {name}")


def load_features(path: str | Path) -> dict[str, Any]:
    """Read a features record; ours or the published code's.

    Returns
    -------
    dict
        ``id`` (str), ``file`` (str), ``shape`` (1, 3, H, W) of the image in pixels before cropping, ``patch_size``
        (int), ``model_name`` (str), ``indices`` (int), and the features, which :func:`patch_features` gives.
    """
    record = check({"id": Path(path).stem} | load_record(path), FEATURES, path)
    return record | {"shape": tuple(record["shape"])}


def load_seen(path: str | Path) -> dict[str, Any]:
    """How an image was looked at, by its features record or its eigenvectors record: ``shape``, ``patch_size``, ...

    Eigenvectors tell of the pixels per cell; those of the published code tell nothing, which is an error.
    """
    if "eigenvectors" not in load_record(path):
        return load_features(path)
    record = load_eigs(path)
    return record | {"shape": field(record, "shape", path), "patch_size": field(record, "step", path)}


def patch_features(record: dict[str, Any], name: str, path: str | Path) -> Tensor:
    """The features ``name`` of a features record, finite, one for each of its patches: (1, T, D).

    Of ``attn_cls``, the attention to patches, (heads, T).

    Raises
    ------
    InputError
        There are none of this name, or they do not fit the record.
    """
    if not isinstance(record.get(name), Tensor):
        raise InputError(f"{path} has no features '{name}'; extract them with --which_features {name}")
    features = check(record[name], Floats(), f"{path}: {name}")
    height, width = record["shape"][-2:]
    rows, columns = patch_grid(height, width, record["patch_size"])
    if name == "attn_cls" and features.shape[-1:] == (rows * columns,):
        return features.reshape(-1, rows * columns)
    if name == "attn_cls" or features.ndim != 3 or features.shape[:2] != (1, rows * columns):
        raise InputError(
            f"{path}: features of shape {tuple(features.shape)} do not fit {rows}x{columns} patches of an image of "
            f"{width}x{height} pixels"
        )
    return features


def cell_colours(record: dict[str, Any], grid: tuple[int, int]) -> Tensor | None:
    """Colours (T, 3), CIELAB / 100, of a features record of ``lab_graph`` on ``grid``; None of other backbones."""
    if record.get("model_name") != LAB_GRAPH:
        return None
    colours = patch_features(record, "k", record["id"])[0].float()
    if colours.shape != (grid[0] * grid[1], 3):
        raise InputError(f"colours of {len(colours)} cells do not fit a grid of {grid[0]}x{grid[1]}")
    return colours


def load_eigs(path: str | Path) -> dict[str, Any]:
    """Read an eigenvectors record; ours or the published code's (``eigenvalues`` and ``eigenvectors`` alone).

    Returns
    -------
    dict
        ``eigenvalues`` (K,) and ``eigenvectors`` (K, T') as float32 tensors, ``id`` (str); when our stage wrote it
        also ``shape`` (1, 3, H, W), ``grid`` (rows, columns), ``step`` (pixels per cell), ``which_matrix``. For
        records without them :func:`spectralseg.files.label_maps.infer_grid` finds grid and step from the image size.
    """
    record = check({"id": Path(path).stem} | load_record(path), EIGENVECTORS, path)
    values, vectors = record["eigenvalues"].float().flatten(), record["eigenvectors"].float()
    if not 0 < len(vectors) == len(values):
        raise InputError(
            f"{path}: eigenvectors of shape {tuple(vectors.shape)} do not fit {len(values)} eigenvalues, (K, T) does"
        )
    record |= {name: tuple(record[name]) for name in ("grid", "shape") if name in record}
    cells = vectors.shape[1]
    rows, columns = record.get("grid", (1, cells))
    if rows * columns != cells:
        raise InputError(f"{path}: {cells} values per eigenvector do not fit its grid of {rows} x {columns}")
    return record | {"eigenvalues": values, "eigenvectors": vectors}


def load_list(path: str | Path, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read a file that holds a list of records (boxes, their features or clusters), each with an ``id``.

    Each record has the fields ``needed``, of those of ``BOXES``; all of them that it has are as many as its boxes.
    """
    records = load_pth(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) and "id" in record for record in records):
        raise InputError(f"{path} holds no list of records with ids, as extract_bboxes writes")
    if not records:
        raise InputError(f"{path} holds an empty list")
    forms = {name: form if name in needed else Maybe(form) for name, form in BOXES.items()}
    records = check(records, Each({"id": str} | VIEWED | forms), path)
    kinds, ids = set(), set()
    for record in records:
        try:
            image_id = check_id(record["id"])
        except InputError as error:
            raise InputError(f"{path} has an id that cannot be one: {error}") from None
        if image_id in ids:
            raise InputError(f"{path} holds two records of {image_id}; {REMEDY}")
        ids.add(image_id)
        counts = {name: len(record[name]) for name in BOXES if name in record}
        if len(set(counts.values())) > 1:
            some = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise InputError(f"{path} has {some} of {image_id}, where all must be as many; {REMEDY}")
        if counts.get("features"):
            kinds.add((record["features"].shape[1], record["features"].dtype))
    if len(kinds) > 1 or any(width == 0 or dtype is torch.bfloat16 for width, dtype in kinds):  # NumPy has no bfloat16
        some = " and ".join(sorted(f"{width} numbers of {dtype}" for width, dtype in kinds))
        raise InputError(f"{path}: features of {some}, where all must be alike (not bfloat16); {REMEDY}")
    return records
