"""Commands and trainings that are killed on the way: started again, they end as if they had not been."""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eagle_layouts import scenes, write_directory
from eagle_runs import EAGLE, data_overrides
from running import as_flags, command_line, start_command, write_pictures
from shared_data import PROJECT

COUNT = 24  # images
SELF_TRAINING = "model.backbone=test_vit model.weights=random device=cpu data.transform.resize_size=64 logger=null"
SELF_TRAINING += " data.transform.crop_size=48 data.loader.batch_size=4 data.loader.num_workers=0 visualize=0"
SELF_TRAINING += " max_train_steps=6 evaluate_every=2 checkpoint_every=1 model.unfrozen_backbone_layers=-1"
DIFFERENT = (".html", ".log", ".yaml", ".jsonl", ".json")  # they hold times


def fuzz_kills(count: int, seed: int) -> Counter[str]:
    """``count`` kills, by SIGKILL, SIGTERM or SIGINT, one command after another."""
    counts: Counter[str] = Counter()
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        for name, words in targets(root, root / "whole").items():
            process = start_command(words)
            said = process.communicate(timeout=600)[1]
            if process.returncode:
                raise RuntimeError(f"{name} fails by itself: {said}")
        for number in range(count):
            killed = targets(root, root / "killed")
            name = list(killed)[number % len(killed)]
            shutil.rmtree(root / "killed", ignore_errors=True)
            kind = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            counts["killed at work" if kill(killed[name], root / "killed" / name, kind, draw) else "were done"] += 1
            again = start_command(killed[name])
            said = again.communicate(timeout=600)[1]
            expected, found = contents(root / "whole" / name), contents(root / "killed" / name)
            if again.returncode or expected != found:
                counts["wrong"] += 1
                differ = sorted(key for key in expected | found if expected.get(key) != found.get(key))[:5]
                print(f"kills, --seed {seed}, {number}: {name} by {kind.name}: {differ} {said[-300:]}", file=sys.stderr)
    return counts


def kill(words: list[str], target: Path, kind: signal.Signals, draw: random.Random) -> bool:
    """Start a command and kill it when a random share of its files is there; whether it was still at work."""
    process, share = start_command(words), draw.random()
    while process.poll() is None and not (target.exists() and len(os.listdir(target)) > share * COUNT):
        time.sleep(0.002)
        if target.is_file():
            break
    time.sleep(draw.choice((0, 0.01, 0.1, 0.5)))
    process.send_signal(kind)
    process.communicate(timeout=60)
    return process.returncode != 0


def prepare(root: Path) -> None:
    """Images with their list, scenes for EAGLE, and VOC's layout with label maps for self-training."""
    images = write_pictures(root / "images", COUNT, width=160, height=128)
    (root / "list.txt").write_text("".join(f"image{number}.png\n" for number in range(COUNT)))
    write_directory(root / "data" / "scenes", {"train": scenes(6), "val": scenes(2)})
    voc = root / "voc" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "../../segmaps"):
        (voc / folder).mkdir(parents=True)
    for number in range(12):
        with Image.open(images / f"image{number}.png") as photograph:
            photograph.save(voc / "JPEGImages" / f"image{number}.jpg")
            labels = Image.fromarray(np.uint8(np.asarray(photograph)[..., 0] > 110) * np.uint8(8 + 4 * (number % 2)))
        labels.save(voc / "SegmentationClass" / f"image{number}.png")
        labels.save(root / "voc" / "segmaps" / f"image{number}.png")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"image{number}\n" for number in range(4)))


def targets(root: Path, output: Path) -> dict[str, list[str]]:
    """Name of what each command writes below ``output`` -> the command, which reads what lies in ``whole``."""
    whole, images = root / "whole", root / "images"
    listed = {"images_list": root / "list.txt", "images_root": images}
    features, segments = {"features_dir": whole / "features"}, {"segmentations_dir": whole / "segments"}
    both, two = features | {"eigs_dir": whole / "eigs"}, {"multiprocessing": 2}
    plain = {"images": images, "output": output / "run", "model_name": "lab_hog8", "crf": False}
    sharp = {"downsample_factor": 8, "num_classes": 4, "crf_backend": "torch"}
    commands: dict[str, tuple[str, dict[str, Any]]] = {
        "features": ("extract_features", listed | {"model_name": "lab_hog8"}),
        "eigs": ("extract_eigs", {"images_root": images, "K": 5, **features, **two}),
        "masks": ("extract_single_region_segmentations", both),
        "segments": ("extract_multi_region_segmentations", both | two),
        "sharp": ("extract_crf_segmentations", listed | segments | sharp | two),
        "objects": ("extract_objects", listed | features | {"crf": False}),
        "sheets": ("vis_eigs", {"images_root": images, "eigs_dir": whole / "eigs"}),
    }
    found = {
        name: command_line(script, *as_flags(**flags, output_dir=output / name))
        for name, (script, flags) in commands.items()
    }
    found["run"] = command_line("run", *as_flags(**plain))
    eagle = ["max_steps=8", "res=48", "val_res=48", f"hydra.run.dir={output / 'eagle'}"]
    script = [sys.executable, str(EAGLE / "train_segmentation_eigen.py")]
    found["eagle"] = [*script, *data_overrides(root / "data", "scenes", 3), *eagle]
    voc = [f"data.root={root / 'voc'}", f"segments_dir={root / 'voc' / 'segmaps'}", f"hydra.run.dir={output / 'self'}"]
    script = [sys.executable, str(PROJECT / "semantic-segmentation" / "train.py")]
    found["self"] = [*script, *SELF_TRAINING.split(), *voc]
    return found


def contents(path: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all files but those that hold times."""
    files = (file for file in path.rglob("*") if file.is_file() and file.suffix not in DIFFERENT)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
