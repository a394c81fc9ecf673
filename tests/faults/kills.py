"""Commands and trainings that are killed on the way: started again, they end as if they had not been."""

import functools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eagle_layouts import scenes, write_directory
from eagle_runs import SCRIPTS, data_overrides
from localization_data import write_table
from objectloc import command
from running import as_flags, forked, run_here, write_pictures
from semanticseg import self_training

COUNT = 24  # images
SELF_TRAINING = "model.backbone=test_vit model.weights=random device=cpu data.transform.resize_size=64 logger=null"
SELF_TRAINING += " data.transform.crop_size=48 data.loader.batch_size=2 data.loader.num_workers=0 visualize=0"
SELF_TRAINING += " max_train_steps=6 evaluate_every=2 checkpoint_every=1 model.unfrozen_backbone_layers=-1"
DIFFERENT = (".html", ".log", ".yaml", ".jsonl")  # they hold times or the folder's name
TIMED = ("stage.json", "settings.json")


Work = Callable[[], None]


def fuzz_kills(count: int, seed: int) -> Counter[str]:
    """``count`` kills, by SIGKILL, SIGTERM or SIGINT, one command after another.

    Each runs in a process that is forked from this one, where everything is imported.
    """
    counts: Counter[str] = Counter()
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root, width=160, height=128)
        lengths = {}
        for name, work in targets(root, root / "whole", root / "whole").items():
            started = time.monotonic()
            if (code := run(work, root / "log")) != 0:
                raise RuntimeError(f"{name} fails by itself ({code}): {(root / 'log').read_text()}")
            lengths[name] = time.monotonic() - started
        for number in range(count):
            killed = targets(root, root / "killed", root / "whole")
            name = list(killed)[number % len(killed)]
            shutil.rmtree(root / "killed", ignore_errors=True)
            kind = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            code = run(killed[name], root / "log", kind, draw.uniform(0, lengths[name]))
            counts["killed at work" if code else "were done"] += 1
            said = (root / "log").read_text()
            again = run(killed[name], root / "log")
            said += (root / "log").read_text()
            expected, found = contents(root / "whole" / name), contents(root / "killed" / name)
            if again != 0 or expected != found or "Traceback" in said:
                counts["wrong"] += 1
                differ = sorted(key for key in expected | found if expected.get(key) != found.get(key))[:5]
                print(f"kills, --seed {seed}, {number}: {name} by {kind.name}: {differ} {said[-900:]}", file=sys.stderr)
    return counts


def run(work: Work, log: Path, kind: signal.Signals | None = None, after: float = 0) -> int | None:
    """Exit code of a command in a process of its own, to which a signal is sent after some seconds."""
    process = forked(work, log)
    if kind is not None:
        process.join(after)
        if process.exitcode is None:
            os.kill(process.pid, kind)
    process.join(300)
    if process.is_alive():
        process.kill()
        raise RuntimeError(f"hangs: {log.read_text()}")
    return process.exitcode


