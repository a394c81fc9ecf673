"""Every stage beside a plain implementation: time, memory, floor and growth, as CSV files and as README's tables.

    python tests/benchmarks/bench_stages.py --images DIR --weights-s16 PATH --weights-s8 PATH
    python tests/benchmarks/bench_stages.py --table

`DIR` holds photographs, of which those of 500x375 pixels count; the weights are DINO's in the published layout. All
compute in one thread, and `seconds` are those of the processor: other work on the machine moves them less than the
clock's. Four parts (`--only`), a file each in `results/` (`--output`):

- stages: from arrays in memory to arrays in memory, at 713, 2852 and 5000 patches (EAGLE: a step with batches of images
  of 784, 2809 and 5041). Each variant has a process of its own; they take turns image by image, and of each image the
  least of the rounds counts.
- commands: whole commands on 100 images of 713 patches, from their start to their end, files read and written.
- patches: eigenvectors of one graph of up to 200,000 patches, by the solvers (`--largest`: what takes minutes too).
- images: `extract_features` of 20,000 small images, and the same command again, which finds everything there.

`floor_seconds` is what `floor_of` takes at the least: arithmetic that no way to the result can do without, at the rate
of large matrix products measured in the same run, and bytes at the measured rates of copies and of the disk.
"""

import argparse
import csv
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import PROJECT, Result, Used, Worker, describe, measure, usage, variant_process
from benchmarks.results_table import README, RESULTS, readme_with_tables

SIZE = (500, 375)
GRIDS = {713: (SIZE, 16), 2852: (SIZE, 8), 5000: ((800, 400), 8)}  # patches -> size of the image, side of a patch
EAGLE = {713: (224, 4), 2852: (424, 2), 5000: (568, 2)}  # side of its square images of about as many patches, and batch
COUNTS = {2852: 2, 5000: 1}  # images of the larger graphs
ONCE = ("objects", "eagle")  # take minutes for these in the plain variant; no call has to warm it up
TAU = 0.85  # of MaskCut: keys of random weights are all alike
D, CODE = 384, 512  # channels of ViT-S and of EAGLE's code
PARTS = ("stages", "commands", "patches", "images")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Floor(NamedTuple):
    """Least work for a result: arithmetic in a precision, and bytes of copies and of files."""

    flop: float = 0.0
    copied: float = 0.0
    filed: float = 0.0
    precision: str = "float32"

    def seconds(self, rates: dict[str, float]) -> float:
        """What it takes at rates in 10^9 a second."""
        return (self.flop / rates[self.precision] + self.copied / rates["copy"] + self.filed / rates["disk"]) / 1e9

    def __str__(self) -> str:
        parts = {f"GFLOP {self.precision}": self.flop, "GB copied": self.copied, "GB of files": self.filed}
        return " + ".join(f"{amount / 1e9:.3g} {unit}" for unit, amount in parts.items() if amount)


