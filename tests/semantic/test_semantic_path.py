"""README's whole path, shrunk: real images -> pseudo-labels -> evaluation -> self-training -> evaluated predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from running import extracted, run_here

TRAIN_IMAGES, VAL_IMAGES = 6, 4


@pytest.fixture
def part(voc2012: Path, tmp_path: Path) -> Path:
    """A part of VOC2012 in its layout, half as wide and high."""
    source, target = voc2012 / "VOCdevkit" / "VOC2012", tmp_path / "VOC2012" / "VOCdevkit" / "VOC2012"
    lists = {
        name: (source / "ImageSets" / "Segmentation" / f"{name}.txt").read_text().split() for name in ("train", "val")
    }
    chosen = {"train": lists["train"][:TRAIN_IMAGES], "val": lists["val"][:VAL_IMAGES]}
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (target / folder).mkdir(parents=True)
    for name, ids in chosen.items():
        (target / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(ids))
        for image_id in ids:
            wanted = [f"JPEGImages/{image_id}.jpg", f"SegmentationClass/{image_id}.png"]
            for file in wanted if name == "val" else wanted[:1]:  # no truth is needed to train
                with Image.open(source / file) as picture:
                    picture.resize((picture.width // 2, picture.height // 2), Image.NEAREST).save(target / file)
    return tmp_path / "VOC2012"


@pytest.mark.slow
def test_from_images_to_an_evaluated_self_trained_model(part: Path, evaluate, train, tmp_path: Path):
    images = part / "VOCdevkit" / "VOC2012" / "JPEGImages"
    maps, segments = part / "semantic_segmentations" / "patches" / "segmaps", part / "segments"
    extracted(images, part)
    features = ("--features_dir", part / "features")
    more = ("--output_dir", segments, "--non_adaptive_num_segments", 15)
    run_here("extract_multi_region_segmentations", *features, "--eigs_dir", part / "eigs", *more)
    boxes, described, clusters = (part / "boxes" / f"{name}.pth" for name in ("bboxes", "bbox_features", "clusters"))
    more = ("--segmentations_dir", segments, "--output_file", boxes, "--num_erode", 2, "--num_dilate", 5)
    run_here("extract_bboxes", *features, *more)
    more = ("--images_root", images, "--bbox_file", boxes, "--output_file", described)
    run_here("extract_bbox_features", "--model_name", "lab_hog", *more)
    more = ("--bbox_features_file", described, "--output_file", clusters)
    run_here("extract_bbox_clusters", *more, "--num_clusters", 20)
    more = ("--segmentations_dir", segments, "--bbox_clusters_file", clusters, "--output_dir", maps)
    run_here("extract_semantic_segmentations", *more)

    data, segmaps = f"data.root={part}", f"segments_dir={maps}"
    before = evaluate(data, segmaps, "visualize=2")
    assert before["images"] == VAL_IMAGES
    assert 0 < before["miou"] < 0.5
    assert before["segments"]["made_with"]["cluster_offset"] == 1
    assert len(list((tmp_path / "results" / "overlays").iterdir())) == 2

    trained = train(
        data, segmaps, "matching=results/results.json", "max_train_steps=12", "lr=0.003", "evaluate_every=4"
    )
    history = trained["history"]
    assert trained["matching"] == before["matching"]
    assert history[-1]["loss"] < history[1]["loss"]
    assert history[-1]["miou"] > history[0]["miou"]

    train("job_type=generate", data, "generate_list=all")
    predictions = tmp_path / "run" / "predictions"
    assert len(list(predictions.glob("*.png"))) == TRAIN_IMAGES + VAL_IMAGES
    after = evaluate(data, f"segments_dir={predictions}", "matching=identity")
    assert after["miou"] == pytest.approx(trained["best"]["miou"], abs=1e-12)
    for path in predictions.glob("*.png"):
        with Image.open(path) as labels, Image.open(images / f"{path.stem}.jpg") as image:
            assert labels.size == image.size
            assert np.asarray(labels).max() <= 20
    assert json.loads((predictions / "stage.json").read_text())["command"] == "generate"
