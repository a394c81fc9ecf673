"""Settings of a training run, under their published names where they have one; the config files explain them.

Defaults here are the published recipe for COCO-Stuff (Kim et al., EAGLE, CVPR 2024).
"""

from dataclasses import asdict, dataclass
from typing import Any

from eagleseg.data.dataset import DataSettings
from spectralseg.errors import InputError

DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of the backbone, by mixed_precision
SELECTIONS = ("cluster_miou", "loss", "last")
EICUE_SOURCES = ("learned", "precomputed")
EICUE_COLORS = ("released", "rgb", "none")
CENTROID_MODES = ("prototype", "medoid", "mean", "learned")

# What may differ when a run is resumed: it changes neither the data nor the losses. (Weights are compared by content.)
RESUMABLE = {
    *("num_workers", "device", "logger", "scalar_log_freq", "val_freq", "checkpoint_freq", "keep_best", "select_by"),
    *("max_steps", "experiment_name", "overwrite", "pytorch_data_dir", "weights", "val_batch_size", "pictures"),
}


@dataclass
class TrainSettings(DataSettings):
    """A training run; the data set's part is :class:`eagleseg.data.dataset.DataSettings`."""

    experiment_name: str = "eagle"
    overwrite: bool = False
    device: str = "auto"
    mixed_precision: str = "no"
    num_workers: int = 2
    logger: str | None = "tensorboard"
    # the frozen backbone
    backbone: str = "dino_vits8_300ep"
    weights: str | None = None
    # the model
    dim: int = 512
    dropout: bool = True
    extra_clusters: int = 5
    eigen_cluster_out: int = 32
    # the schedule
    max_steps: int = 10000
    batch_size: int = 32
    step_schedulers: int = 200
    momentum_limit: float = 0.9
    lr: float = 5e-4
    linear_lr: float = 1e-3
    cluster_lr: float = 5e-3
    eigen_cluster_lr: float = 5e-5
    # correspondence
    feature_samples: int = 11
    neg_samples: int = 5
    shift_value: float = 3.5
    shift_bias: float = 0.0
    pointwise: bool = True
    zero_clamp: bool = True
    stabalize: bool = True
    pos_inter_weight: float = 0.25
    neg_inter_weight: float = 0.63
    # EiCue
    eicue_source: str = "learned"
    eicue_color: str = "released"
    # object-centric contrast
    contrastive_temp: float = 0.07
    global_loss_weight: float = 0.7
    centroid_mode: str = "prototype"
    label_smoothing: bool = False
    # what is logged and kept
    val_res: int = 320
    val_batch_size: int = 8
    scalar_log_freq: int = 10
    val_freq: int = 100
    checkpoint_freq: int = 100
    pictures: int = 4
    select_by: str = "cluster_miou"
    keep_best: int = 3

    def check(self) -> None:
        """Raise an :class:`InputError` for values that no run can have."""
        choices = {
            "mixed_precision": tuple(DTYPES),
            "select_by": SELECTIONS,
            "eicue_source": EICUE_SOURCES,
            "eicue_color": EICUE_COLORS,
            "centroid_mode": CENTROID_MODES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)}: it must be one of {', '.join(known)}")
        positive = (
            *(
                "max_steps",
                "batch_size",
                "dim",
                "eigen_cluster_out",
                "feature_samples",
                "neg_samples",
                "res",
                "val_res",
            ),
            *("scalar_log_freq", "val_freq", "checkpoint_freq", "keep_best", "val_batch_size", "contrastive_temp"),
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise InputError(f"{name}={getattr(self, name)}: it must be above 0")
        if self.batch_size < 2:
            raise InputError("batch_size=1: the correspondence loss compares images of a batch, at least 2")
        if self.eigen_cluster < 2:
            raise InputError(
                f"eigen_cluster={self.eigen_cluster}: it must be at least 2, for the first one is constant"
            )
        if self.eicue_source == "precomputed" and self.eigs_dir is None:
            raise InputError("eicue_source=precomputed needs eigs_dir, a folder written by extract_eigs")
        for name in ("num_workers", "extra_clusters", "step_schedulers", "pictures"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)}: it must be at least 0")

    def identity(self) -> dict[str, Any]:
        """The settings that decide what the run computes: a folder holds one such run."""
        return {name: value for name, value in asdict(self).items() if name not in RESUMABLE}
