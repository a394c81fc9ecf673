"""Masks, segments, boxes, clusters, semantic maps and the CRF through the command line, files in and files out."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from running import as_flags, extracted, features_flags, refused_here, reported, run_here, write_pictures
from shared_data import SAMPLES, reference
from spectralseg.files.images import load_image


def features_file(folder: Path, name: str, height: int, width: int, patch_size: int = 16, **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count = (height // patch_size) * (width // patch_size)
    generator = torch.Generator().manual_seed(len(name))
    record = {"k": torch.randn(1, count, 5, generator=generator), "shape": (1, 3, height, width), "id": name}
    torch.save(record | {"patch_size": patch_size, "model_name": "none"} | more, folder / f"{name}.pth")


def published_eigs(folder: Path, name: str, vectors: np.ndarray, values: np.ndarray | None = None) -> None:
    """Two fields alone, the eigenvalues a NumPy array: what the published code writes."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.arange(len(vectors), dtype=np.float32) if values is None else values
    record = {"eigenvalues": values, "eigenvectors": torch.from_numpy(vectors.astype(np.float32))}
    torch.save(record, folder / f"{name}.pth")


def labels_file(folder: Path, name: str, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(folder / f"{name}.png")


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features and eigenvectors of the sample photographs."""
    return extracted(SAMPLES / "images", tmp_path_factory.mktemp("stages"))


def both(stages: Path) -> dict[str, Path]:
    return {"features_dir": stages / "features", "eigs_dir": stages / "eigs"}


def test_mask_is_eigenvector_one_above_the_threshold(stages: Path, tmp_path: Path):
    for threshold in (0.0, 0.001):
        out = tmp_path / str(threshold)
        run_here("extract_single_region_segmentations", **both(stages), output_dir=out, threshold=threshold)
        for path in sorted((stages / "eigs").glob("*.pth")):
            record = torch.load(path, weights_only=True)
            expected = (record["eigenvectors"][1] > threshold).reshape(record["grid"])
            np.testing.assert_array_equal(read(out / f"{path.stem}.png"), expected)


def test_binary_masks_are_grey_with_0_and_255_and_every_command_takes_them(stages: Path, tmp_path: Path):
    images = {"images_list": SAMPLES / "images.txt", "images_root": SAMPLES / "images", "num_classes": 2}
    for kind in ("palette", "binary"):
        masks, sharp = tmp_path / kind, tmp_path / f"{kind}_crf"
        run_here("extract_single_region_segmentations", **both(stages), output_dir=masks, mask_format=kind)
        made = {"segmentations_dir": masks, "output_dir": sharp}
        run_here("extract_crf_segmentations", **images, **made, mask_format=kind)
        boxes = {"features_dir": stages / "features", "output_file": masks / "boxes.pth"}
        run_here("extract_bboxes", **boxes, segmentations_dir=masks)
    for folder in ("{}", "{}_crf"):
        for path in (tmp_path / folder.format("binary")).glob("*.png"):
            with Image.open(path) as picture:
                assert picture.mode == "L"
            labels = read(tmp_path / folder.format("palette") / path.name)
            np.testing.assert_array_equal(read(path), 255 * labels)
            assert set(np.unique(labels)) <= {0, 1}
    palette, binary = (torch.load(tmp_path / kind / "boxes.pth", weights_only=True) for kind in ("palette", "binary"))
    assert [record["bboxes"] for record in palette] == [record["bboxes"] for record in binary]
    assert json.loads((tmp_path / "binary" / "stage.json").read_text())["arguments"]["mask_format"] == "binary"


def test_adaptive_number_of_segments(tmp_path: Path):
    rng = np.random.default_rng(0)
    features_file(tmp_path / "features", "a", 64, 96)
    published_eigs(tmp_path / "eigs", "a", rng.normal(size=(5, 24)), np.float32([0, 0.9, 0.91, 0.95, 0.97]))
    run_here("extract_multi_region_segmentations", "--adaptive", **both(tmp_path), output_dir=tmp_path / "out")
    assert len(np.unique(read(tmp_path / "out" / "a.png"))) == 3


def test_segments_by_hand(tmp_path: Path):
    # eigenvector 1 separates left from right, eigenvector 2 the middle row on the left
    first = np.float32([[-1, -1, 1, 1]] * 3)
    second = np.zeros((3, 4), dtype=np.float32)
    second[1, 1] = 5
    features_file(tmp_path / "features", "a", 50, 64)
    published_eigs(tmp_path / "eigs", "a", np.stack([np.ones(12), first.ravel(), second.ravel()]))
    command = functools.partial(run_here, "extract_multi_region_segmentations", **both(tmp_path))
    command(non_adaptive_num_segments=3, output_dir=tmp_path / "three")
    segments = read(tmp_path / "three" / "a.png")
    assert (segments == segments[1, 1]).sum() == 1
    assert segments.shape == (3, 4)
    assert len(np.unique(segments[:, 2:])) == 1
    command(non_adaptive_num_segments=2, num_eigenvectors=1, output_dir=tmp_path / "two")
    segments = read(tmp_path / "two" / "a.png")
    np.testing.assert_array_equal(segments == segments[0, 0], first < 0)


def test_kmeans_on_features(tmp_path: Path):
    features = torch.zeros(1, 12, 5)
    features[0, :6, 0] = 1
    features_file(tmp_path / "features", "a", 50, 64, k=features)
    published_eigs(tmp_path / "eigs", "a", np.random.default_rng(0).normal(size=(3, 12)))
    flags = {"kmeans_baseline": True, "non_adaptive_num_segments": 2}
    run_here("extract_multi_region_segmentations", **both(tmp_path), output_dir=tmp_path / "out", **flags)
    segments = read(tmp_path / "out" / "a.png").ravel()
    assert len(set(segments[:6])) == len(set(segments[6:])) == 1
    assert segments[0] != segments[6]


def test_partners_are_paired_by_id_and_missing_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in "ab":
        features_file(tmp_path / "features", name, 48, 64)
    for name in "bc":
        published_eigs(tmp_path / "eigs", name, np.random.default_rng(0).normal(size=(2, 12)))
    command = "extract_single_region_segmentations"
    assert reported(refused_here(capsys, command, **both(tmp_path), output_dir=tmp_path / "out"), command) == {
        "a": f"its file {tmp_path / 'eigs' / 'a.pth'} is missing",
        "c": f"its file {tmp_path / 'features' / 'c.pth'} is missing",
    }
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["b.png"]


@pytest.mark.parametrize("index", range(5))
def test_recorded_boxes(index: int, tmp_path: Path):
    recorded = json.loads(reference("regions.json").read_text())[f"boxes/{index}"]
    height, width = recorded["image_size"]
    features_file(tmp_path / "features", "a", height, width, recorded["patch_size"])
    labels_file(tmp_path / "segments", "a", np.load(reference("regions.npz"))[f"boxes/{index}/segmap"])
    folders = {"features_dir": tmp_path / "features", "segmentations_dir": tmp_path / "segments"}
    settings = {name: recorded[name] for name in ("downsample_factor", "num_erode", "num_dilate")}
    run_here("extract_bboxes", **folders, output_file=tmp_path / "bboxes.pth", **settings)
    (boxes,) = torch.load(tmp_path / "bboxes.pth", weights_only=True)
    for field in ("bboxes", "bboxes_original_resolution", "segment_indices"):
        assert boxes[field] == recorded[field], field
    assert boxes["id"] == "a"
    assert boxes["format"] == "(xmin, ymin, xmax, ymax)"


def test_from_segments_to_semantic_maps(stages: Path, tmp_path: Path):
    segments = tmp_path / "segments"
    run_here("extract_multi_region_segmentations", **both(stages), output_dir=segments, non_adaptive_num_segments=6)
    files = {name: tmp_path / f"{name}.pth" for name in ("bboxes", "features", "clusters")}
    made = {"features_dir": stages / "features", "segmentations_dir": segments}
    run_here("extract_bboxes", **made, output_file=files["bboxes"])
    read_by = {"images_root": SAMPLES / "images", "bbox_file": files["bboxes"], "model_name": "lab_hog"}
    run_here("extract_bbox_features", **read_by, output_file=files["features"])
    settings = {"num_clusters": 5, "pca_dim": 3}
    run_here("extract_bbox_clusters", bbox_features_file=files["features"], output_file=files["clusters"], **settings)
    for record in torch.load(files["features"], weights_only=True):
        assert record["features"].shape == (len(record["bboxes"]), 14)
    clusters = {record["id"]: record for record in torch.load(files["clusters"], weights_only=True)}
    assert all("features" not in record for record in clusters.values())
    for offset in (1, 0):
        out = tmp_path / f"semantic{offset}"
        made = {"segmentations_dir": segments, "bbox_clusters_file": files["clusters"]}
        run_here("extract_semantic_segmentations", **made, output_dir=out, cluster_offset=offset)
        for name, record in clusters.items():
            labels, semantic = read(segments / f"{name}.png"), read(out / f"{name}.png")
            assert not semantic[labels == 0].any()
            for label, cluster in zip(record["segment_indices"], record["clusters"].tolist(), strict=True):
                assert set(semantic[labels == label]) == {cluster + offset}


def test_crf_names_missing_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels_file(tmp_path / "masks", "chelsea", np.zeros((18, 28)))
    (tmp_path / "list.txt").write_text("chelsea.jpg\ncoffee.jpg\n")
    images = {"images_list": tmp_path / "list.txt", "images_root": SAMPLES / "images", "num_classes": 2}
    made = {"segmentations_dir": tmp_path / "masks", "output_dir": tmp_path / "crf"}
    text = refused_here(capsys, "extract_crf_segmentations", **images, **made)
    assert f"coffee failed: no such label map: {tmp_path / 'masks' / 'coffee.png'}" in text
    assert read(tmp_path / "crf" / "chelsea.png").shape == (300, 451)


def test_crf_backends_are_not_mixed_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("pydensecrf")
    labels_file(tmp_path / "masks", "chelsea", np.arange(18 * 28).reshape(18, 28) % 28 > 12)
    (tmp_path / "list.txt").write_text("chelsea.jpg\n")
    images = {"images_list": tmp_path / "list.txt", "images_root": SAMPLES / "images", "num_classes": 2}
    made = {"segmentations_dir": tmp_path / "masks", "output_dir": tmp_path / "crf"}
    command = ["extract_crf_segmentations", *as_flags(**images, **made)]
    run_here(*command, crf_backend="auto")
    description = json.loads((tmp_path / "crf" / "stage.json").read_text())
    assert description["arguments"].pop("crf_backend") == "pydensecrf"
    assert "crf_backend=pydensecrf instead of torch" in refused_here(capsys, *command, crf_backend="torch")
    (tmp_path / "crf" / "stage.json").write_text(json.dumps(description))  # of a folder older than the flag
    assert "crf_backend=pydensecrf instead of torch" in refused_here(capsys, *command, crf_backend="torch")
    run_here(*command, crf_backend="pydensecrf")
    assert "already there" in capsys.readouterr().err
    assert "no crf_backend 'numpy'; known are auto, torch" in refused_here(capsys, *command, crf_backend="numpy")


def test_small_and_single_segment_images(tmp_path: Path):
    """One patch, a map with a single segment, a segment that erosion would erase, boxes smaller than a patch."""
    features_file(tmp_path / "features", "one", 20, 20)
    features_file(tmp_path / "features", "plain", 32, 48)
    labels_file(tmp_path / "segments", "one", np.array([[1]]))
    labels_file(tmp_path / "segments", "plain", np.zeros((2, 3)))
    folders = {"features_dir": tmp_path / "features", "segmentations_dir": tmp_path / "segments"}
    run_here("extract_bboxes", **folders, output_file=tmp_path / "bboxes.pth", downsample_factor=8)
    one, plain = torch.load(tmp_path / "bboxes.pth", weights_only=True)
    assert one["bboxes_original_resolution"] == [[0, 0, 8, 8]]
    assert plain["bboxes"] == []
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (20, 20), "red").save(images / "one.png")
    Image.new("RGB", (48, 32), "blue").save(images / "plain.webp")
    read_by = {"images_root": images, "bbox_file": tmp_path / "bboxes.pth", "model_name": "lab_hog"}
    run_here("extract_bbox_features", **read_by, output_file=tmp_path / "features.pth")
    run_here("extract_bbox_features", **read_by, output_file=tmp_path / "processes.pth", multiprocessing=2)
    assert (tmp_path / "processes.pth").read_bytes() == (tmp_path / "features.pth").read_bytes()
    one, plain = torch.load(tmp_path / "features.pth", weights_only=True)
    assert one["features"].shape == (1, 14)
    assert torch.isfinite(one["features"]).all()
    assert len(plain["features"]) == 0
    files = {"bbox_features_file": tmp_path / "features.pth", "output_file": tmp_path / "clusters.pth"}
    run_here("extract_bbox_clusters", **files, num_clusters=1)
    one, plain = torch.load(tmp_path / "clusters.pth", weights_only=True)
    assert one["clusters"].tolist() == [0]
    assert plain["clusters"].tolist() == []


def test_boxes_of_a_reduced_image_are_cut_from_the_reduced_image(tmp_path: Path):
    segments = np.zeros((4, 5))
    segments[1:3, 2:4] = 1
    labels_file(tmp_path / "segments", "image0", segments)
    write_pictures(tmp_path / "large", 1, width=160, height=128)
    (tmp_path / "small").mkdir()
    load_image(tmp_path / "large" / "image0.png", max_size=80).save(tmp_path / "small" / "image0.png")
    for name, flags in (("large", ["--max_size=80"]), ("small", [])):
        run_here(*features_flags(tmp_path / name, tmp_path / f"{name}_features"), *flags)
        boxes = {"bbox_file": tmp_path / f"{name}_boxes.pth"}
        found = {"features_dir": tmp_path / f"{name}_features", "segmentations_dir": tmp_path / "segments"}
        run_here("extract_bboxes", **found, output_file=boxes["bbox_file"], num_erode=0, num_dilate=0)
        described = {"model_name": "lab_hog", "output_file": tmp_path / f"{name}.pth"}
        run_here("extract_bbox_features", **boxes, images_root=tmp_path / name, **described)
    large, small = (torch.load(tmp_path / f"{name}.pth", weights_only=True)[0] for name in ("large", "small"))
    assert large.pop("max_size") == 80
    assert large.keys() == small.keys()
    assert large["bboxes_original_resolution"] == small["bboxes_original_resolution"] == [[32, 16, 64, 48]]
    torch.testing.assert_close(large["features"], small["features"], rtol=0, atol=0)


def test_three_hundred_boxes_of_many_sizes_are_batched_and_equal_one_by_one():
    from spectralseg.commands.bboxes import crop_features, cut_boxes
    from spectralseg.models.backbones import load_backbone
    from spectralseg.models.tokens import TokenExtractor

    rng = np.random.default_rng(0)
    image = Image.open(SAMPLES / "images" / "coffee.jpg").convert("RGB")
    sides = rng.choice([5, 16, 40, 64], size=(300, 2))
    corners = np.column_stack([rng.integers(0, image.width - 64, 300), rng.integers(0, image.height - 64, 300)])
    boxes = np.column_stack([corners, corners + sides]).tolist()
    extractor = TokenExtractor(load_backbone("vit_tiny_patch16_224", "random"), parts=("cls",))
    crops = cut_boxes(image, boxes, extractor.backbone.patch_size)
    together, others = crop_features(extractor, [crops, crops[:2]], torch.device("cpu"))  # of two images
    torch.testing.assert_close(others, together[:2], rtol=1e-5, atol=1e-5)
    assert together.shape == (300, 192)
    for index in (0, 17, 123, 299):
        (alone,) = crop_features(extractor, [[crops[index]]], torch.device("cpu"))
        torch.testing.assert_close(together[index], alone[0], rtol=1e-4, atol=1e-5)


def test_impossible_arguments(capsys: pytest.CaptureFixture[str]):
    """Refused before a folder is looked for."""
    boxes = "extract_bboxes --features_dir a --segmentations_dir b --output_file c"
    masks = "extract_single_region_segmentations --features_dir a --eigs_dir b --output_dir c"
    segments = "extract_multi_region_segmentations --features_dir a --eigs_dir b --output_dir c"
    crf = "extract_crf_segmentations --images_list a --images_root b --segmentations_dir c --output_dir d"
    for command, message in (
        (f"{boxes} --num_erode -1", "num_erode=-1: must be at least 0"),
        (f"{masks} --mask_format grey", "no mask_format 'grey'; known are palette,"),
        (f"{masks} --mask_format soft", "soft is for foreground=ranking or robust"),
        (f"{masks} --foreground ranking --threshold 1", "threshold is for foreground=eigenvector"),
        (f"{crf} --soft", "--soft is for --num_classes 2, not 21"),
        (f"{crf} --mask_format binary", "binary is for --num_classes 2, not 21; leave"),
        (f"{segments} --num_eigenvectors -2", "num_eigenvectors=-2: must be at least 1"),
        (f"{segments} --non_adaptive_num_segments 0", "must be from 1 to 255"),
        (f"{segments} --non_adaptive_num_segments 300", "must be from 1 to 255"),
    ):
        assert message in refused_here(capsys, *command.split())


def test_single_files_are_kept_refused_or_redone(stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels_file(tmp_path / "segments", "chelsea", np.ones((18, 28)))
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "chelsea.pth").write_bytes((stages / "features" / "chelsea.pth").read_bytes())
    made = {"segmentations_dir": tmp_path / "segments", "output_file": tmp_path / "out" / "bboxes.pth"}
    command = ["extract_bboxes", *as_flags(features_dir=tmp_path / "features", **made)]
    run_here(*command)
    before = made["output_file"].stat().st_mtime_ns
    run_here(*command)
    assert made["output_file"].stat().st_mtime_ns == before
    assert "with num_erode=2 instead of 1" in refused_here(capsys, *command, num_erode=1)
    run_here(*command, "--overwrite", num_erode=1)
    assert made["output_file"].stat().st_mtime_ns > before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bboxes.pth", "bboxes.stage.json"]