def floor_of(stage: str, T: int, variant: str = "") -> Floor:
    """The least work of a stage for one image (EAGLE: for a batch)."""
    (width, height), step = GRIDS[T]
    precision = "bfloat16" if "bfloat16" in variant else "float32"
    if stage == "features":
        return Floor(keys_of(T, step), precision=precision)
    if stage == "eigs":  # F F' once; it is symmetric
        return Floor(T**2 * D)
    if stage == "segments":  # one assignment to four means in four dimensions, and one update, of ten starts
        return Floor(10 * T * 4 * 4 * 4)
    if stage == "objects":  # the graph, and a pass over its float64 for each of three cuts
        return Floor(T**2 * D, 3 * 8 * T**2)
    if stage == "crf":  # each of five steps spreads and gathers two classes over 6 + 3 vertices of two lattices
        return Floor(copied=5 * 2 * (6 + 3) * 2 * 4 * width * height)
    if stage == "eagle":  # the backbone, where a view is blurred or not stored; the head on three, and back; two graphs
        side, batch = EAGLE[T]
        N, channels, views = (side // 8) ** 2, 3 * D, 0.5 if "files" in variant else 1.5
        head = 3 * 3 * 2 * N * (2 * channels * CODE + channels**2)
        return Floor(batch * (views * keys_of(N, 8) + head + 2 * N**2 * CODE), precision=precision)
    return Floor()


def keys_of(T: int, step: int) -> float:
    """FLOPs of the keys of ViT-S for T patches of ``step`` pixels: eleven blocks, and the keys of the twelfth."""
    N = T + 1
    return 11 * (24 * N * D**2 + 4 * N**2 * D) + 2 * N * D**2 + 2 * T * 3 * step**2 * D


def agreement(stage: str, ours: list[str], plain: list[str]) -> str:
    """How far results are from the plain ones, in words; the worst image."""
    pairs = [(np.load(a), np.load(b)) for a, b in zip(ours, plain, strict=True)]
    if stage == "features":
        errors = [np.linalg.norm(a["k"] - b["k"]) / np.linalg.norm(b["k"]) for a, b in pairs]
        return f"relative error of keys {max(errors):.0e}"
    if stage == "eigs":
        return f"eigenvalues within {max(np.abs(a['values'] - b['values']).max() for a, b in pairs):.0e}"
    if stage == "eagle":  # draws dropout and samples of its own: `test_plain_eagle.py` compares the losses
        return ""
    different = sum(int((a["labels"] != b["labels"]).sum()) for a, b in pairs)
    return f"{different} of {sum(a['labels'].size for a, _ in pairs)} labels differ"


class Bench:
    """What all parts share: photographs, weights, a folder for intermediate files, and the machine."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.weights = {8: arguments.weights_s8, 16: arguments.weights_s16}
        with Worker(stage="machine", variant="") as worker:
            worker(save=str(folder / "rates.npz"))
        self.rates = {name: float(value) for name, value in np.load(folder / "rates.npz").items()}
        self.start = min(usage([sys.executable, "-c", "import torch"]).seconds for _ in range(3))
        self.machine = describe(self.rates, self.start)

    def write(self, part: str) -> None:
        """Measure a part, and write its CSV file, each row with the machine."""
        rows = getattr(self, part)()
        self.arguments.output.mkdir(parents=True, exist_ok=True)
        with open(self.arguments.output / f"{part}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "machine"], lineterminator="\n")
            writer.writeheader()
            for row in rows:
                numbers = {name: f"{value:.4g}" for name, value in row.items() if isinstance(value, float)}
                writer.writerow(row | numbers | {"machine": self.machine})

    def photographs(self, count: int) -> list[Path]:
        """The first ones of 500x375 pixels, in the order of their names."""
        found = []
        for path in sorted(self.arguments.images.iterdir()):
            if path.suffix.lower() in {".jpg", ".jpeg", ".png"} and len(found) < count:
                with Image.open(path) as image:
                    found += [path] if image.size == SIZE else []
        if not found:
            raise SystemExit(f"no image of {SIZE[0]}x{SIZE[1]} pixels in {self.arguments.images}")
        return found

    def requests(self, T: int, count: int) -> list[dict]:
        """What a worker is asked for each image of T patches; stages add the files of arrays that later ones read."""
        size, step = GRIDS[T]
        requests = []
        for path in self.photographs(count):
            image = path if size == SIZE else self.folder / f"{path.stem}_{size[0]}.png"
            if image is not path:
                Image.open(path).convert("RGB").resize(size).save(image)
            requests.append(
                {"image": str(image), "arrays": [], "grid": (size[1] // step, size[0] // step), "step": step}
            )
        return requests

    def settings(self, stage: str, T: int) -> dict[str, object]:
        """Of a worker, beside stage and variant."""
        step = GRIDS[T][1]
        return {
            "features": {"model": f"dino_vits{step}", "weights": self.weights[step]},
            "objects": {"tau": TAU},
            "eagle": dict(zip(("side", "batch_size"), EAGLE[T], strict=True)),
        }.get(stage, {})

    def compared(self, about: dict, plain: Result | Used, ours: Result | Used, floor: float, of: str) -> dict:
        """A row, and a line to look at."""
        row = about | {"seconds": ours.seconds, "wall_seconds": ours.wall, "times_faster": plain.seconds / ours.seconds}
        row |= {"floor_seconds": floor, "floor_of": of, "peak_mib": ours.peak_mib}
        print(*(f"{x:.3g}" if isinstance(x, float) else x for x in row.values()), sep="\t", file=sys.stderr, flush=True)
        return row

    def stages(self) -> list[dict]:
        """Each stage at each size; later ones start from the plain keys, and from our eigenvectors and masks."""
        rows = []
        for T in self.arguments.sizes:
            requests = self.requests(T, COUNTS.get(T, self.arguments.count))
            for stage in ("features", "eigs", "masks", "segments", "objects", "crf", "eagle"):
                variants = ["plain", "ours"]
                variants += ["ours, bfloat16"] if stage in ("features", "eagle") else []
                variants += [f"{variant}, view from files" for variant in variants[1:]] if stage == "eagle" else []
                requests = [{}] if stage == "eagle" else requests
                workers = {v: {"stage": stage, "variant": v, **self.settings(stage, T)} for v in variants}
                saves = {v: [f"{self.folder}/{stage}-{v}-{T}-{i}.npz" for i in range(len(requests))] for v in variants}
                rounds = 1 if stage in ONCE and T in COUNTS else self.arguments.rounds
                results = measure(workers, requests, rounds, saves)
                for variant in variants if stage != "masks" else ():  # of masks the files alone take time
                    floor = floor_of(stage, T, variant)
                    about = {"stage": stage, "patches": T, "variant": variant, "images": len(requests)}
                    row = self.compared(
                        about, results["plain"], results[variant], floor.seconds(self.rates), str(floor)
                    ) | {"start_mib": results[variant].start_mib}
                    rows.append(row | {"results": agreement(stage, saves[variant], saves["plain"])})
                passed_on = {"features": "plain", "eigs": "ours", "masks": "ours"}.get(stage)
                for index, request in enumerate(requests if passed_on else ()):
                    request["arrays"].append(saves[passed_on][index])
        return rows

    def commands(self) -> list[dict]:
        """Whole commands beside a plain loop over the same images; each chain reads the files of its own."""
        T, requests, rows = 713, self.requests(713, 100), []
        names = self.folder / "images.txt"
        names.write_text("\n".join(Path(request["image"]).name for request in requests))
        root, place = {"images_root": self.arguments.images}, {name: self.folder / name for name in STAGES_OF_FILES}
        listed, features = root | {"images_list": names}, {"features_dir": place["features"]}
        both = features | {"eigs_dir": place["eigs"]}
        flags = {
            "extract_features": listed | {"model_name": "dino_vits16", "weights": self.weights[16]},
            "extract_eigs": root | features | {"K": 5},
            "extract_single_region_segmentations": both,
            "extract_multi_region_segmentations": both,
            "extract_objects": listed | features | {"crf": False, "tau": TAU},
            "extract_crf_segmentations": listed | {"segmentations_dir": place["masks"], "num_classes": 2},
        }
        for stage, command in zip(place, flags, strict=True):
            saves = [f"{self.folder}/command-{stage}-{index}.npz" for index in range(len(requests))]
            asked = [request | {"save": save} for request, save in zip(requests, saves, strict=True)]
            used = {"plain": usage(variant_process(stage=stage, variant="plain", **self.settings(stage, T)), asked)}
            used["ours"] = usage(extract(command, output_dir=place[stage], **flags[command]))
            written = sum(path.stat().st_size for path in place[stage].iterdir())
            each = floor_of(stage, T)
            floor = Floor(len(saves) * each.flop, len(saves) * each.copied, written)
            for variant in used:
                about = {"command": command, "patches": T, "variant": variant, "images": len(saves)}
                seconds, of = self.start + floor.seconds(self.rates), f"import of torch + {floor}"
                rows.append(self.compared(about, used["plain"], used[variant], seconds, of))
            for request, save in zip(requests, saves if stage in ("features", "eigs", "masks") else (), strict=False):
                request["arrays"].append(save)
        return rows

    def patches(self) -> list[dict]:
        """One graph of many patches."""
        rows, most = [], {"auto": 10_000, "blocked": 50_000 if self.arguments.largest else 10_000, "landmarks": 200_000}
        for T in (713, 2852, 10_000, 50_000, 200_000):
            exact = None
            for solver in (name for name in most if most[name] >= T):
                save, about = f"{self.folder}/{solver}-{T}.npz", {"patches": T, "solver": solver}
                worker = {solver: {"stage": "patches", "variant": solver, "count": T}}
                result = measure(worker, [{}], 2 if T <= 10_000 else 1, {solver: [save]})[solver]
                values = np.load(save)["values"]
                exact = values if solver != "landmarks" else exact
                floor = Floor(0 if solver == "landmarks" else T**2 * D)
                row = self.compared(about, result, result, floor.seconds(self.rates), str(floor))
                del row["times_faster"]
                error = "" if exact is None else float(np.abs(values - exact).max())
                rows.append(row | {"start_mib": result.start_mib, "eigenvalues_within": error})
        return rows

    def images(self) -> list[dict]:
        """More and more images of 64x64 pixels into one folder, and after each step the same command again."""
        folder, names, random, rows = self.folder / "small", self.folder / "small.txt", np.random.default_rng(0), []
        folder.mkdir()
        for before, count in zip([0, *self.arguments.growth], self.arguments.growth, strict=False):
            for index in range(before, count):
                cells = random.integers(0, 256, (4, 4, 3), np.uint8)
                Image.fromarray(cells.repeat(16, 0).repeat(16, 1)).save(folder / f"{index:06d}.jpg")
            names.write_text("\n".join(f"{index:06d}.jpg" for index in range(count)))
            flags = {"images_list": names, "images_root": folder, "output_dir": self.folder / "many"}
            command = extract("extract_features", model_name="lab_hog", **flags)
            first, again = usage(command), usage(command)
            row = {"images": count, "written": count - before, "images_per_second": (count - before) / first.wall}
            row |= {"seconds": first.seconds, "peak_mib": first.peak_mib, "open_files": first.files}
            row |= {"restart_seconds": again.seconds, "restart_wall_seconds": again.wall, "import_torch": self.start}
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
        return rows


STAGES_OF_FILES = ("features", "eigs", "masks", "segments", "objects", "crf")


def extract(command: str, **flags: object) -> list[str]:
    """A command of extract.py."""
    return [sys.executable, f"{PROJECT}/extract/extract.py", command, *(f"--{k}={v}" for k, v in flags.items())]


def main() -> None:
    """Measure and write CSV files, or README's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", action="store_true", help="write README's tables from the CSV files, measure nothing"
    )
    parser.add_argument("--images", type=Path, metavar="DIR")
    parser.add_argument("--weights-s16", metavar="PATH")
    parser.add_argument("--weights-s8", metavar="PATH")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="parts (default: all)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--count", type=int, default=5, help="images of 713 patches (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="the least of which counts (default 2)")
    parser.add_argument("--growth", type=int, nargs="+", default=[2000, 10_000, 20_000], help="numbers of small images")
    parser.add_argument("--largest", action="store_true", help="50,000 patches by blocks too, which takes minutes")
    arguments = parser.parse_args()
    if arguments.table:
        README.write_text(readme_with_tables())
        return
    if not (arguments.images and arguments.weights_s16 and arguments.weights_s8):
        parser.error("--images, --weights-s16 and --weights-s8 are needed, or --table")
    os.environ |= ONE_THREAD  # inherited by all that is measured
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        for part in arguments.only:
            bench.write(part)


if __name__ == "__main__":
    main()
