"""How far the published evaluations lie from the mended ones: label maps, masks, and boxes of DINO-seg.

    python tests/benchmarks/measure_differences_evaluation.py --voc2012 DIR --sod DIR
    python tests/benchmarks/measure_differences_evaluation.py --voc2007 DIR --weights dino_vits16.pth

Label maps: `lab_hog`, 15 segments, 20 clusters, of the first COUNT images of VOC2012's val list. Masks: `lab_hog`, of
the first COUNT images of SOD. Both are at patches of 16 pixels, made by the commands of the README, and evaluated by
the scripts with enlarge=patches and enlarge=released. DINO-seg: ViT-S/16 on the first COUNT images of VOC2007's test
list, without and with --dinoseg_mended.

DIR is what data/README.md calls data/VOC2012, data/VOC2007, and a data set of object segmentation.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from spectralseg.files.images import load_image
from spectralseg.files.label_maps import ENLARGE, load_labels

PROJECT = Path(__file__).resolve().parents[2]
TASKS = ("object-localization", "object-segmentation", "semantic-segmentation")
sys.path[:0] = [str(PROJECT / task) for task in TASKS]

from objectloc.detectors import dino_seg  # noqa: E402
from objectloc.ground_truth import open_data_set  # noqa: E402
from objectloc.options import DataOptions, DetectorOptions  # noqa: E402
from objectloc.patch_models import compute_patches, load_model  # noqa: E402
from objectloc.scores import CORRECT, bbox_iou  # noqa: E402
from objectseg.dataset import at_pixels as mask_at_pixels  # noqa: E402
from semanticseg.pseudolabels import at_pixels as labels_at_pixels  # noqa: E402
from semanticseg.pseudolabels import read_ids  # noqa: E402

PATCH = 16


def run(script: str, *arguments: object) -> None:
    """Run a script of the project; what it says is shown if it fails."""
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def extract_eigenvectors(names: list[str], images: Path, out: Path) -> tuple[object, ...]:
    """``lab_hog`` features and five eigenvectors of these images; returns the flags that name them."""
    listed = out / "images.txt"
    listed.write_text("".join(f"{name}\n" for name in names))
    flags = ("--images_list", listed, "--images_root", images, "--output_dir", out / "features")
    run("extract/extract.py", "extract_features", *flags, "--model_name", "lab_hog", "--batch_size", 1)
    found = ("--features_dir", out / "features")
    run("extract/extract.py", "extract_eigs", "--images_root", images, *found, "--K", 5, "--output_dir", out / "eigs")
    return (*found, "--eigs_dir", out / "eigs")


def table_row(name: str, differing: list[float], scores: dict[str, dict[str, float]], columns: list[str]) -> str:
    """A row: images, percent of pixels that differ, and each score with patches / released."""
    cells = [" / ".join(f"{100 * scores[way][column]:.2f}" for way in ENLARGE) for column in columns]
    return (
        f"| {' | '.join([name, str(len(differing)), f'{np.mean(differing):.2f}', f'{max(differing):.2f}', *cells])} |"
    )


def differing_pixels(maps: Path, sizes: dict[str, tuple[int, int]], enlarged: dict[str, object]) -> list[float]:
    """Percent of the pixels of each image on which the two ways of enlarging differ."""
    shares = []
    for image_id, size in sizes.items():
        labels = load_labels(maps / f"{image_id}.png")
        one, other = (function(labels, size) for function in enlarged.values())
        shares.append(100 * float((one != other).mean()))
    return shares


def measure_label_maps(root: Path, count: int, out: Path) -> str:
    """The row on VOC2012's label maps."""
    voc = root / "VOCdevkit" / "VOC2012"
    ids = read_ids(voc / "ImageSets" / "Segmentation" / "val.txt")[:count]
    (out / "val.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    images = voc / "JPEGImages"
    from_eigs = extract_eigenvectors([f"{image_id}.jpg" for image_id in ids], images, out)
    segments, output = ("--segmentations_dir", out / "segments"), ("--output_dir", out / "segments")
    for command in (
        ("extract_multi_region_segmentations", *from_eigs, "--non_adaptive_num_segments", 15, *output),
        ("extract_bboxes", *from_eigs[:2], *segments, "--num_dilate", 5, "--output_file", out / "boxes.pth"),
        (
            *("extract_bbox_features", "--model_name", "lab_hog", "--images_root", images),
            *("--bbox_file", out / "boxes.pth", "--output_file", out / "box_features.pth"),
        ),
        (
            *("extract_bbox_clusters", "--num_clusters", 20, "--bbox_features_file", out / "box_features.pth"),
            *("--output_file", out / "clusters.pth"),
        ),
        (
            *("extract_semantic_segmentations", *segments, "--bbox_clusters_file", out / "clusters.pth"),
            *("--output_dir", out / "maps"),
        ),
    ):
        run("extract/extract.py", *command)
    scores = {}
    for way in ENLARGE:
        settings = (f"data.root={root}", f"data.val_list={out / 'val.txt'}", f"segments_dir={out / 'maps'}")
        run("semantic-segmentation/main.py", *settings, f"enlarge={way}", f"hydra.run.dir={out / way}", "visualize=0")
        scores[way] = json.loads((out / way / "results.json").read_text())
    sizes = {image_id: load_labels(voc / "SegmentationClass" / f"{image_id}.png").shape for image_id in ids}
    ways = {way: lambda labels, size, way=way: labels_at_pixels(labels, *size, Path(), way) for way in ENLARGE}
    return table_row("label maps, VOC2012", differing_pixels(out / "maps", sizes, ways), scores, ["miou", "accuracy"])


def measure_masks(root: Path, count: int, out: Path) -> str:
    """The row on SOD's masks."""
    paths = sorted((root / "images").iterdir())[:count]
    data = out / "SOD"
    for folder in ("images", "ground_truth_mask"):
        (data / folder).mkdir(parents=True)
    for path in paths:
        shutil.copy(path, data / "images")
        shutil.copy(root / "ground_truth_mask" / f"{path.stem}.png", data / "ground_truth_mask")
    from_eigs = extract_eigenvectors([path.name for path in paths], data / "images", out)
    run("extract/extract.py", "extract_single_region_segmentations", *from_eigs, "--output_dir", data / "masks")
    entry = "data=[{name: SOD, images_dir: SOD/images, labels_dir: SOD/ground_truth_mask}]"
    scores = {}
    for way in ENLARGE:
        settings = (f"data_root={out}", "predictions.run=masks", entry, f"enlarge={way}", f"hydra.run.dir={out / way}")
        run("object-segmentation/main.py", *settings)
        scores[way] = json.loads((out / way / "results.json").read_text())["data_sets"]["SOD"]
    sizes = {path.stem: load_image(path).size[::-1] for path in paths}
    ways = {way: lambda labels, size, way=way: mask_at_pixels(labels, Path(), size, PATCH, way) for way in ENLARGE}
    differing = differing_pixels(data / "masks", sizes, ways)
    return table_row("masks, SOD", differing, scores, ["miou", "accuracy", "f_beta"])


def measure_dino_seg(root: Path, weights: str, count: int) -> str:
    """A line on the boxes of DINO-seg, head 4."""
    images = open_data_set(DataOptions(dataset="VOC07", set="test", data_root=str(root.parent)))
    model = load_model(DetectorOptions(mode="dinoseg", weights=weights))
    boxes: dict[bool, list] = {False: [], True: []}
    correct = {False: 0, True: 0}
    ids = [image_id for image_id in sorted(images.files) if len(images.find_boxes(image_id))][:count]
    for image_id in ids:
        patches = compute_patches(load_image(images.path(image_id)), model)
        for mended in (False, True):
            box = dino_seg(patches.values, patches.grid, 4, mended).box(patches.step, patches.view)
            boxes[mended].append(box)
            correct[mended] += bool(bbox_iou(box, images.find_boxes(image_id)).max() >= CORRECT)
    differing = sum(one != other for one, other in zip(*boxes.values(), strict=True))
    corloc = [f"{100 * number / len(ids):.2f}" for number in correct.values()]
    found = f"DINO-seg, VOC2007 test: {differing} of {len(ids)} boxes differ"
    return f"{found}; CorLoc {corloc[0]} released, {corloc[1]} mended"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("voc2012", "sod", "voc2007"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--weights", default="random", help="of dino_vits16; default: random ones")
    parser.add_argument("--count", type=int, default=200, help="images of each data set, at most")
    args = parser.parse_args()
    if args.voc2012 or args.sod:
        print("| | images | pixels that differ, mean % | most % | mIoU, patches / released | accuracy | F-beta |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in (("voc2012", measure_label_maps), ("sod", measure_masks)):
            if getattr(args, name) is not None:
                out = Path(folder) / name
                out.mkdir()
                print(measure(getattr(args, name).resolve(), args.count, out), flush=True)
    if args.voc2007 is not None:
        print(measure_dino_seg(args.voc2007.resolve(), args.weights, args.count))


if __name__ == "__main__":
    main()
