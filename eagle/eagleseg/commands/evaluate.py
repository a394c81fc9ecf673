r"""Evaluate trained models: accuracy and mIoU of the linear and the cluster probe.

    cd eagle
    python eval_segmentation.py model_path=../outputs/eagle/cocostuff27_vits8/best.pth
    python eval_segmentation.py model_path=published.ckpt run_crf=false save_predictions=true
    python eval_segmentation.py 'model_path=[one.pth, another.pth]'

Settings are explained in configs/eagle/eval_config.yml. Prints a table per class and writes results.json, confusion
matrices, pictures and, if asked for, label maps to outputs/eagle/<experiment_name>. The cluster probe's scores are by
two protocols: 'released' drops pixels of extra clusters before counting, as the published code does; 'strict' counts
them as wrong. (main.py is the same.)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

from eagleseg.checkpoints.trained import Trained, load_trained
from eagleseg.data.dataset import DataSettings, EagleDataset, build_dataset
from eagleseg.evaluation.evaluate import EvaluationOptions, eagle_crf, evaluate
from eagleseg.evaluation.scores import as_table
from spectralseg.errors import InputError
from spectralseg.files.storage import save_json
from spectralseg.running.devices import pick_device
from spectralseg.running.hydra_app import run, run_folder, to_settings
from spectralseg.settings import setting

OF_THE_DATA = (
    "dataset_name",
    "dir_dataset_name",
    "dir_dataset_n_classes",
    "dir_dataset_class_names",
    "dir_dataset_void",
)


@dataclass
class EvaluationSettings(EvaluationOptions):
    """The whole config."""

    experiment_name: str = "evaluation"
    model_path: Any = MISSING
    weights: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    pytorch_data_dir: str = ""
    dataset_name: str | None = None
    dir_dataset_name: str | None = None
    dir_dataset_n_classes: int | None = None
    dir_dataset_class_names: list[str] | None = None
    dir_dataset_void: int | None = None
    split: str = "val"
    res: int = setting(320, least=1)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run(evaluate_models, "eagle/eval_config", argv)


def evaluate_models(config: DictConfig) -> None:
    """Evaluate one model after another."""
    settings = to_settings(config, EvaluationSettings)
    device = pick_device(settings.device)
    if settings.run_crf:  # results.json names what auto stands for
        settings.crf_backend = eagle_crf(settings.crf_backend, device, settings.crf_processes).crf_backend
    paths = settings.model_path if isinstance(settings.model_path, list) else [settings.model_path]
    if not paths or not all(paths):
        raise InputError("model_path needs a checkpoint, or a list of them")
    for number, path in enumerate(paths):
        trained = load_trained(path, device, settings.weights, settings.dtype)
        dataset = data_of(trained, settings)
        folder = run_folder() if len(paths) == 1 else run_folder() / f"{number}_{Path(path).stem}"
        results = evaluate(trained, dataset, settings, folder)
        content = {"model": str(path), "step": trained.step, **results, "settings": asdict(settings)}
        save_json(folder / "results.json", content)
        print(f"{path} on {dataset.name}, {settings.split}, {len(dataset)} images")
        print(as_table(results["scores"]))
        print(f"results -> {folder}")


def data_of(trained: Trained, settings: EvaluationSettings) -> EagleDataset:
    """The split to evaluate: of the data set that the model was trained on, but for what the settings say."""
    chosen = {name: getattr(settings, name) for name in OF_THE_DATA}
    as_trained = {name: trained.settings.get(name) for name in OF_THE_DATA}
    if chosen["dataset_name"] in (None, as_trained["dataset_name"]):
        chosen = {name: as_trained[name] if value is None else value for name, value in chosen.items()}
    if chosen["dataset_name"] is None:
        raise InputError("the checkpoint does not tell its data set: set dataset_name")
    data = DataSettings(settings.pytorch_data_dir, **chosen)
    return build_dataset(data, settings.split, training=False, res=settings.res)
