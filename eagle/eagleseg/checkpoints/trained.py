"""A trained model with its backbone, from our checkpoints or the published ones."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eagleseg.checkpoints.files import is_published, published_checkpoint, read_any
from eagleseg.model.features import Featurizer
from eagleseg.model.heads import EagleModel
from spectralseg.errors import InputError
from spectralseg.files.records import EAGLE, check
from spectralseg.files.storage import field as field_of
from spectralseg.models.backbones import HEADS, load_backbone
from spectralseg.models.weights import load_into
from spectralseg.progress import phase

NEEDED = ("head.A.weight", "linear_probe.weight", "cluster_probe.clusters", "eigen_probe.clusters")
SIZES = ("dim", "eigen_cluster", "eigen_cluster_out", "extra_clusters")


@dataclass
class Trained:
    """A model in evaluation mode, and what it was trained on.

    Attributes
    ----------
    model, features_of
        Head and probes; the frozen backbone.
    settings
        Of the training run, by name: ``dataset_name``, ``patch_size``, ...
    class_names
        Of the classes it was trained with; may be empty.
    match
        Cluster -> class, where the training run had labels.
    step
        Of the checkpoint.
    """

    model: EagleModel
    features_of: Featurizer
    settings: dict[str, Any]
    class_names: list[str]
    step: int | None = None
    match: dict[int, int] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where model and backbone are."""
        return self.model.linear_probe.weight.device


@phase("loading the checkpoint")
def load_trained(path: str | Path, device: torch.device, weights: str | None = None, dtype: str = "float32") -> Trained:
    """Load a checkpoint.

    Parameters
    ----------
    path
        Ours (``.pth``) or a published Lightning file (``.ckpt``), of which nothing is executed.
    device
        Where model and backbone go.
    weights
        Of the backbone, instead of those that the training run used (a published file holds its own).
    dtype
        ``float32``, ``bfloat16`` or ``float16`` for the backbone.

    Raises
    ------
    InputError
        No such file, damaged, of other sizes, or the backbone's weights cannot be had.
    """
    content = read_any(path)
    if is_published(content):
        content = published_checkpoint(content, path)
    model, content = model_of(content, path), check(content, EAGLE, path)
    settings = content["settings"]
    own = content.get("backbone")
    backbone = load_backbone(settings["backbone"], "random" if own else weights or settings.get("weights"), device)
    if own:
        load_into(backbone.model, {name: value.to(device) for name, value in own.items()}, path, HEADS)
    features_of = Featurizer(backbone, dtype=dtype)
    if features_of.dim != model.head.in_channels:
        raise InputError(
            f"{path} was trained on {model.head.in_channels} channels, {backbone.name} has {features_of.dim}"
        )
    return Trained(
        model.to(device).eval(),
        features_of,
        settings,
        content.get("class_names", []),
        content.get("step"),
        content.get("match", {}),
    )


def model_of(content: dict[str, Any], path: str | Path) -> EagleModel:
    """The model of a checkpoint's content, on the CPU; an :class:`InputError` says what the file lacks."""
    tensors, settings = field_of(content, "model", path), field_of(content, "settings", path)
    content = check(content, EAGLE, path, "take another checkpoint")
    lacking = [name for name in NEEDED if name not in tensors or tensors[name].ndim < 2]
    if lacking:
        raise InputError(f"{path} is of another layout: it lacks {', '.join(lacking)}")
    names, match = content.get("class_names", []), content.get("match", {})
    n_classes, n_clusters = len(tensors["linear_probe.weight"]), len(tensors["cluster_probe.clusters"])
    is_matched = all(cluster < n_clusters and label < n_classes for cluster, label in match.items())
    if (names or match) and len(names) != n_classes or not is_matched:
        raise InputError(f"{path}: {len(names)} class_names, or its match, do not fit {n_classes} classes")
    missing = [name for name in ("backbone", *SIZES) if name not in settings]
    if missing:
        raise InputError(f"{path} does not tell the {missing[0]} it was trained with")
    model = EagleModel(
        feature_dim=tensors["head.A.weight"].shape[1],
        n_classes=len(tensors["linear_probe.weight"]),
        dropout=bool(settings.get("dropout", True)),
        learned_prototypes="prototypes" in tensors,
        **{name: int(settings[name]) for name in SIZES},
    )
    load_into(model, tensors, path)
    return model
