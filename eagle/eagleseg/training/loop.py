"""The training loop of EAGLE: one optimiser, one step a batch, validation, checkpoints.

Source: Kim et al., EAGLE, CVPR 2024. Devices, processes and precision are Accelerate's; everything random in a step is
a function of the seed, the step and the process, so that a resumed run is the uninterrupted one.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eagleseg.data.dataset import EagleDataset, build_dataset
from eagleseg.losses.step import EagleStep, total_loss
from eagleseg.model.features import Featurizer, features_of_views
from eagleseg.model.heads import EagleModel
from eagleseg.training.report import figures, report
from eagleseg.training.run_folder import LAST, LOGS, RunFolder
from eagleseg.training.settings import DTYPES, TrainSettings
from eagleseg.training.validation import validate
from spectralseg.errors import InputError
from spectralseg.models.backbones import Backbone, load_backbone
from spectralseg.models.weights import load_into
from spectralseg.progress import progress_bar
from spectralseg.running.launching import make_accelerator, start_asked_processes
from spectralseg.training.batches import Batches, check_batch_size, read_batches
from spectralseg.training.logs import Log
from spectralseg.training.run_folder import restore_optimizer

CHECKPOINT_FORMAT = "eagle 1"
PROBES = ("linear", "cluster")  # terms that train the probes only, the first of them on labels


def train(settings: TrainSettings, folder: Path) -> None:
    """Train, or go on with the run in ``folder``, up to ``max_steps``.

    Raises
    ------
    InputError
        Settings or data that no run can have; a loss that is no longer finite (the checkpoints stay).
    """
    start_asked_processes()
    accelerator = make_accelerator(settings.device, settings.mixed_precision, settings.logger, folder / LOGS)
    training = build_dataset(settings, "train", training=True)
    validation = build_dataset(settings, "val", training=False, res=settings.val_res)
    if settings.select_by == "cluster_miou" and not validation.has_labels:
        raise InputError("select_by=cluster_miou needs labels, which the val split has not: select_by=loss or last")
    check_batch_size(settings.batch_size, accelerator.num_processes)
    backbone = load_backbone(settings.backbone, settings.weights, accelerator.device)
    if backbone.patch_size != settings.patch_size:
        raise InputError(f"{settings.backbone} has patches of {backbone.patch_size} pixels: set patch_size to that")
    training.require_backbone(backbone.name, backbone.weights)
    run = RunFolder(folder, settings, backbone.weights)
    _Training(settings, run, accelerator, backbone, training, validation).run_to_the_end()


class _Training:
    """One process's part of a run: the state that its steps share."""

    def __init__(
        self,
        settings: TrainSettings,
        run: RunFolder,
        accelerator: Accelerator,
        backbone: Backbone,
        training: EagleDataset,
        validation: EagleDataset,
    ) -> None:
        self.settings, self.run, self.accelerator = settings, run, accelerator
        self.training, self.validation = training, validation
        self.features_of = Featurizer(backbone, dtype=DTYPES[settings.mixed_precision])
        torch.manual_seed(settings.seed)
        self.model = EagleModel(
            feature_dim=self.features_of.dim,
            n_classes=training.n_classes,
            extra_clusters=settings.extra_clusters,
            dim=settings.dim,
            eigen_cluster=settings.eigen_cluster,
            eigen_cluster_out=settings.eigen_cluster_out,
            dropout=settings.dropout,
            learned_prototypes=settings.centroid_mode == "learned",
        )
        optimizer = torch.optim.Adam(parameter_groups(self.model, settings))
        state = run.last()
        self.step = self.first_step = 0 if state is None else int(state["step"])
        self.losses: list[float] = [] if state is None else state["losses"]  # unsupervised, since the last validation
        if state is not None:
            load_into(self.model, state["model"], run.path / LAST)
            restore_optimizer(optimizer, state["optimizer"], run.path / LAST)
        self.losses_of, self.optimizer = accelerator.prepare(EagleStep(self.model, settings), optimizer)

    def run_to_the_end(self) -> None:
        """Steps up to ``max_steps``, with a progress bar."""
        settings, accelerator = self.settings, self.accelerator
        accelerator.wait_for_everyone()  # all have checked the folder before it changes
        if accelerator.is_main_process:
            self.run.begin()
        accelerator.wait_for_everyone()
        self.log = Log(accelerator, settings.logger, "eagle", settings.experiment_name, self.first_step)
        if self.first_step:
            accelerator.print(f"train: goes on at step {self.first_step} of {self.run.path}", file=sys.stderr)
        batches = self._batches()
        quiet = not accelerator.is_main_process
        with progress_bar(total=settings.max_steps, initial=self.step, desc="train", unit="step", disable=quiet) as bar:
            while self.step < settings.max_steps:
                self._one_step(next(batches))
                self.step += 1
                bar.update()
                at_end = self.step == settings.max_steps
                validates = self.step % settings.val_freq == 0 or at_end
                saves = self.step % settings.checkpoint_freq == 0 or at_end
                if validates or saves:
                    self._require_finite_model()
                if validates:
                    self._validate()
                if saves:
                    self._save_last()
        self.log.close()
        accelerator.print(f"train: {self.step} steps -> {self.run.path}", file=sys.stderr)

    def _batches(self) -> Iterator[dict[str, Any]]:
        """This process's share of each batch from the next step on."""
        settings, accelerator = self.settings, self.accelerator
        batches = Batches(
            len(self.training),
            settings.batch_size,
            lambda epoch: (settings.seed << 24) + epoch,
            self.step,
            settings.max_steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        on_gpu = accelerator.device.type == "cuda"
        return read_batches(self.training, batches, settings.num_workers, pin_memory=on_gpu)

    def _one_step(self, batch: dict[str, Any]) -> None:
        device = self.accelerator.device
        tensors = {
            name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)
        }
        # Dropout and the points that are compared depend on the step alone, so that a resumed run draws the same.
        torch.manual_seed(_mixed(self.settings.seed, self.step, self.accelerator.process_index))
        features = features_of_views(self.features_of, tensors)
        share = contrast_share(self.step, self.settings)
        terms = self.losses_of(*features, tensors, share)
        self._require_finite(terms)
        loss = total_loss(terms, share, self.settings)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        probes = sum(terms[name] for name in PROBES if name in terms)
        self.losses.append(float(loss.detach() - probes.detach()))
        if (self.step + 1) % self.settings.scalar_log_freq == 0:
            values = {f"loss/{name}": float(value.detach()) for name, value in terms.items()}
            self.log.scalars({**values, "loss/total": float(loss.detach())}, self.step + 1)

    def _require_finite(self, terms: dict[str, Tensor]) -> None:
        """Stop all processes if a loss of any of them is not finite."""
        bad = torch.stack([~value.detach().isfinite() for value in terms.values()]).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        if bad.any():
            names = ", ".join(name for name, flag in zip(terms, bad.tolist(), strict=True) if flag)
            raise InputError(
                f"step {self.step}: the loss '{names}' is not a finite number; checkpoints in {self.run.path} are as"
                " they were. A lower lr may help"
            )

    def _require_finite_model(self) -> None:
        """Stop before broken weights are written: a finite loss can have gradients that are not finite."""
        broken = [name for name, value in self.model.named_parameters() if not value.isfinite().all()]
        if broken:
            raise InputError(
                f"step {self.step}: {broken[0]} is no longer finite; checkpoints in {self.run.path} are as they were."
                " A lower lr may help"
            )

    def _validate(self) -> None:
        settings = self.settings
        counts, samples = validate(
            self.features_of,
            self.model,
            self.validation,
            self.accelerator,
            settings.val_batch_size,
            settings.num_workers,
            settings.pictures,
        )
        loss = float(np.mean(self.losses)) if self.losses else math.nan
        self.losses = []
        metrics = {"step": self.step, "loss": loss} | figures(counts, self.validation.class_names)
        if self.accelerator.is_main_process:
            report(metrics, counts, samples, self.validation, self.run, self.log)
            match = {} if counts is None else counts.match()
            at_end = self.step == settings.max_steps
            self.run.save_if_good(self._selection(metrics), self.step, self._checkpoint(metrics, match), at_end)
        self.accelerator.wait_for_everyone()

    def _selection(self, metrics: dict[str, Any]) -> float:
        """The value of ``select_by``; NaN for a loss within the schedule, which later ones cannot be compared with."""
        if self.settings.select_by == "loss":
            return metrics["loss"] if self.step - 1 > self.settings.step_schedulers else math.nan
        if self.settings.select_by == "last":
            return float(self.step)
        miou = metrics["cluster_released_miou"]
        return 0.0 if math.isnan(miou) else miou  # NaN: all pixels are in extra clusters

    def _checkpoint(self, metrics: dict[str, Any], match: dict[int, int]) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "step": self.step,
            "model": self.model.state_dict(),
            "settings": asdict(self.settings),
            "class_names": list(self.training.class_names),
            "metrics": metrics,
            "match": match,  # cluster -> class, by the labels of the validation; empty without any
        }

    def _save_last(self) -> None:
        if self.accelerator.is_main_process:
            optimizer = self.optimizer.state_dict()
            self.run.save_last({**self._checkpoint({}, {}), "optimizer": optimizer, "losses": self.losses})
        self.accelerator.wait_for_everyone()


def parameter_groups(model: EagleModel, settings: TrainSettings) -> list[dict[str, Any]]:
    """Parameters with their learning rates, for one optimiser in place of the published seven."""
    groups: list[tuple[list[nn.Module], float]] = [
        ([model.head, model.project_head], settings.lr),
        ([model.linear_probe], settings.linear_lr),
        ([model.cluster_probe], settings.cluster_lr),
        ([model.eigen_probe, model.eigen_probe_blur], settings.eigen_cluster_lr),
    ]
    by_rate: list[dict[str, Any]] = [
        {"params": [parameter for part in parts for parameter in part.parameters()], "lr": lr} for parts, lr in groups
    ]
    if model.prototypes is not None:
        by_rate[0]["params"].append(model.prototypes)
    return by_rate


def contrast_share(step: int, settings: TrainSettings) -> float:
    """u of the total loss: 0 up to step number ``step_schedulers`` (from 0), then ``momentum_limit``, at most 1."""
    return 0.0 if step <= settings.step_schedulers else min(1.0, settings.momentum_limit)


def _mixed(seed: int, step: int, process: int) -> int:
    """One number from three, another one for each three that occur."""
    return (seed * 1_000_003 + step) * 4096 + process
