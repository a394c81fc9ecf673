r"""Self-training: a DeepLab learns the pseudo-labels of the extract stage.

    cd semantic-segmentation
    python train.py lr=2e-4 data.loader.batch_size=96 matching='"[(0, 0), (1, 5), (2, 8)]"' \
        segments_dir=../data/VOC2012/semantic_segmentations/patches/laplacian/segmaps
    python train.py job_type=generate

Settings are explained in configs/semantic-segmentation/base.yaml and train.yaml. Without matching=..., clusters are
matched to classes on the validation images, as main.py does. Writes into the run folder
(outputs/semantic-segmentation/self-training, or what hydra.run.dir=... says) checkpoints, results.json, tensorboard/,
confusion.png and overlays/. Started again, it goes on at the last evaluation, and ends with the weights of a run that
was never interrupted. On several GPUs or processes: accelerate launch --num_processes 2 train.py ...
job_type=generate writes predictions, which main.py evaluates with matching=identity.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from omegaconf import DictConfig
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from semanticseg.augment import Augmentation, seed_of
from semanticseg.deeplab import build_model
from semanticseg.evaluation import count
from semanticseg.matches import read_match, renaming
from semanticseg.prediction import generate, validate
from semanticseg.pseudolabels import VOID, Labelled, PseudoLabelled, pair, read_ids, sharpen, train_ids
from semanticseg.report import Report
from semanticseg.run_folder import LATEST, TrainingRun, identity
from semanticseg.scores import scores
from semanticseg.settings import TrainSettings
from spectralseg.errors import InputError
from spectralseg.files.images import find_images
from spectralseg.mathematics.matching import Match, apply_match, match_clusters
from spectralseg.models.weights import load_into
from spectralseg.progress import progress_bar
from spectralseg.running.hydra_app import run, run_folder, to_settings
from spectralseg.running.launching import make_accelerator, start_asked_processes
from spectralseg.training.batches import Batches, check_batch_size, read_batches
from spectralseg.training.run_folder import restore_optimizer


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run(train, "semantic-segmentation/train", argv)


def train(config: DictConfig) -> None:
    """Check everything that can be checked, then train or generate."""
    settings = to_settings(config, TrainSettings)
    folder = run_folder()
    if settings.job_type == "generate":
        start_asked_processes()
        generate(settings, folder, make_accelerator(settings.device, settings.mixed_precision))
        return
    data = settings.data
    images = find_images(data.images_dir, depth=0)
    held_out, ids = read_ids(data.val_list), train_ids(data, images)
    given = read_match(settings.matching, data.clusters, data.classes)
    pair(ids, images, None, settings.segments_dir)
    pair(held_out, images, data.masks_dir, settings.segments_dir if given is None else None)
    start_asked_processes()
    accelerator = make_accelerator(settings.device, settings.mixed_precision, settings.logger, folder)
    check_batch_size(size := data.loader.batch_size, accelerator.num_processes)
    if size > len(ids):
        raise InputError(f"batch_size={size} is more than the {len(ids)} images to train on; lower it")
    segments_dir = settings.require_segments()
    if settings.crf:
        place = folder / "crf" if settings.crf_dir is None else Path(settings.crf_dir)
        needed = sorted({*ids, *held_out} if given is None else ids)
        segments_dir = sharpen(data, images, needed, segments_dir, place, settings.crf_processes, settings.crf_backend)
        accelerator.wait_for_everyone()
    if given is None:
        counts = count(pair(held_out, images, data.masks_dir, segments_dir), data, settings.enlarge)
        match = match_clusters(counts)
        pseudo = scores(apply_match(counts, match), data.names())
    else:
        match, pseudo = given, None
    run = TrainingRun(folder, identity(settings, match, ids, segments_dir), settings.overwrite)
    trainer = Trainer(settings, run, accelerator, match)
    trainer.results["pseudo_labels"] = pseudo
    trainer.fit(pair(ids, images, None, segments_dir), pair(held_out, images, data.masks_dir))


class Trainer:
    """A run from its start, or from its last checkpoint, to its end.

    The batches of a step, their views and the model's dropout follow from the seed and the number of the step, so that
    checkpoints keep no state of a random generator.
    """

    def __init__(self, settings: TrainSettings, run: TrainingRun, accelerator: Accelerator, match: Match) -> None:
        self.settings, self.run, self.accelerator, self.match = settings, run, accelerator, match
        transform = settings.data.transform
        self.network, origin = build_model(
            settings.model, settings.data.classes, settings.seed, transform.mean, transform.std
        )
        self.normalisation = [self.network.mean.flatten().tolist(), self.network.std.flatten().tolist()]
        self.network.to(accelerator.device).train()
        average = get_ema_multi_avg_fn(settings.ema_decay)
        self.ema = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True) if settings.ema else None
        trained = [value for value in self.network.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.step = 0
        self.results: dict[str, Any] = {"history": [], "matching": match, "weights": origin}
        if run.state is not None:
            self._restore(run.state)

    # --- the run ---

    def fit(self, training: list[Labelled], validation: list[Labelled]) -> None:
        """Train, evaluate every so many epochs and at the end, and report."""
        settings, accelerator = self.settings, self.accelerator
        if accelerator.is_main_process:
            self.run.begin()
        accelerator.wait_for_everyone()
        self.report = Report(settings, self.run, accelerator)
        self.report.start(self.network, self.results, len(training), len(validation))
        if not self.results["history"]:  # of the untrained network
            self._evaluate(validation, epoch=0, loss=None)
        if self.step < settings.max_train_steps:
            self._loop(training, validation)
        else:  # the run had ended before
            self.confusion = validate(self._evaluated(), validation, settings.data.classes, accelerator)
        self.report.end(self.confusion, self.results, self._evaluated(), validation)

    def _loop(self, training: list[Labelled], validation: list[Labelled]) -> None:
        settings, accelerator = self.settings, self.accelerator
        accumulated = settings.gradient_accumulation_steps
        batches = Batches(
            len(training),
            settings.data.loader.batch_size,
            functools.partial(seed_of, settings.seed),
            self.step * accumulated,
            settings.max_train_steps * accumulated,
            accelerator.process_index,
            accelerator.num_processes,
        )
        stream = read_batches(self._dataset(training), batches, settings.data.loader.num_workers)
        losses: list[float] = []
        steps, quiet = settings.max_train_steps, not accelerator.is_main_process
        with progress_bar(total=steps, initial=self.step, desc="training", unit="step", disable=quiet) as bar:
            while self.step < steps:
                losses.append(self._train_step(stream))
                self.step += 1
                bar.update()
                self.report.step(self.step, losses[-1], self.optimizer.param_groups[0]["lr"])
                before, epoch = (step * accumulated // batches.per_epoch for step in (self.step - 1, self.step))
                if epoch // settings.evaluate_every > before // settings.evaluate_every or self.step == steps:
                    self._evaluate(validation, epoch, sum(losses) / len(losses), is_epoch=epoch > before)
                    losses = []

    def _dataset(self, training: list[Labelled]) -> PseudoLabelled:
        settings, transform = self.settings, self.settings.data.transform
        augmentation = Augmentation(transform.resize_size, transform.crop_size)
        table = renaming(self.match)
        return PseudoLabelled(training, table, settings.data.clusters, augmentation, settings.seed, settings.enlarge)

    def _train_step(self, stream: Iterator[Any]) -> float:
        """One step of the optimizer; returns the loss, averaged over batches and processes."""
        settings, accelerator = self.settings, self.accelerator
        torch.manual_seed(seed_of(settings.seed, self.step, accelerator.process_index))  # for dropout
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * (1 - self.step / settings.max_train_steps)
        total = torch.zeros((), device=accelerator.device)
        self.optimizer.zero_grad(set_to_none=True)
        for number in range(settings.gradient_accumulation_steps):
            images, labels = (tensor.to(accelerator.device, non_blocking=True) for tensor in next(stream))
            is_last = number + 1 == settings.gradient_accumulation_steps
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.model):
                logits = self.model(images.float().div_(255))
                loss = self_training_loss(logits, labels) / settings.gradient_accumulation_steps
                accelerator.backward(loss)
            total += loss.detach()
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        value = float(accelerator.reduce(total, "mean"))
        if value != value and not accelerator.optimizer_step_was_skipped:
            raise InputError(f"the loss is not a number at step {self.step}: lower lr, or use mixed_precision=no")
        return value

    # --- evaluation and checkpoints ---

    def _evaluated(self) -> nn.Module:
        return self.network if self.ema is None else self.ema.module

    def _share_statistics(self) -> None:
        """Give all processes the main one's batch norm statistics: each has collected its own since the last step."""
        for network in (self.network, *([] if self.ema is None else [self.ema.module])):
            for buffer in network.buffers():
                broadcast(buffer, from_process=0)

    def _evaluate(self, validation: list[Labelled], epoch: int, loss: float | None, is_epoch: bool = False) -> None:
        """Validate, note the figures, and write checkpoints."""
        settings, accelerator = self.settings, self.accelerator
        self._share_statistics()
        self.confusion = validate(self._evaluated(), validation, settings.data.classes, accelerator)
        result = scores(self.confusion, settings.data.names())
        figures = {name: result[name] for name in ("miou", "miou_all_classes", "accuracy")}
        history = self.results["history"]
        is_best = all(figures["miou"] > before["miou"] for before in history)
        history.append({"step": self.step, "epoch": epoch, "loss": loss} | figures)
        self.report.evaluation(history[-1], is_best)
        if accelerator.is_main_process:
            every = settings.checkpoint_every
            numbered = is_epoch and every is not None and epoch % every == 0
            self.run.save(self._state(), is_best, epoch if numbered else None)
            self.run.write_results(self.results)
        accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "model": self.network.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "ema_updates": 0 if self.ema is None else int(self.ema.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "history": self.results["history"],
            "normalisation": self.normalisation,
            "names": self.settings.data.names(),
            "val_list": str(Path(self.settings.data.val_list).resolve()),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        path = self.run.folder / LATEST
        load_into(self.network, state["model"], path)
        restore_optimizer(self.optimizer, state["optimizer"], path)
        if self.ema is not None:
            load_into(self.ema.module, state["ema"] or {}, path)
            self.ema.n_averaged.fill_(state["ema_updates"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.results["history"] = state["history"]


def self_training_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy on pseudo-labels: logits (B, C, H, W) float32, labels (B, H, W) uint8, void left out -> scalar.

    0 where all is void.
    """
    labels = labels.long()
    summed = functional.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return summed / (labels != VOID).sum().clamp(min=1)
