"""Time of EAGLE's training step beside a plain implementation of the published one.

    python tests/benchmarks/bench_eagle.py --batch_size 4 --rounds 5 --output table.md

ViT-S/8 with random weights, 224x224 random images of which every other one is blurred, 27 classes, all losses. Each
round times one step of every variant, so that noise from outside hits all alike; the table has medians. Loading of
images is timed in no variant.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "eagle")]

from benchmarks import plain_eagle, plain_extract  # noqa: E402
from eagleseg.losses.eicue import normalise  # noqa: E402
from eagleseg.losses.step import EagleStep, total_loss  # noqa: E402
from eagleseg.model.features import Featurizer, features_of_views  # noqa: E402
from eagleseg.model.heads import EagleModel  # noqa: E402
from eagleseg.training.loop import parameter_groups  # noqa: E402
from eagleseg.training.settings import TrainSettings  # noqa: E402
from spectralseg.models.backbones import load_backbone  # noqa: E402
from spectralseg.running.devices import keep_freed_memory  # noqa: E402

N_CLASSES = 27
SHARE = 0.9


def batch_of(size: int, side: int) -> dict[str, torch.Tensor]:
    """Random images, every other one with a blurred view of its own, and labels."""
    rgb = torch.rand(size, 3, side, side)
    other = rgb.clone()
    other[::2] = (rgb[::2] + rgb[::2].roll(1, dims=-1)) / 2
    return {
        "img": rgb,
        "img_blur": other,
        "label": torch.randint(-1, N_CLASSES, (size, side, side)),
    }


def ours(batch: dict[str, torch.Tensor], dtype: str, cached: bool, device: str) -> Callable[[], None]:
    """A step of eagle/, with the backbone, head and losses in ``dtype``."""
    backbone = load_backbone("dino_vits8", "random", device)
    featurizer = Featurizer(backbone, dtype=dtype)
    batch = {name: value.to(device) for name, value in batch.items()}
    if cached:
        batch["features"] = featurizer(batch["img"])
    settings = TrainSettings("")
    model = EagleModel(featurizer.dim, N_CLASSES, settings.extra_clusters).to(device)
    losses_of = EagleStep(model, settings)
    optimizer = torch.optim.Adam(parameter_groups(model, settings))
    reduced = dtype != "float32"

    def step() -> None:
        features = features_of_views(featurizer, batch)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=reduced):
            terms = losses_of(*features, batch, SHARE)
        loss = total_loss(terms, SHARE, settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())

    return step


def plain(batch: dict[str, torch.Tensor], device: str) -> Callable[[], None]:
    """A step as published."""
    backbone = load_backbone("dino_vits8", "random")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(backbone.model.state_dict(), Path(folder) / "weights.pth")
        model = plain_extract.load_model(Path(folder) / "weights.pth", "dino_vits8")
    step = plain_eagle.PlainEagle(model, N_CLASSES, extra_clusters=5).to(device)
    tensors = [normalise(batch[name].to(device)) for name in ("img", "img_blur")] + [batch["label"].to(device)]
    return lambda: float(step.step(*tensors))


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="also in bfloat16, where it is computed natively")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    batch = batch_of(arguments.batch_size, arguments.res)
    variants = {"plain": plain(batch, arguments.device)}
    for dtype in ("float32", *(["bfloat16"] if arguments.bfloat16 else [])):
        variants[f"ours, {dtype}"] = ours(batch, dtype, False, arguments.device)
        variants[f"ours, {dtype}, clean view from files"] = ours(batch, dtype, True, arguments.device)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(arguments.rounds + 1):
        for name, step in variants.items():
            start = time.perf_counter()
            step()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    lines = ["| step | seconds | times faster |", "| --- | --- | --- |"]
    lines += [f"| {name} | {value:.2f} | {medians['plain'] / value:.1f} |" for name, value in medians.items()]
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
