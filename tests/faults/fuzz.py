"""Damage for everything that reads: changed files for loaders and commands, names, kills.

    cd tests
    python -m faults.fuzz --files 10000 --commands 2000 --names 500 --kills 100

What is read, or refused in one line that names the file, is right. Anything else is printed with the seed that gives it
again, and the exit status is then 1. CI draws a few of each (test_fuzz.py); ``make fuzz`` draws many.
"""

import argparse
import contextlib
import copy
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eagle_runs import SCRIPTS, write_checkpoint
from eagleseg.checkpoints.files import BACKBONE_PREFIX, NAMES, load_checkpoint, published_checkpoint, read_any
from eagleseg.checkpoints.trained import model_of
from eagleseg.data.records import features_from_record
from faults import kills
from objectloc import coco, command, ground_truth
from objectseg.evaluation import evaluate
from running import as_flags, picture, run_here, write_pictures
from semanticseg import evaluation, self_training
from semanticseg.run_folder import load_model
from spectralseg.errors import InputError, OutputError
from spectralseg.files import records
from spectralseg.files.images import load_image, read_images_list
from spectralseg.files.label_maps import load_labels, load_soft
from spectralseg.files.storage import load_json
from spectralseg.models.weights import read_checkpoint
from spectralseg.running import hydra_app
from spectralseg.running.stage import check_origin, describe

SECONDS, BYTES = 20, 2 * 1024**3  # of this process's computing, for one file
VALUES: list[Any] = [None, True, -1, 0, 2**31, 2**70, 0.5, float("nan"), float("inf"), "", "\0", "../x", "/etc/passwd"]
VALUES += [[], [[]], {}, [1, 2], {"a": 1}, "x" * 5000, [[[1]]]]
TENSORS = [
    torch.tensor(float("nan")),
    torch.zeros(0),
    torch.zeros(2, 3, 4),
    torch.ones(2).long(),
    torch.zeros(1, 10**6),
]


# --- what is read ---------------------------------------------------------------------------------------------------


def prepare(root: Path) -> None:
    """Small pictures with the files of all stages, evaluations and trainings."""
    kills.prepare(root, count=4, width=48, height=32)
    (root / "voc" / "segmaps" / "stage.json").write_text('{"command": "made", "arguments": {}}')
    Image.fromarray(np.uint8(np.eye(32, 48)) * 255).save(root / "photograph.jpg")
    work = kills.targets(root, root, root)
    for name in MADE:
        work[name]()
    write_checkpoint(root / "eagle.pth")
    _write_published(root / "published.ckpt", torch.load(root / "eagle.pth", weights_only=True)["model"])
    torch.save({"blocks.0.attn.qkv.weight": torch.rand(6, 2), "norm.bias": torch.rand(2)}, root / "weights.pth")
    corners = "<xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax>"
    (root / "voc.xml").write_text(f"<annotation><object><bndbox>{corners}</bndbox></object></annotation>")
    found = {"file": "image0.png", "height": 32, "width": 48, "box": [0, 0, 3, 4.5]}
    (root / "found.json").write_text(json.dumps(found))
    size = {"width": 48, "height": 32}
    images = [{"id": number, "file_name": f"image{number}.png", **size} for number in range(4)]
    entry = {"bbox": [1, 2, 3, 4], "category_id": 1, "iscrowd": 0, "area": 12}
    annotations = [entry | {"id": number + 1, "image_id": number} for number in range(4)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (root / "coco.json").write_text(json.dumps(content))


MADE = ("features", "eigs", "masks", "segments", "boxes", "described", "clusters", "objects", "eagle", "self")


def _write_published(path: Path, model: dict[str, torch.Tensor]) -> None:
    """EAGLE's model as PyTorch Lightning wrote the published ones."""
    state = {}
    for theirs, ours in NAMES.items():
        prefix = theirs if theirs.endswith(".") else f"{theirs}_aug."
        state |= {prefix + name.removeprefix(ours): model[name] for name in model if name.startswith(ours)}
    state[f"{BACKBONE_PREFIX}cls_token"] = torch.zeros(1, 1, 3)
    settings = {"n_classes": 3, "cfg": {"model_type": "vit_small", "dino_patch_size": 8, "dim": 8}}
    about = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "1.8.0", "hyper_parameters": settings}
    torch.save(about | {"state_dict": state}, path)


def _features(path: Path) -> None:
    record = records.load_features(path)
    records.patch_features(record, "k", path)
    features_from_record(record, path)


def _objects(path: Path) -> None:
    records.check(load_json(path), records.OBJECTS_FILE, path)


def _published(path: Path) -> None:
    model_of(published_checkpoint(read_any(path), path), path)


