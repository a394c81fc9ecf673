"""The folder of a self-training: checkpoints, from which it goes on, and figures.

checkpoint-latest.pth    everything that is needed to go on
checkpoint-best.pth      that of the best validation mIoU
checkpoint-NNNN.pth      that of epoch NNNN
results.json             figures of every evaluation
tensorboard/             the log
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from semanticseg.deeplab import DeepLab, build_model
from semanticseg.settings import Model, TrainSettings
from spectralseg.errors import InputError
from spectralseg.files.records import SELF_TRAINING, SELF_TRAINING_RUN, check
from spectralseg.files.storage import load_record, save_json, save_record
from spectralseg.models.weights import load_into
from spectralseg.running.stage import provenance
from spectralseg.settings import settings_from
from spectralseg.training.run_folder import make_ready, refuse_another_run

LATEST, BEST, RESULTS = "checkpoint-latest.pth", "checkpoint-best.pth", "results.json"
LOGS = ("tensorboard", "wandb")
KIND = "semantic-segmentation"
# The weights do not depend on these settings: a run may go on with other values.
FREE = {
    *("name", "crf_processes", "crf_dir", "visualize", "device", "evaluate_every", "checkpoint_every", "log_every"),
    "crf_backend",  # the one that was taken is among the segments' arguments
    *("logger", "overwrite", "job_type", "checkpoint", "generate_list", "generate_dir", "matching", "segments_dir"),
}
ADDED = {"enlarge": "patches"}  # of runs that were begun before there was the setting
FREE_DATA = ("root", "images_dir", "masks_dir", "val_list", "train_list", "class_names")


def identity(
    settings: TrainSettings, match: list[tuple[int, int]], ids: list[str], segments_dir: str
) -> dict[str, Any]:
    """Everything that the weights depend on: settings, the match that is used, and what is trained on."""
    content = {name: value for name, value in asdict(settings).items() if name not in FREE}
    content["data"] = {name: value for name, value in content["data"].items() if name not in FREE_DATA}
    content["data"]["loader"].pop("num_workers")
    content["matching"] = [list(pair) for pair in match]
    content["images"] = {"count": len(ids), "first": ids[0], "last": ids[-1]}
    content["segments"] = provenance(segments_dir)
    return content


class TrainingRun:
    """Checkpoints and figures of a run; the main process alone writes.

    Parameters
    ----------
    folder
        The run folder.
    content
        :func:`identity` of the run.
    overwrite
        Ignore what is there; :meth:`begin` removes it.

    Raises
    ------
    InputError
        The folder holds a training with other settings, or a damaged one.
    """

    def __init__(self, folder: Path, content: dict[str, Any], overwrite: bool) -> None:
        self.folder, self.identity, self.overwrite = folder, content, overwrite
        self.state: dict[str, Any] | None = None
        path = folder / LATEST
        if path.is_file() and not overwrite:
            advice = "choose another hydra.run.dir or name, or start anew with overwrite=true"
            self.state = check(load_checkpoint(path), SELF_TRAINING_RUN, path, advice)
            refuse_another_run(folder, ADDED | self.state["settings"], content, advice)

    def begin(self) -> None:
        """Prepare the folder; files of an earlier run are removed, unless this run continues it."""
        make_ready(self.folder, self.state is not None, LATEST, ("checkpoint-*.pth", RESULTS, *LOGS))

    def save(self, state: dict[str, Any], is_best: bool, epoch: int | None) -> None:
        """Write the checkpoints of an evaluation; ``epoch``: also as that of an epoch."""
        content = {"kind": KIND, "settings": self.identity} | state
        weights = {
            name: content[name] for name in ("kind", "settings", "normalisation", "names", "val_list", "step", "model")
        }
        weights["model"] = state["ema"] or state["model"]
        if epoch is not None:
            save_record(self.folder / f"checkpoint-{epoch:04d}.pth", weights)
        if is_best:
            save_record(self.folder / BEST, weights)
        save_record(self.folder / LATEST, content)  # last: the other files are there when it is

    def write_results(self, content: dict[str, Any]) -> None:
        """Write results.json."""
        save_json(self.folder / RESULTS, content | {"settings": self.identity})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of self-training, without executing anything from it."""
    content = load_record(path)
    if content.get("kind") != KIND:
        raise InputError(f"{path} is no checkpoint of this self-training")
    return check(content, SELF_TRAINING, path, "take another checkpoint, or train anew")


def load_model(path: Path) -> tuple[DeepLab, dict[str, Any]]:
    """The model of a checkpoint (its moving average, where one was kept), and the checkpoint.

    Raises
    ------
    InputError
        The file is absent, damaged, or no such checkpoint.
    """
    content = load_checkpoint(path)
    about, (mean, std) = content["settings"], content["normalisation"]
    model = settings_from(Model, about["model"] | {"weights": "random"})  # replaced by those of the checkpoint
    network, _ = build_model(model, about["data"]["num_classes"] + 1, 0, mean, std)
    load_into(network, content.get("ema") or content["model"], path)
    return network, content
