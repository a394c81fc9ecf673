r"""Train EAGLE: unsupervised semantic segmentation from eigenvector cues and object-centric contrast.

    cd eagle
    python train_segmentation_eigen.py                                          # COCO-Stuff-27
    python train_segmentation_eigen.py --config-name train_config_cityscapes    # or _potsdam, _directory
    python train_segmentation_eigen.py --config-name train_config_directory \
        pytorch_data_dir=/path/to dir_dataset_name=photographs dir_dataset_n_classes=8
    accelerate launch --num_processes 4 train_segmentation_eigen.py             # four GPUs

Settings are explained in configs/eagle/train_config_cocostuff.yml. Checkpoints, metrics, pictures and TensorBoard's
logs go to outputs/eagle/<experiment_name>; a run that was interrupted goes on when it is started again.
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from eagleseg.training.loop import train
from eagleseg.training.settings import TrainSettings
from spectralseg.running.hydra_app import run, run_folder, to_settings


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run(train_as, "eagle/train_config_cocostuff", argv)


def train_as(config: DictConfig) -> None:
    """Train as the config says."""
    train(to_settings(config, TrainSettings), run_folder())
