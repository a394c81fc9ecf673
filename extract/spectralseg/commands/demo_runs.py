"""What ``demo`` shows: runs on one photograph, of which each computes only what it does not share with earlier ones.

A run works through the stages of ``run`` and ``extract_objects`` in a folder of its own. Folders of stages that earlier
runs made from the same settings are linked into it first, so the stages find their files there, as when a command is
started again. So the files are those that :func:`command_lines` write.
"""

import functools
import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Hashable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from spectralseg.api import Segmentation, object_box, preset_of
from spectralseg.commands.features import FeatureSettings
from spectralseg.commands.objects import ALL, ObjectSettings, extract_objects
from spectralseg.commands.run import Folders, RunSettings, run_stages
from spectralseg.errors import InputError
from spectralseg.files.images import load_image
from spectralseg.files.label_maps import load_labels, load_soft, upscale_labels
from spectralseg.files.names import check_id
from spectralseg.files.records import load_eigs
from spectralseg.files.storage import load_json, make_folder
from spectralseg.models.backbones import Backbone, load_backbone
from spectralseg.models.tokens import TokenExtractor
from spectralseg.running.devices import pick_device


@dataclass(frozen=True)
class Choices:
    """A photograph, and settings of which none is left to its default by the backbone."""

    photograph: Path
    features: FeatureSettings
    run: RunSettings
    objects: ObjectSettings | None = None

    def made_from(self) -> dict[str, tuple[Hashable, ...]]:
        """By folder of a run, all that decides what it holds."""
        features, run = (self.photograph, self.features), self.run
        eigs = (*features, run.which_matrix, run.K, run.image_color_lambda)
        return {
            "images": (self.photograph, self.features.model_name),
            "features": features,
            "eigs": eigs,
            "single_region_segmentation": (*eigs, run.foreground, run.crf),
            "multi_region_segmentation": (*eigs, run.num_segments, run.crf),
            "objects": (*features, self.objects),
        }


@dataclass(frozen=True)
class Result:
    """What a run found, at the size of its working copy; masks (H, W) bool of the objects; seconds by stage."""

    segmentation: Segmentation
    objects: list[np.ndarray]
    seconds: dict[str, float]


@functools.lru_cache(maxsize=2)
def backbone_of(model_name: str, weights: str | None, device: str) -> Backbone:
    """:func:`load_backbone`, once."""
    return load_backbone(model_name, weights, pick_device(device))


class Workplace:
    """A temporary folder of photographs and runs, gone when the process ends; one run works at a time."""

    def __init__(self, device: str = "auto") -> None:
        self.device = device
        self._temporary = tempfile.TemporaryDirectory(prefix="spectralseg-demo-")
        self.root = Path(self._temporary.name)
        self._lock = threading.RLock()
        self._runs: dict[Choices, tuple[Path, Result]] = {}
        self._donors: dict[tuple[Hashable, ...], Path] = {}

    def keep(self, name: str, content: bytes) -> Path:
        """The path of an uploaded photograph; an :class:`InputError` where its name is none for a file."""
        name = name.replace("\\", "/").rpartition("/")[2]
        check_id(Path(name).stem)
        path = make_folder(self.root / sha256(content).hexdigest()) / name
        path.write_bytes(content)
        return path

    def result(self, choices: Choices) -> Result:
        """The result of a run, which is there already or done now; an :class:`InputError` says why there is none."""
        with self._lock:
            if choices not in self._runs:
                folder = Path(tempfile.mkdtemp(prefix="run", dir=self.root))
                for name, key in choices.made_from().items():
                    if donor := self._donors.get((name, *key)):
                        shutil.copytree(donor / name, folder / name, copy_function=os.link)
                try:
                    self._runs[choices] = folder, self._stages(choices, folder)
                except InputError as error:
                    shutil.rmtree(folder)
                    reasons = getattr(error, "failures", {}).values()
                    raise InputError(next(iter(reasons), str(error))) from None
                made = {(name, *key): folder for name, key in choices.made_from().items() if (folder / name).exists()}
                self._donors |= made
            return self._runs[choices][1]

    def file(self, choices: Choices, name: str) -> bytes:
        """A file of a run's folder; those at the size of the photograph are only now made."""
        with self._lock:
            self.result(choices)
            folder = self._runs[choices][0]
            if not (folder / name).exists():
                self._stages(choices, folder, results=True)
            return (folder / name).read_bytes()

    def _stages(self, choices: Choices, folder: Path, results: bool = False) -> Result:
        features, device, seconds = choices.features, self.device, dict[str, float]()
        backbone = backbone_of(features.model_name, features.weights, device)
        extractor = TokenExtractor(backbone, parts=features.which_features)
        how = {"device": device, "extractor": extractor, "seconds": seconds, "results": results}
        how["keep_features"] = True
        run_stages(str(choices.photograph), folder, features, choices.run, **how)  # type: ignore[arg-type]
        if choices.objects is not None:
            started = time.perf_counter()
            images_list, root, of, to = (str(folder / name) for name in ("images.txt", "images", "features", "objects"))
            extract_objects(images_list, root, of, to, choices.objects, device=device)
            seconds["extract_objects"] = time.perf_counter() - started
        return Result(*_read(choices, folder), seconds)


