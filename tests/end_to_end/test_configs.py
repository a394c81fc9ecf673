"""Configs: their defaults are those of the classes that check them, and the published ones."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from omegaconf import DictConfig

import objectseg.evaluation
import semanticseg.settings
from eagleseg.commands.crop import CropSettings
from eagleseg.commands.demo import DemoSettings
from eagleseg.commands.evaluate import EvaluationSettings
from eagleseg.training.settings import TrainSettings
from spectralseg.running.hydra_app import run


def compose(name: str, folder: Path) -> DictConfig:
    """A config as its script sees it."""
    seen = []

    def note(config: DictConfig) -> None:
        seen.append(config)

    note.__module__ = "semanticseg.self_training"  # Hydra names the job after it
    run(note, name, [f"hydra.run.dir={folder}"])
    return seen[0]


@pytest.mark.parametrize(
    ("name", "settings", "own"),
    [
        ("eagle/train_config_cocostuff", TrainSettings, {"experiment_name"}),
        ("eagle/eval_config", EvaluationSettings, {"model_path", "pytorch_data_dir"}),
        ("eagle/crop_config", CropSettings, set()),
        ("eagle/demo_config", DemoSettings, set()),
        ("object-segmentation/eval", objectseg.evaluation.EvalSettings, set()),
        ("semantic-segmentation/eval", semanticseg.settings.EvalSettings, set()),
        ("semantic-segmentation/train", semanticseg.settings.TrainSettings, set()),
    ],
)
def test_defaults_are_those_of_the_settings(name: str, settings: type, own: set[str], tmp_path: Path):
    config = compose(name, tmp_path)
    declared = {field.name: field.default for field in fields(settings) if field.default is not MISSING}
    assert {key: config[key] for key in declared.keys() - own} == {key: declared[key] for key in declared.keys() - own}


def test_self_training_is_the_published_one(tmp_path: Path):
    config = compose("semantic-segmentation/train", tmp_path)
    assert (config.lr, config.max_train_steps, config.weight_decay, config.seed) == (0.005, 5000, 1e-8, 1)
    model, data = config.model, config.data
    assert (model.name, model.backbone, model.weights) == ("deeplabv3plus", "dino_resnet50", None)
    assert (model.unfrozen_backbone_layers, data.num_classes, data.num_clusters) == (1, 20, 20)
    assert (data.loader.batch_size, data.transform.resize_size, data.transform.crop_size) == (144, 256, 224)