def _stage(path: Path) -> None:
    describe(path.parent)
    check_origin(path.parent, patch=8, cell=8)


LOADERS: dict[str, Callable[[Path], object]] = {
    "features/image0.pth": _features,
    "features/stage.json": _stage,
    "eigs/image0.pth": records.load_eigs,
    "masks/image0.png": load_soft,
    "segments/image0.png": load_labels,
    "images/image0.png": load_image,
    "photograph.jpg": load_image,
    "list.txt": lambda path: read_images_list(path, path.parent / "images"),
    "boxes/all.pth": records.load_list,
    "described/all.pth": lambda path: records.load_list(path, ["features"]),
    "clusters/all.pth": lambda path: records.load_list(path, ["clusters"]),
    "objects/objects.json": _objects,
    "objects/image0.objects.json": lambda path: records.check(load_json(path), records.OBJECTS, path),
    "eagle.pth": lambda path: model_of(load_checkpoint(path), path),
    "weights.pth": read_checkpoint,
    "eagle/last.pth": lambda path: records.check(load_checkpoint(path), records.EAGLE_RUN, path),
    "found.json": lambda path: records.check(load_json(path), records.FOUND_BOX, path),
    "voc.xml": ground_truth.voc_boxes,
    "coco.json": coco.read_coco_boxes,
    "table.csv": ground_truth.read_table,
    "published.ckpt": _published,
    "self/checkpoint-latest.pth": load_model,
}