def _read(choices: Choices, folder: Path) -> tuple[Segmentation, list[np.ndarray]]:
    """What lies in a run's folder."""
    folders, name = Folders(folder), f"{choices.photograph.stem}.png"
    eigs, image = load_eigs(folders.eigs / f"{choices.photograph.stem}.pth"), load_image(folders.images / name)

    def at_pixels(sharp: Path, coarse: Path) -> np.ndarray:
        if choices.run.crf:
            return load_labels(sharp / name)
        return upscale_labels(load_labels(coarse / name), image.height, image.width, eigs["step"])

    mask = at_pixels(folders.mask_crf, folders.mask_patches) > 0
    segments = at_pixels(folders.segment_crf, folders.segment_patches)
    soft = None if choices.run.foreground == "eigenvector" else load_soft(folders.mask_soft / name)
    vectors = eigs["eigenvectors"].numpy().reshape(-1, *eigs["grid"])
    fields = (eigs["step"], mask, segments, object_box(mask), image, soft)
    found = [] if choices.objects is None else load_json(folder / "objects" / ALL)["annotations"]
    masks = [rle.decode(entry["segmentation"]).astype(bool) for entry in sorted(found, key=lambda one: -one["score"])]
    return Segmentation(eigs["eigenvalues"].numpy(), vectors, *fields), masks


def command_lines(choices: Choices, program: str, photograph: str) -> str:
    """The command lines that write the files of a run; ``photograph``: where the user has it."""
    features, output = choices.features, choices.photograph.stem
    preset = preset_of(features.model_name)
    usual = replace(RunSettings(), K=preset.K, which_matrix=preset.which_matrix, foreground=preset.foreground)
    flags = {"images": photograph, "output": output, "model_name": features.model_name, "weights": features.weights}
    lines = [f"{program} run {_flags(flags | _changes(usual, choices.run))}"]
    if choices.objects is not None:
        flags = {"images_list": f"{output}/images.txt", "images_root": f"{output}/images"}
        flags |= {"features_dir": f"{output}/features", "output_dir": f"{output}/objects"}
        lines.append(f"{program} extract_objects {_flags(flags | _changes(ObjectSettings(), choices.objects))}")
    return "\n".join(lines)


def _changes(usual: Any, settings: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value != getattr(usual, name)}


def _flags(values: dict[str, Any]) -> str:
    given = {name: value for name, value in values.items() if value is not None}
    quoted = {name: shlex.quote(str(value)) for name, value in given.items()}
    return " ".join(f"--no{name}" if given[name] is False else f"--{name}={quoted[name]}" for name in given)