def prepare(root: Path, count: int = COUNT, **size: int) -> None:
    """Images with their list and boxes, scenes for EAGLE, and VOC's layout with label maps for self-training."""
    images = write_pictures(root / "images", count, **size)
    names = [f"image{number}" for number in range(count)]
    (root / "list.txt").write_text("".join(f"{name}.png\n" for name in names))
    write_table(root / "table.csv", {f"{name}.png": [(3, 4, 20, 20)] for name in names})
    write_directory(root / "data" / "scenes", {"train": scenes(4, width=48, height=48), "val": scenes(2)})
    voc = root / "voc" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "../../segmaps"):
        (voc / folder).mkdir(parents=True)
    for number, name in enumerate(names[:12]):
        with Image.open(images / f"{name}.png") as photograph:
            photograph.save(voc / "JPEGImages" / f"{name}.jpg")
            labels = Image.fromarray(np.uint8(np.asarray(photograph)[..., 0] > 110) * np.uint8(8 + 4 * (number % 2)))
        labels.save(voc / "SegmentationClass" / f"{name}.png")
        labels.save(root / "voc" / "segmaps" / f"{name}.png")
    held_out = names[: count // 6 or 1]
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{name}\n" for name in held_out))


def self_trained(root: Path) -> list[str]:
    """Overrides of a self-training."""
    return [*SELF_TRAINING.split(), f"data.root={root / 'voc'}", f"segments_dir={root / 'voc' / 'segmaps'}"]


def eagle_trained(root: Path) -> list[str]:
    """Overrides of EAGLE's training."""
    few = {"res": 48, "val_res": 48, "batch_size": 2, "checkpoint_freq": 1, "max_steps": 8, "dim": 8}
    return data_overrides(root / "data", "scenes", 3) + [f"{name}={value}" for name, value in few.items()]


def targets(root: Path, output: Path, made: Path) -> dict[str, Work]:
    """Name of what each command writes below ``output`` -> the command, which reads from ``root`` and ``made``."""
    images = root / "images"
    listed = {"images_list": root / "list.txt", "images_root": images}
    features, segments = {"features_dir": made / "features"}, {"segmentations_dir": made / "segments"}
    both = features | {"eigs_dir": made / "eigs"}
    sharp = {"downsample_factor": 8, "num_classes": 4, "crf_backend": "torch", "it": 1}
    by = {"images_root": images, "model_name": "lab_hog8", "bbox_file": made / "boxes" / "all.pth"}
    described, clusters = made / "described" / "all.pth", made / "clusters" / "all.pth"
    commands: dict[str, tuple[str, dict[str, Any]]] = {
        "features": ("extract_features", listed | {"model_name": "lab_hog8"}),
        "eigs": ("extract_eigs", {"images_root": images, "K": 4, "image_color_lambda": 1, **features}),
        "masks": ("extract_single_region_segmentations", both),
        "segments": ("extract_multi_region_segmentations", both),
        "sharp": ("extract_crf_segmentations", listed | segments | sharp),
        "objects": ("extract_objects", listed | features | {"crf": False}),
        "pages": ("vis_objects", {"images_root": images, "objects_file": made / "objects" / "objects.json"}),
        "sheets": ("vis_eigs", {"images_root": images} | both),
        "boxes": ("extract_bboxes", features | segments),
        "described": ("extract_bbox_features", by),
        "clusters": ("extract_bbox_clusters", {"bbox_features_file": described, "num_clusters": 2}),
        "semantic": ("extract_semantic_segmentations", segments | {"bbox_clusters_file": clusters}),
        "run": ("run", {"images": images, "model_name": "lab_hog8", "crf": False}),
    }
    found: dict[str, Work] = {}
    for name, (script, flags) in commands.items():
        is_file = script.startswith("extract_bbox")
        target = {"output_file": output / name / "all.pth"} if is_file else {"output_dir": output / name}
        target = {"output": output / name} if name == "run" else target
        found[name] = functools.partial(run_here, script, **flags, **target)
    own = as_flags(dataset="folder", images_root=images, annotations=root / "table.csv", which_matrix="laplacian")
    own += as_flags(precomputed_eigs_dir=made / "eigs", output_dir=output / "localized", name="x")
    found["localized"] = functools.partial(command.main, [*own, "--eigenseg"])
    eagle = [*eagle_trained(root), f"hydra.run.dir={output / 'eagle'}"]
    found["eagle"] = functools.partial(SCRIPTS["train_segmentation_eigen"].main, eagle)
    demo = {"model_path": made / "eagle" / "last.pth", "image_dir": images, "res": 48, "run_crf": False}
    demo |= {"device": "cpu", "hydra.run.dir": output / "shown"}
    found["shown"] = functools.partial(SCRIPTS["demo_segmentation"].main, [f"{key}={demo[key]}" for key in demo])
    found["self"] = functools.partial(self_training.main, [*self_trained(root), f"hydra.run.dir={output / 'self'}"])
    return found


def contents(path: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all files but those that hold times."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in TIMED)
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.suffix not in DIFFERENT}
