"""Commands and trainings that are killed on the way: started again, they end as if they had not been."""

import functools
import multiprocessing
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
from objectloc import command
from running import as_flags, run_here, write_pictures
from semanticseg import self_training

COUNT = 24  # images
SELF_TRAINING = "model.backbone=test_vit model.weights=random device=cpu data.transform.resize_size=64 logger=null"
SELF_TRAINING += " data.transform.crop_size=48 data.loader.batch_size=4 data.loader.num_workers=0 visualize=0"
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
        prepare(root)
        lengths = {}
        for name, work in targets(root, root / "whole").items():
            started = time.monotonic()
            if (code := run(work, root / "log")) != 0:
                raise RuntimeError(f"{name} fails by itself ({code}): {(root / 'log').read_text()}")
            lengths[name] = time.monotonic() - started
        for number in range(count):
            killed = targets(root, root / "killed")
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
    process = multiprocessing.get_context("fork").Process(target=_logged, args=(work, log))
    process.start()
    assert process.pid is not None
    if kind is not None:
        process.join(after)
        if process.exitcode is None:
            os.kill(process.pid, kind)
    process.join(300)
    if process.is_alive():
        process.kill()
        raise RuntimeError(f"hangs: {log.read_text()}")
    return process.exitcode


def _logged(work: Work, log: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    work()


def prepare(root: Path, count: int = COUNT) -> None:
    """Images with their list, scenes for EAGLE, and VOC's layout with label maps for self-training."""
    images = write_pictures(root / "images", count, width=160, height=128)
    (root / "list.txt").write_text("".join(f"image{number}.png\n" for number in range(count)))
    write_directory(root / "data" / "scenes", {"train": scenes(6), "val": scenes(2)})
    voc = root / "voc" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "../../segmaps"):
        (voc / folder).mkdir(parents=True)
    for number in range(min(count, 12)):
        with Image.open(images / f"image{number}.png") as photograph:
            photograph.save(voc / "JPEGImages" / f"image{number}.jpg")
            labels = Image.fromarray(np.uint8(np.asarray(photograph)[..., 0] > 110) * np.uint8(8 + 4 * (number % 2)))
        labels.save(voc / "SegmentationClass" / f"image{number}.png")
        labels.save(root / "voc" / "segmaps" / f"image{number}.png")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text(
        "".join(f"image{number}\n" for number in range(count // 6 or 1))
    )


def targets(root: Path, output: Path) -> dict[str, Work]:
    """Name of what each command writes below ``output`` -> the command, which reads what lies in ``whole``."""
    whole, images = root / "whole", root / "images"
    listed = {"images_list": root / "list.txt", "images_root": images}
    features, segments = {"features_dir": whole / "features"}, {"segmentations_dir": whole / "segments"}
    both = features | {"eigs_dir": whole / "eigs"}
    sharp = {"downsample_factor": 8, "num_classes": 4, "crf_backend": "torch"}
    by = {"images_root": images, "model_name": "lab_hog8", "bbox_file": whole / "boxes" / "all.pth"}
    described, clusters = whole / "described" / "all.pth", whole / "clusters" / "all.pth"
    commands: dict[str, tuple[str, dict[str, Any]]] = {
        "features": ("extract_features", listed | {"model_name": "lab_hog8"}),
        "eigs": ("extract_eigs", {"images_root": images, "K": 5, **features}),
        "masks": ("extract_single_region_segmentations", both),
        "segments": ("extract_multi_region_segmentations", both),
        "sharp": ("extract_crf_segmentations", listed | segments | sharp),
        "objects": ("extract_objects", listed | features | {"crf": False}),
        "sheets": ("vis_eigs", {"images_root": images, "eigs_dir": whole / "eigs"}),
        "boxes": ("extract_bboxes", features | segments),
        "described": ("extract_bbox_features", by),
        "clusters": ("extract_bbox_clusters", {"bbox_features_file": described, "num_clusters": 3}),
        "semantic": ("extract_semantic_segmentations", segments | {"bbox_clusters_file": clusters}),
        "run": ("run", {"images": images, "model_name": "lab_hog8", "crf": False}),
    }
    found: dict[str, Work] = {}
    for name, (script, flags) in commands.items():
        is_file = script.startswith("extract_bbox")
        target = {"output_file": output / name / "all.pth"} if is_file else {"output_dir": output / name}
        target = {"output": output / name} if name == "run" else target
        found[name] = functools.partial(run_here, script, **flags, **target)
    own = as_flags(dataset="folder", images_root=images, output_dir=output / "localized")
    own += [*as_flags(precomputed_eigs_dir=whole / "eigs"), "--eigenseg", "--no_evaluation", "--which_matrix=laplacian"]
    found["localized"] = functools.partial(command.main, own)
    eagle = [*data_overrides(root / "data", "scenes", 3), "max_steps=8", "res=48", "val_res=48"]
    eagle.append(f"hydra.run.dir={output / 'eagle'}")
    found["eagle"] = functools.partial(SCRIPTS["train_segmentation_eigen"].main, eagle)
    demo = {"model_path": whole / "eagle" / "last.pth", "image_dir": images, "res": 48, "run_crf": False}
    demo |= {"device": "cpu", "hydra.run.dir": output / "shown"}
    found["shown"] = functools.partial(SCRIPTS["demo_segmentation"].main, [f"{key}={demo[key]}" for key in demo])
    voc = [f"data.root={root / 'voc'}", f"segments_dir={root / 'voc' / 'segmaps'}", f"hydra.run.dir={output / 'self'}"]
    found["self"] = functools.partial(self_training.main, [*SELF_TRAINING.split(), *voc])
    return found


def contents(path: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all files but those that hold times."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in TIMED)
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.suffix not in DIFFERENT}
