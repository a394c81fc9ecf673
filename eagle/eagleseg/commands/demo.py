r"""Segment a folder of photographs with a trained model.

    cd eagle
    python demo_segmentation.py model_path=../outputs/eagle/photographs/best.pth image_dir=../data/samples/images

Settings are explained in configs/eagle/demo_config.yml. For each photograph, outputs/eagle/<experiment_name> gets, at
its size, cluster/<id>.png (numbers of clusters, or of classes where the training had labels to match them with),
overlays/<id>.png with a legend and, from a model trained with labels, linear/<id>.png. Started again, it goes on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from eagleseg.checkpoints.trained import Trained, load_trained
from eagleseg.data.dataset import EagleDataset, image_folder
from eagleseg.evaluation.evaluate import Probabilities, eagle_crf, label_maps, of_one
from eagleseg.evaluation.photographs import enlarged, label_names, whole
from eagleseg.evaluation.pictures import with_legend
from eagleseg.evaluation.scores import as_classes
from spectralseg.errors import InputError
from spectralseg.files.label_maps import save_labels
from spectralseg.files.storage import make_folder, remove_leftovers, save_picture
from spectralseg.mathematics.crf import BACKENDS, CrfSettings
from spectralseg.models.weights import fingerprint
from spectralseg.running.devices import pick_device
from spectralseg.running.hydra_app import run, run_folder, to_settings
from spectralseg.running.stage import Stage
from spectralseg.running.workers import stream
from spectralseg.settings import Settings, setting


@dataclass
class DemoSettings(Settings):
    """The whole config."""

    model_path: str
    image_dir: str
    experiment_name: str = "demo"
    overwrite: bool = False
    weights: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    res: int = setting(320, least=1)
    flip: bool = True
    run_crf: bool = True
    crf_processes: int = setting(0, least=0)
    crf_backend: str = setting("auto", choices=BACKENDS)
    max_side: int = setting(1024, least=1)


@dataclass
class Job:
    """What is left to do for a photograph when the network is through with it, in whatever process."""

    id: str
    photograph: Image.Image
    probabilities: Probabilities | None = None
    problem: str | None = None


@dataclass
class Finish:
    """CRF, files and pictures of a photograph: a picklable function of a :class:`Job`."""

    folder: Path
    crf: CrfSettings | None
    names: dict[str, list[str]]  # of the labels of each probe
    match: dict[int, int] = field(default_factory=dict)

    def __call__(self, job: Job) -> tuple[str, str | None]:
        """Write the results; return id and, if something is wrong with this photograph, what."""
        if job.probabilities is None:
            return job.id, job.problem
        maps = label_maps(job.probabilities, self.crf)
        if self.match:
            maps["cluster"] = as_classes(maps["cluster"], self.match)
        for probe in sorted(self.names, reverse=True):  # 'cluster' last: it says that the photograph is done
            labels = enlarged(maps[probe], job.photograph.size)
            if probe == "cluster":
                save_picture(
                    make_folder(self.folder / "overlays") / f"{job.id}.png",
                    with_legend(job.photograph, labels, self.names[probe]),
                )
            void = len(self.names[probe])  # clusters without a class get the number after the last
            save_labels(make_folder(self.folder / probe) / f"{job.id}.png", np.where(labels < 0, void, labels))
        return job.id, None


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run(segment, "eagle/demo_config", argv)


def segment(config: DictConfig) -> None:
    """Segment all photographs of the folder."""
    settings = to_settings(config, DemoSettings)
    photographs = image_folder(settings.image_dir, settings.res)
    trained = load_trained(settings.model_path, pick_device(settings.device), settings.weights, settings.dtype)
    folder = run_folder()
    processes = settings.crf_processes if settings.run_crf else 0
    crf = eagle_crf(settings.crf_backend, trained.device, processes) if settings.run_crf else None
    stage = Stage(
        "demo_segmentation",
        folder / "cluster",
        ".png",
        {
            "model": fingerprint(settings.model_path),
            **{name: getattr(settings, name) for name in ("res", "flip", "run_crf", "max_side")},
            **({"crf_backend": crf.crf_backend} if crf else {}),
        },
        settings.overwrite,
    )
    remove_leftovers(folder, below=True)  # of overlays and of the other probe
    numbers = {image_id: index for index, image_id in enumerate(photographs.ids)}
    pending = stage.begin(numbers)
    jobs = _jobs(trained, photographs, [numbers[image_id] for image_id in pending], settings)
    finish = Finish(folder, crf, label_names(trained), trained.match)
    with stage.working():
        for image_id, problem in stream(finish, jobs, processes):
            if problem is None:
                stage.done(image_id)
            else:
                stage.failed(image_id, problem)
    stage.finish()


def _jobs(trained: Trained, photographs: EagleDataset, numbers: list[int], settings: DemoSettings) -> Iterator[Job]:
    processes = settings.crf_processes if settings.run_crf else 0
    for number in numbers:
        image_id = photographs.ids[number]
        try:
            photograph = photographs.photograph(number)
            found = whole(trained, photograph, settings.res, settings.flip, settings.max_side)
            probes = {
                name: of_one(torch.as_tensor(values)[None], 0, processes) for name, values in found.probes.items()
            }
        except InputError as error:
            yield Job(image_id, Image.new("RGB", (1, 1)), problem=str(error))
            continue
        yield Job(image_id, photograph, Probabilities(found.image, probes))
