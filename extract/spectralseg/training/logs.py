"""Scalars and pictures of a run to TensorBoard or Weights & Biases, through Accelerate's trackers."""

from collections.abc import Mapping

import numpy as np
from accelerate import Accelerator
from PIL import Image

from spectralseg.files.storage import make_folder


class Log:
    """The log of a run.

    Parameters
    ----------
    accelerator
        With the same logger.
    logger
        ``tensorboard``, ``wandb``, or None for no log.
    project, name
        Of TensorBoard's folder or the project, and of the run.
    first_step
        What TensorBoard was told of later steps, before the run went on here, is taken back.
    """

    def __init__(self, accelerator: Accelerator, logger: str | None, project: str, name: str, first_step: int) -> None:
        self.accelerator, self.logger = accelerator, logger
        if logger is not None:
            folder = str(make_folder(accelerator.project_dir))
            options = {"tensorboard": {"purge_step": first_step}, "wandb": {"name": name, "dir": folder}}
            accelerator.init_trackers(project, init_kwargs={logger: options[logger]})

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by their names."""
        if self.logger is not None:
            self.accelerator.log(dict(values), step=step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Log a picture."""
        if self.logger is not None and self.accelerator.is_main_process:
            pixels = np.asarray(picture.convert("RGB"))[None]
            options = {"dataformats": "NHWC"} if self.logger == "tensorboard" else {}
            self.accelerator.trackers[0].log_images({name: pixels}, step=step, **options)

    def close(self) -> None:
        """Write what is still in buffers, and close the log."""
        if self.logger is not None:
            self.accelerator.end_training()
