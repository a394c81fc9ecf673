"""Checkpoints: ours, which hold tensors and plain values alone, and the published Lightning files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from spectralseg.errors import InputError
from spectralseg.files.inert import read_inert
from spectralseg.files.label_maps import CITYSCAPES_27_CLASSES, COCO_STUFF_27_CLASSES, POTSDAM_3_CLASSES
from spectralseg.files.storage import compact, save_record

BACKBONE_PREFIX = "net.model."
NAMES = {  # published prefix -> ours; the first that fits counts
    "net.cluster1.0.": "head.A.",
    "net.cluster2.0.": "head.B.",
    "net.cluster2.2.": "head.C.",
    "linear_probe.": "linear_probe.",
    "cluster_probe.": "cluster_probe.",
    "project_head.": "project_head.",
    "train_cluster_probe_eigen.": "eigen_probe.",
    "train_cluster_probe_eigen": "eigen_probe_blur.",  # with whatever suffix
}
BACKBONES = {  # model_type and dino_patch_size of published runs -> the backbone they loaded
    ("vit_small", 8): "dino_vits8_300ep",
    ("vit_small", 16): "dino_vits16",
    ("vit_base", 8): "dino_vitb8",
    ("vit_base", 16): "dino_vitb16",
}
CLASS_NAMES = {
    **{"cocostuff27": COCO_STUFF_27_CLASSES, "cityscapes": CITYSCAPES_27_CLASSES},
    **{"potsdam": POTSDAM_3_CLASSES, "potsdamraw": POTSDAM_3_CLASSES},
}
KEPT_SETTINGS = (  # of the published hyper-parameters, under the same names in ours
    *(
        "dataset_name",
        "dir_dataset_name",
        "dir_dataset_n_classes",
        "crop_type",
        "crop_ratio",
        "res",
        "loader_crop_type",
    ),
    *("dim", "dropout", "eigen_cluster", "eigen_cluster_out", "extra_clusters"),
)


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write tensors (moved to the CPU) and plain values, atomically; :func:`load_checkpoint` gives them back.

    Raises
    ------
    TypeError
        The content holds something else.
    OutputError
        The file cannot be written.
    """
    save_record(path, _storable(content, "checkpoint"))


def _storable(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return compact(value)
    if isinstance(value, Mapping):
        return {key: _storable(content, f"{where}.{key}") for key, content in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_storable(content, f"{where}[{index}]") for index, content in enumerate(value)])
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, neither a tensor nor a plain value")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that :func:`save_checkpoint` wrote; nothing in it is executed.

    Raises
    ------
    InputError
        No such file, damaged, not ours.
    """
    content = read_any(path)
    if is_published(content):
        raise InputError(f"{path} is a checkpoint of PyTorch Lightning: convert_checkpoint.py makes it one of ours")
    return content


def read_any(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint, ours or one of PyTorch Lightning, whose objects become plain values.

    Raises
    ------
    InputError
        No such file, damaged, or something else than a dict.
    """
    if not Path(path).is_file():
        raise InputError(f"no such checkpoint: {path}")
    content = read_inert(path, "it may be damaged or incomplete", stand_ins=None)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint of EAGLE")
    return content


def is_published(content: Mapping[str, Any]) -> bool:
    """Whether what :func:`read_any` gave is a checkpoint of PyTorch Lightning."""
    return "state_dict" in content and not {"pytorch-lightning_version", "hyper_parameters"}.isdisjoint(content)


def read_published(content: Mapping[str, Any], path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and hyper-parameters of a Lightning checkpoint.

    Parameters
    ----------
    content, path
        Of the checkpoint, by :func:`read_any`, and its name for messages.

    Returns
    -------
    tensors
        By their names in the file.
    hyperparameters
        Plain values; those of a configuration under ``cfg`` stand beside the others.

    Raises
    ------
    InputError
        It has no tensors.
    """
    state, given = (content.get(name) for name in ("state_dict", "hyper_parameters"))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)} if _is_dict(state) else {}
    if not tensors:
        raise InputError(f"{path} holds no tensors under 'state_dict': it is no checkpoint of PyTorch Lightning")
    hyperparameters = dict(given) if _is_dict(given) else {}
    inner = hyperparameters.pop("cfg", None)
    hyperparameters = {**(inner if _is_dict(inner) else {}), **hyperparameters}
    if isinstance(content.get("global_step"), int):
        hyperparameters.setdefault("global_step", content["global_step"])
    return tensors, hyperparameters


def _is_dict(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def to_model_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Published names -> ours.

    Returns
    -------
    model
        Tensors by the names of :class:`eagleseg.model.heads.EagleModel`.
    backbone
        Tensors of the frozen backbone, by its own names.
    ignored
        Names of all others: parameters that were never trained (``CELoss.learned_centroids``), buffers of losses.
    """
    model: dict[str, Tensor] = {}
    backbone: dict[str, Tensor] = {}
    ignored = []
    for name, value in tensors.items():
        prefix = next((prefix for prefix in NAMES if name.startswith(prefix)), None)
        if name.startswith(BACKBONE_PREFIX):
            backbone[name.removeprefix(BACKBONE_PREFIX)] = value
        elif prefix is not None:
            model[NAMES[prefix] + name.rpartition(".")[2]] = value
        else:
            ignored.append(name)
    return model, backbone, ignored


def published_checkpoint(content: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """A published checkpoint as one of ours: ``model``, ``backbone``, ``settings``, ``class_names``, ``step``.

    Parameters and errors as for :func:`read_published`; an :class:`InputError` also if there are no tensors of EAGLE,
    or hyper-parameters that name no backbone we know.
    """
    tensors, hyperparameters = read_published(content, path)
    model, backbone, ignored = to_model_names(tensors)
    if not model:
        raise InputError(f"{path} is no checkpoint of EAGLE: it holds {', '.join(ignored[:3])}, ...")
    architecture = (hyperparameters.get("model_type"), hyperparameters.get("dino_patch_size"))
    if architecture not in list(BACKBONES):  # which does not ask for hashes
        kind, patch_size = architecture
        raise InputError(f"{path}: no backbone is known for model_type={kind}, dino_patch_size={patch_size}")
    settings = {name: hyperparameters[name] for name in KEPT_SETTINGS if name in hyperparameters}
    settings |= {"backbone": BACKBONES[architecture], "patch_size": architecture[1]}
    settings |= _sizes(model)
    return {
        "model": model,
        "backbone": backbone,
        "settings": settings,
        "class_names": [
            name for known in CLASS_NAMES if known == settings.get("dataset_name") for name in CLASS_NAMES[known]
        ],
        "step": hyperparameters.get("global_step"),
        "hyperparameters": hyperparameters,
    }


def _sizes(model: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes that the tensors themselves tell: the hyper-parameters of a published file need not be those it holds."""
    sizes = {}
    model = {name: value for name, value in model.items() if value.ndim > 1}
    if {"linear_probe.weight", "cluster_probe.clusters"} <= model.keys():
        clusters, dim = model["cluster_probe.clusters"].shape[:2]
        sizes = {"dim": dim, "extra_clusters": clusters - len(model["linear_probe.weight"])}
    if "eigen_probe.clusters" in model:
        count, width = model["eigen_probe.clusters"].shape[:2]
        sizes |= {"eigen_cluster_out": count, "eigen_cluster": width + 1}
    return sizes