def change_bytes(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Bits turned, a part lost, emptied, doubled, or in place of it a part of another file."""
    changed = bytearray(content)
    start = draw.randrange(len(changed) + 1)
    stop = min(len(changed), start + draw.choice((1, 4, 16, 64, 512)))
    kind = draw.randrange(6)
    if kind == 0:
        for _ in range(draw.choice((1, 2, 8, 32))):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del changed[start:]
    elif kind == 2:
        changed[start:stop] = bytes(stop - start)
    elif kind == 3:
        changed[start:start] = changed[start:stop] * draw.choice((1, 3))
    elif kind == 4:
        changed[start:stop] = other[start:stop]
    else:
        del changed[start:stop]
    return bytes(changed)


def change_value(value: Any, draw: random.Random) -> Any:
    """A value somewhere in it replaced by another, or left out."""
    if isinstance(value, dict | list | tuple) and value and draw.random() < 0.85:
        copied = dict(value) if isinstance(value, dict) else list(value)
        key = draw.choice(list(copied) if isinstance(copied, dict) else range(len(copied)))
        if draw.random() < 0.15:
            del copied[key]
        else:
            copied[key] = change_value(copied[key], draw)
        return tuple(copied) if isinstance(value, tuple) else copied
    return copy.deepcopy(draw.choice(VALUES))


def change_file(path: Path, draw: random.Random, other: bytes) -> None:
    """One of the ways to change a file: its bytes, those of the pickle inside, or a field."""
    content = path.read_bytes()
    if path.suffix in (".pth", ".ckpt") and draw.random() < 0.3:
        with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(path, "w") as after:
            for name in before.namelist():
                inner = before.read(name)
                after.writestr(name, change_bytes(inner, draw, other) if name.endswith("data.pkl") else inner)
    elif path.suffix in (".pth", ".ckpt") and draw.random() < 0.8:
        changed = change_value(torch.load(io.BytesIO(content), weights_only=True), draw)
        if draw.random() < 0.3 and isinstance(changed, dict) and changed:
            changed[draw.choice(list(changed))] = draw.choice(TENSORS)
        torch.save(changed, path)
    elif path.suffix == ".json" and draw.random() < 0.6:
        path.write_text(json.dumps(change_value(json.loads(content), draw)))
    else:
        path.write_bytes(change_bytes(content, draw, other))


# --- what may come of it --------------------------------------------------------------------------------------------


class Wrong(Exception):
    """Neither a result nor one line."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises :class:`Wrong` for whatever takes too long or too much."""

    def late(*_: object) -> None:
        raise Wrong(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    if 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) > BYTES:
        raise Wrong("took more than 2 GB")


def refusal(work: Callable[[], object]) -> str:
    """The one line that it is refused with, or an empty one; raises :class:`Wrong`."""
    try:
        with warnings.catch_warnings(), watched():
            warnings.simplefilter("ignore")
            work()
    except (InputError, OutputError) as error:
        if "\n" in str(error):
            raise Wrong(f"more than a line: {error}") from error
        return str(error)
    except SystemExit as stop:
        if isinstance(stop.code, str) and stop.code.startswith("error: ") and "\n" not in stop.code:
            return stop.code
        raise Wrong(f"ended with {stop.code!r}") from stop
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(traceback.format_exc(limit=-3)) from error
    return ""


def state(root: Path) -> dict[str, int]:
    """Relative path -> time of the last change, of all files."""
    folders = ((os.path.relpath(folder, root), folder, names) for folder, _, names in os.walk(root))
    return {f"{below}/{name}": os.stat(f"{at}/{name}").st_mtime_ns for below, at, names in folders for name in names}


LATEST, VOC, LABEL = "self/checkpoint-latest.pth", "voc/VOCdevkit/VOC2012", "data/scenes/labels/val/scene0.png"
READS = {
    "features": ["list.txt", "images/image0.png"],
    "eigs": ["features/image0.pth", "features/stage.json", "images/image0.png"],
    "masks": ["eigs/image0.pth", "features/image0.pth", "eigs/stage.json"],
    "segments": ["eigs/image0.pth", "features/image0.pth", "eigs/stage.json"],
    "boxes": ["segments/image0.png", "features/image0.pth", "segments/stage.json"],
    "described": ["boxes/all.pth", "images/image0.png"],
    "clusters": ["described/all.pth"],
    "semantic": ["clusters/all.pth", "segments/image0.png"],
    "sharp": ["segments/image0.png", "images/image0.png", "list.txt"],
    "objects": ["features/image0.pth", "list.txt"],
    "sheets": ["eigs/image0.pth", "features/image0.pth", "images/image0.png"],
    "pages": ["objects/objects.json", "images/image0.png"],
    "run": ["images/image0.png"],
    "localized": ["eigs/image0.pth", "images/image0.png", "table.csv"],
    "localized again": ["found.json"],
    "shown": ["eagle/last.pth", "images/image0.png"],
    "average precision": ["objects/objects.json", "coco.json"],
    "scores of masks": ["masks/image0.png", "segments/image0.png"],
    "scores of eagle": ["eagle/last.pth", LABEL],
    "eagle again": ["eagle/last.pth", "eagle/settings.json", "eagle/metrics.jsonl"],
    "self again": [LATEST],
    "predictions": [LATEST, f"{VOC}/ImageSets/Segmentation/val.txt"],
    "label maps": [
        f"{VOC}/ImageSets/Segmentation/val.txt",
        f"{VOC}/SegmentationClass/image0.png",
        "voc/segmaps/image0.png",
    ],
}


def commands(root: Path) -> dict[str, tuple[list[str], Callable[[], object]]]:
    """Name -> the files that it reads, and the command, which writes below ``out`` alone."""
    out = root / "out"
    work: dict[str, Callable[[], object]] = {**kills.targets(root, out, root)}

    def from_boxes() -> None:
        work["localized"]()
        shutil.copyfile(root / "found.json", out / "localized" / "folder_images" / "x" / "boxes" / "image0.box.json")
        work["localized"]()

    def train_on() -> None:
        shutil.copytree(root / "eagle", out / "eagle")
        arguments = [*kills.eagle_trained(root), "max_steps=9", f"hydra.run.dir={out / 'eagle'}"]
        SCRIPTS["train_segmentation_eigen"].main(arguments)

    def self_train_on() -> None:
        shutil.copytree(root / "self", out / "self")
        work["self"]()

    ap = as_flags(objects=root / "objects" / "objects.json", dataset="folder", images_root=root / "images")
    ap += as_flags(annotations=root / "coco.json", output_dir=out)
    masks = [f"data_root={root}", f"predictions.root={root}", "predictions.run=masks", f"hydra.run.dir={out}"]
    masks.append("data=[{name: own, folder: ., images_dir: images, labels_dir: segments}]")
    labelled = [
        f"model_path={root / 'eagle' / 'last.pth'}",
        f"pytorch_data_dir={root / 'data'}",
        "device=cpu",
        "res=32",
    ]
    labelled += ["run_crf=false", "num_workers=0", "pictures=0", f"hydra.run.dir={out}"]
    predicted = [*kills.self_trained(root), "job_type=generate", f"checkpoint={root / LATEST}"]
    predicted += [f"generate_dir={out / 'made'}", f"generate_list={root / VOC}/ImageSets/Segmentation/val.txt"]
    scored = [*kills.self_trained(root)[-2:], "visualize=0", f"hydra.run.dir={out}", "data.loader.num_workers=0"]
    work |= {
        "localized again": from_boxes,
        "eagle again": train_on,
        "self again": self_train_on,
        "average precision": lambda: command.main(ap),
        "scores of masks": lambda: hydra_app.run(evaluate, "object-segmentation/eval", masks),
        "scores of eagle": lambda: SCRIPTS["eval_segmentation"].main(labelled),
        "predictions": lambda: self_training.main([*predicted, f"hydra.run.dir={out}"]),
        "label maps": lambda: evaluation.main(scored),
    }
    return {name: (files, work[name]) for name, files in READS.items()}


# --- the three rounds -----------------------------------------------------------------------------------------------


def fuzz_files(good: Path, count: int, seed: int) -> Counter[str]:
    """Changed files through the loaders."""
    return _rounds(
        good, count, seed, lambda tree: {name: ([name], lambda n=name: LOADERS[n](tree / n)) for name in LOADERS}
    )


def fuzz_commands(good: Path, count: int, seed: int) -> Counter[str]:
    """Changed files through whole commands; nothing but their output may change."""
    return _rounds(good, count, seed, commands)


def _rounds(good: Path, count: int, seed: int, targets: Callable[[Path], dict[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(good, tree)
        for name, (_, work) in targets(tree).items():
            (tree / "out").mkdir()
            with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
                found = refusal(work)
            if found:
                raise Wrong(f"{name} refuses what is right: {said.getvalue()}{found}")
            shutil.rmtree(tree / "out")
        own, pool = targets(tree), [path.read_bytes() for path in sorted(good.rglob("*")) if path.is_file()]
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            name = list(own)[number % len(own)]
            inputs, work = own[name]
            changed = draw.choice(inputs)
            change_file(tree / changed, draw, draw.choice(pool))
            (tree / "out").mkdir()
            before = state(Path(folder))
            try:
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    counts["refused" if refusal(work) else "read"] += 1
                    moved = {key for key, _ in state(Path(folder)).items() ^ before.items()}
                    if any(not path.startswith("tree/out/") for path in moved):
                        raise Wrong(f"changed {moved}")
            except Wrong as error:
                counts["wrong"] += 1
                print(f"--seed {seed}, round {number}: {name} with {changed}: {error}", file=sys.stderr)
            shutil.rmtree(tree / "out")
            shutil.copyfile(good / changed, tree / changed)
    return counts


ALPHABET = "ab .-_~%$&'\"<>{}[]()*?!#:;,=+@^`|\\\t\n\r\x1b\x7f\x85\xa0\xad\u202e\u2028\u200d\ufeffé漢\U0001f600\udcff"


def fuzz_names(count: int, seed: int) -> Counter[str]:
    """Photographs of odd names, 50 at a time beside one of a plain name, through ``run``: none costs another one."""
    counts: Counter[str] = Counter()
    draw = random.Random(seed)
    for _ in range(0, count, 50):
        with tempfile.TemporaryDirectory() as folder:
            images, out = write_pictures(Path(folder) / "images", 1, width=64, height=48), Path(folder) / "out"
            while len(os.listdir(images)) < 51:
                name = "".join(draw.choice(ALPHABET) for _ in range(draw.choice((1, 3, 9, 60, 240)))) + ".png"
                with contextlib.suppress(OSError, ValueError):  # longer than the file system knows
                    picture(1, 64, 48).save(images / name) if "/" not in name else None
            before, said = state(images), io.StringIO()
            work = functools.partial(run_here, "run", images=images, output=out, model_name="lab_hog", crf=False)
            try:
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                    refused = refusal(work)
                if not (out / "results.json").exists():
                    raise Wrong(refused)
                content = json.loads((out / "results.json").read_text())
                done = {result["file"] for result in content["images"]}
                if len(done) + len(content["failed"]) < 51 - sum(name[0] == "." for name in os.listdir(images)):
                    raise Wrong(f"{51 - len(done) - len(content['failed'])} images are neither done nor failed")
                if "image0.png" not in done or state(images) != before or len(os.listdir(folder)) != 2:
                    raise Wrong("the plain one is lost, or something else changed")
                if any(not (line.isprintable() or "\r" in line) for line in said.getvalue().split("\n")):
                    raise Wrong("a name is printed raw")
                counts["done"] += len(done) - 1
                counts["refused"] += len(content["failed"])
            except Wrong as error:
                counts["wrong"] += 1
                print(f"names, --seed {seed}: {error}", file=sys.stderr)
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("files", "commands", "names", "kills", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good"
        prepare(good)
        for name, work in (
            ("files", lambda: fuzz_files(good, asked.files, asked.seed)),
            ("commands", lambda: fuzz_commands(good, asked.commands, asked.seed)),
            ("names", lambda: fuzz_names(asked.names, asked.seed)),
            ("kills", lambda: kills.fuzz_kills(asked.kills, asked.seed)),
        ):
            if getattr(asked, name):
                started, counts = time.monotonic(), work()
                wrong += counts["wrong"]
                print(f"{name}: {dict(sorted(counts.items()))} in {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
