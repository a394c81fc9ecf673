"""Settings of a training run, under their published names where they have one; the config files explain them.

Defaults here are the published recipe for COCO-Stuff (Kim et al., EAGLE, CVPR 2024).
"""

from dataclasses import asdict, dataclass
from typing import Any

from eagleseg.data.settings import DataSettings
from eagleseg.losses.step import LossSettings
from spectralseg.errors import InputError
from spectralseg.settings import setting

DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of the backbone, by mixed_precision
SELECTIONS = ("cluster_miou", "loss", "last")

# Settings that a resumed run may change: neither data nor losses depend on them. (Weights are compared by content.)
RESUMABLE = {
    *("num_workers", "device", "logger", "scalar_log_freq", "val_freq", "checkpoint_freq", "keep_best", "select_by"),
    *("max_steps", "experiment_name", "overwrite", "pytorch_data_dir", "weights", "val_batch_size", "pictures"),
}


@dataclass
class TrainSettings(LossSettings, DataSettings):
    """A training run: its own settings, those of the losses and those of the data."""

    experiment_name: str = "eagle"
    overwrite: bool = False
    device: str = "auto"
    mixed_precision: str = setting("no", choices=DTYPES)
    num_workers: int = setting(4, least=0)
    logger: str | None = "tensorboard"
    # the frozen backbone
    backbone: str = "dino_vits8_300ep"
    weights: str | None = None
    # the model
    dim: int = setting(512, least=1)
    dropout: bool = True
    extra_clusters: int = setting(5, least=0)
    eigen_cluster_out: int = setting(32, least=1)
    # the schedule
    max_steps: int = setting(10000, least=1)
    batch_size: int = setting(32, least=2)  # the correspondence loss compares images of a batch
    step_schedulers: int = setting(200, least=0)
    momentum_limit: float = 0.9
    lr: float = 5e-4
    linear_lr: float = 1e-3
    cluster_lr: float = 5e-3
    eigen_cluster_lr: float = 5e-5
    # what is logged and kept
    val_res: int = setting(320, least=1)
    val_batch_size: int = setting(8, least=1)
    scalar_log_freq: int = setting(10, least=1)
    val_freq: int = setting(100, least=1)
    checkpoint_freq: int = setting(100, least=1)
    pictures: int = setting(4, least=0)
    select_by: str = setting("cluster_miou", choices=SELECTIONS)
    keep_best: int = setting(3, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eicue_source == "precomputed" and self.eigs_dir is None:
            raise InputError("eicue_source=precomputed needs eigs_dir, a folder written by extract_eigs")
        if self.eicue_source == "none" and self.momentum_limit > 0:
            raise InputError("eicue_source=none leaves no segments to contrast: set momentum_limit=0, or +losses=...")

    def identity(self) -> dict[str, Any]:
        """The settings that decide what the run computes: a folder holds one such run."""
        return {name: value for name, value in asdict(self).items() if name not in RESUMABLE}
