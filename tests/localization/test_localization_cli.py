"""object-localization/main.py as users call it: flags in, results out."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from localization_data import folder_flags, voc_annotation, voc_object, write_table
from running import extracted, picture, run_command, write_pictures
from shared_data import PROJECT, SAMPLES, reference, shared, voc2007_images
from spectralseg.errors import InputError
from spectralseg.files.images import to_tensor
from spectralseg.files.storage import load_record, save_record

DINO_IMAGES = ("chelsea", "astronaut", "coffee")
MODES = ([], ["--eigenseg"], ["--tokencut"], ["--dinoseg", "--dinoseg_head", 0])


# --- recorded values ---


@pytest.fixture
def recorded() -> dict:
    return json.loads(reference("localization.json").read_text())


@pytest.mark.parametrize(
    ("recorded_as", "flags"),
    [
        ("lost_centred_k100", []),
        ("lost_centred_k20", ["--k_patches", 20]),
        ("dino_seg_head0", ["--dinoseg", "--dinoseg_head", 0]),
        ("dino_seg_head4", ["--dinoseg"]),
        ("dino_seg_head4", ["--dinoseg", "--dinoseg_mended"]),
    ],
)
def test_recorded_boxes_of_features(recorded, localization, tmp_path, recorded_as, flags):
    (tmp_path / "features").mkdir()
    with np.load(reference("features.npz")) as features:
        for image in DINO_IMAGES:
            keys = torch.from_numpy(features[f"dino_vits16/{image}/k"])
            record = {
                "k": keys - keys.mean(dim=1, keepdim=True),
                "attn_cls": torch.from_numpy(features[f"dino_vits16/{image}/attn_cls"]),
                "shape": tuple(int(side) for side in features[f"dino_vits16/{image}/shape"]),
                "patch_size": 16,
            }
            save_record(tmp_path / "features" / f"{image}.pth", record)
    source = [*folder_flags(reference("images")), "--precomputed_features_dir", tmp_path / "features"]
    found = localization(*source, *flags, fails=True)
    for image in DINO_IMAGES:
        expected = recorded[image][recorded_as]
        assert found.box(f"{image}.png") == (expected["box"] if "seed" in expected else expected)
    assert found.summary["settings"].get("dinoseg_mended", False) == ("--dinoseg_mended" in flags)
    assert set(found.summary["problems"]) == {"rocket"}  # no features of that one
    assert found.error.startswith("error: 1 of 4 images could not be handled")


@pytest.mark.parametrize("setting", ["laplacian", "laplacian_knn10_ds8", "affinity"])
def test_recorded_boxes_of_published_eigenvectors(recorded, localization, tmp_path, setting):
    """Files with the two published fields alone; the kind of matrix from the folder's name."""
    (tmp_path / setting).mkdir()
    with np.load(reference("eigs.npz")) as eigs:
        for image in (*DINO_IMAGES, "rocket"):
            record = {name: eigs[f"{setting}/{image}/{name}"] for name in ("eigenvalues", "eigenvectors")}
            record["eigenvectors"] = torch.from_numpy(record["eigenvectors"])
            torch.save(record, tmp_path / setting / f"{image}.pth")
    found = localization(*folder_flags(reference("images")), "--eigenseg", "--precomputed_eigs_dir", tmp_path / setting)
    for image in (*DINO_IMAGES, "rocket"):
        assert found.box(f"{image}.png") == recorded[image][f"eigenseg/{setting}"]


# --- modes ---


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lab_hog features and eigenvectors of the four sample photographs, beside their annotations."""
    output = extracted(SAMPLES / "images", tmp_path_factory.mktemp("samples") / "extracted", eigs="laplacian")
    rows = {}
    for path in sorted((SAMPLES / "masks").iterdir()):
        rows_, columns = np.nonzero(np.asarray(Image.open(path)))
        rows[f"{path.stem}.jpg"] = [(columns.min(), rows_.min(), columns.max() + 1, rows_.max() + 1)]
    write_table(output / "boxes.csv", rows)
    return output


def test_on_the_spot_equals_precomputed(localization, samples):
    """Also across the ways to get there: eigenvectors, features, or photographs alone."""
    flags = [*folder_flags(SAMPLES / "images", samples / "boxes.csv"), "--eigenseg"]
    sources = (
        ["--precomputed_eigs_dir", samples / "laplacian"],
        ["--precomputed_features_dir", samples / "features"],
        ["--arch", "lab_hog"],
    )
    found = [localization(*flags, *source, name=str(index)) for index, source in enumerate(sources)]
    assert found[0].rows == found[1].rows == found[2].rows
    assert 0 < found[0].summary["correct"] <= 4


@pytest.mark.parametrize(
    ("flags", "drawn"),
    [
        *((["--arch", "test_vit", *mode], "fms") for mode in MODES),
        (["--trivial", "central"], "pred"),
        (["--arch", "resnet50", "--resnet_dilate", 4], "seed_expansion"),
        (["--arch", "vgg16_imagenet"], "seed_expansion"),
    ],
)
def test_modes_and_backbones(localization, tmp_path, flags, drawn):
    images = write_pictures(tmp_path / "images", 2, width=90, height=70)
    found = localization(*folder_flags(images), *flags, "--weights", "random", "--visualize", drawn, "--save_masks")
    assert ("RANDOM weights" in found.complained) == ("--trivial" not in flags)
    for index in range(2):
        xmin, ymin, xmax, ymax = found.box(f"image{index}.png")
        assert 0 <= xmin < xmax <= 90
        assert 0 <= ymin < ymax <= 70
        with Image.open(found.folder / "pictures" / f"image{index}_{drawn}.png") as sheet:
            assert sheet.width > 200 or drawn == "pred"
        with Image.open(found.folder / "masks" / f"image{index}.png") as mask:
            assert mask.size == (90, 70)
            rows, columns = np.nonzero(mask)
        enclosed = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert enclosed == pytest.approx((xmin, ymin, xmax, ymax), abs=1)  # boxes of CNNs' cells have fractions
    assert not (found.folder / "results.txt").exists()  # nothing is annotated


def test_several_taus_read_each_image_once_and_give_what_each_alone_gives(localization, tmp_path, monkeypatch):
    from objectloc import patch_models

    write_pictures(tmp_path / "images", 3)
    table = write_table(tmp_path / "boxes.csv", {f"image{index}.png": [(4, 4, 40, 40)] for index in range(3)})
    flags = [*folder_flags(tmp_path / "images", table), "--tokencut"]
    flags += ["--arch", "test_vit", "--weights", "random", "--which_features", "out"]
    alone = {tau: localization(*flags, "--tau", tau, name=f"alone{tau}") for tau in (0.0, 0.3)}
    seen, compute = [], patch_models.compute_patches
    monkeypatch.setattr(patch_models, "compute_patches", lambda *given: seen.append(1) or compute(*given))
    results = tmp_path / "results" / "folder_images"
    for taus, images in (("0,0.3", 3), ("0,0.3,0.6", 6)):  # a tau that comes later reads for itself
        localization(*flags, "--tau", taus, name="both")
        assert len(seen) == images
    for tau, found in alone.items():
        content = (results / f"both-tau_{tau:g}" / "results.json").read_text()
        assert json.loads(content) == found.summary
        assert found.summary["settings"]["tau"] == tau


def test_images_are_padded_up_for_all_but_eigenseg(localization, tmp_path, monkeypatch):
    """70 rows of pixels are 5 rows of patches, of which eigenseg sees 4; padding is zero after normalisation."""
    from objectloc.options import DetectorOptions
    from objectloc.patch_models import compute_patches, load_model, pad_to_patches

    image = picture(0, width=90, height=70)
    grids = {}
    for mode in ("lost", "eigenseg", "dinoseg"):
        patches = compute_patches(
            image, load_model(DetectorOptions(mode=mode, arch="test_vit", weights="random", dinoseg_head=0))
        )
        grids[mode] = patches.grid
        assert patches.view == (70, 90)
        assert patches.values.shape[0 if mode != "dinoseg" else 1] == patches.grid[0] * patches.grid[1]
    assert grids == {"lost": (5, 6), "eigenseg": (4, 5), "dinoseg": (5, 6)}
    padded = pad_to_patches(to_tensor(image), 16, (0.1, 0.2, 0.3))
    assert padded.shape == (3, 80, 96)
    assert torch.equal(padded[:, :70, :90], to_tensor(image))
    assert torch.equal(padded[:, 70:, :], torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).expand(3, 10, 96))
    whole = to_tensor(picture(0, width=96, height=80))
    assert torch.equal(pad_to_patches(whole, 16, (0.1, 0.2, 0.3)), whole)


def test_a_single_image(localization):
    found = localization("--image_path", SAMPLES / "images" / "chelsea.jpg", "--arch", "lab_hog", "--tokencut")
    assert found.folder.parent.name == "image_chelsea"
    box = found.box("chelsea.jpg")
    assert f"box (xmin, ymin, xmax, ymax): {', '.join(f'{side:g}' for side in box)}" in found.said
    with Image.open(found.folder / "pictures" / "chelsea_pred.png") as drawn:
        assert drawn.size == (451, 300)
        border = [drawn.getpixel((int(box[0]) + 2, y)) for y in range(int(box[1]) + 5, int(box[3]) - 5)]
    assert sum(colour == (235, 25, 25) for colour in border) > 0.9 * len(border)


def test_the_picture_shows_annotated_boxes(localization, tmp_path):
    images = write_pictures(tmp_path / "images", 1)
    table = write_table(tmp_path / "boxes.csv", {"image0.png": [(20, 10, 60, 50)]})
    found = localization(*folder_flags(images, table), "--trivial", "whole", "--visualize", "pred")
    with Image.open(found.folder / "pictures" / "image0_pred.png") as drawn:
        assert drawn.getpixel((40, 12)) == (30, 190, 80)
        assert drawn.getpixel((40, 2)) == (235, 25, 25)


@pytest.mark.parametrize("flags", [["--trivial", "whole"], ["--eigenseg", "--arch", "lab_hog"]])
def test_pictures_that_a_mode_cannot_draw(localization, tmp_path, flags):
    images = folder_flags(write_pictures(tmp_path / "images", 1))
    found = localization(*images, *flags, "--visualize", "seed_expansion", fails=True)
    assert "--visualize seed_expansion shows nothing here: it is for LOST" in found.summary["problems"]["image0"]


# --- files of the extract stage ---


def test_features_of_smaller_images_give_boxes_of_the_whole_image(localization, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    picture(0, width=160, height=128).save(images / "a.png")
    small = extracted(images, tmp_path / "small", "--resize", 64, eigs="laplacian")
    found = localization(*folder_flags(images), "--eigenseg", "--precomputed_eigs_dir", small / "laplacian")
    record = load_record(small / "laplacian" / "a.pth")
    mask = (record["eigenvectors"][1] > 0).reshape(record["grid"])
    assert record["shape"] == (1, 3, 64, 80)
    xmin, ymin, xmax, ymax = found.box("a.png")
    assert all(side % 32 == 0 for side in (xmin, ymin, xmax, ymax))
    assert mask[int(ymin) // 32 : int(ymax) // 32, int(xmin) // 32 : int(xmax) // 32].any()


@pytest.mark.parametrize("foreground", ["ranking", "robust"])
def test_objects_that_are_unlike_the_border(localization, tmp_path, foreground):
    """``lab_graph`` on the spot and from files, on a reduced copy."""
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(60, 70, (600, 800, 3), dtype=np.uint8)
    pixels[160:400, 240:480, 0] += 150
    Image.fromarray(pixels).save(images / "a.png")
    files = extracted(images, tmp_path / "files", "--model_name=lab_graph")
    flags = [*folder_flags(images), "--eigenseg", "--foreground", foreground]
    spot = localization(*flags, "--arch", "lab_graph", "--visualize", "fms", name="spot")
    stored = localization(*flags, "--precomputed_features_dir", files / "features", name="files")
    assert spot.box("a.png") == stored.box("a.png") == [240, 160, 480, 400]
    other = localization(
        *flags,
        "--precomputed_eigs_dir",
        files / "eigs",
        "--which_matrix",
        "laplacian",
        name="eigs",
        fails=foreground == "robust",
    )
    assert "needs colours: give --precomputed_features_dir" in other.error or foreground == "ranking"
    refused = localization(*flags[:-3], "--tokencut", "--arch", "lab_graph", name="no", fails=True)
    assert "of which tokencut makes nothing: take --eigenseg" in refused.error
    refused = localization(*flags[:-3], "--precomputed_features_dir", files / "features", name="no", fails=True)
    assert "of which lost makes nothing" in refused.summary["problems"]["a"]
    refused = localization(*flags[:-3], "--foreground", foreground, name="no", fails=True)
    assert refused.error == f"error: --foreground {foreground} is for --eigenseg"


def test_foreign_and_missing_files_are_named(localization, tmp_path, samples):
    """Each of four images has something else wrong with its file; the fifth has its box."""
    images = write_pictures(tmp_path / "images", 5, width=64, height=48)
    eigs = tmp_path / "laplacian"
    eigs.mkdir()
    vectors = torch.stack([torch.ones(12), torch.linspace(-1, 1, 12)])
    good = {"eigenvalues": torch.zeros(2), "eigenvectors": vectors}
    save_record(eigs / "image0.pth", good)
    save_record(eigs / "image1.pth", good | {"shape": (1, 3, 100, 100), "grid": (3, 4), "step": 16})
    save_record(eigs / "image2.pth", good | {"which_matrix": "affinity"})
    save_record(eigs / "image3.pth", {"eigenvalues": torch.zeros(1), "eigenvectors": vectors[:1]})
    found = localization(*folder_flags(images), "--eigenseg", "--precomputed_eigs_dir", eigs, fails=True)
    problems = found.summary["problems"]
    assert problems["image1"] == (
        f"{eigs / 'image1.pth'} was made from an image of 100x100 pixels, and this one has 64x48"
    )
    assert problems["image2"].startswith(f"{eigs / 'image2.pth'} holds eigenvectors of a affinity matrix")
    assert problems["image3"] == f"{eigs / 'image3.pth'} has 1 eigenvector; a laplacian needs at least 2"
    assert problems["image4"] == f"no such file: {eigs / 'image4.pth'}"
    assert list(found.rows) == ["image0.png"]
    assert found.error == f"error: 4 of 5 images could not be handled: see {found.folder / 'results.json'}"
    assert found.complained.count("failed: ") == 4


def test_the_kind_of_matrix(tmp_path):
    from objectloc.patch_sources import matrix_kind

    for folder, field, asked, expected in (
        ("laplacian", None, "infer", "laplacian"),
        ("matting_laplacian", None, "infer", "laplacian"),
        ("affinity_svd", None, "infer", "affinity"),
        ("laplacian_knn10", "matting_laplacian", "infer", "laplacian"),
        ("eigs", "affinity_torch", "infer", "affinity"),
        ("eigs", None, "affinity", "affinity"),
        ("affinity", None, "laplacian", "laplacian"),  # what is asked for wins over a folder's name
    ):
        record = {} if field is None else {"which_matrix": field}
        assert matrix_kind(tmp_path / folder / "a.pth", record, asked) == expected
    with pytest.raises(InputError, match="neither .*a.pth nor its folder's name tells .* --which_matrix"):
        matrix_kind(tmp_path / "eigs" / "a.pth", {}, "infer")
    with pytest.raises(InputError, match="a.pth holds eigenvectors of a laplacian matrix, not of a affinity"):
        matrix_kind(tmp_path / "affinity" / "a.pth", {"which_matrix": "laplacian"}, "infer")


def test_features_that_lack_what_a_mode_reads(localization, samples):
    flags = [*folder_flags(SAMPLES / "images"), "--precomputed_features_dir", samples / "features"]
    found = localization(*flags, "--dinoseg", fails=True)
    path = samples / "features" / "coffee.pth"
    assert found.summary["problems"]["coffee"] == (
        f"{path} has no features 'attn_cls'; extract them with --which_features attn_cls"
    )
    found = localization(*flags, "--which_features", "q", name="q", fails=True)
    assert found.summary["problems"]["coffee"].startswith(f"{path} has no features 'q'")


# --- running again, and from elsewhere ---


def test_goes_on_where_it_stopped_unless_arguments_differ(localization, tmp_path):
    images = write_pictures(tmp_path / "images", 3)
    flags = [*folder_flags(images), "--arch", "lab_hog"]
    first = localization(*flags)
    boxes = first.folder / "boxes"
    (boxes / "image1.box.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in boxes.glob("*.box.json")}
    again = localization(*flags)
    assert "1 written, 2 already there" in again.complained
    assert {name: (boxes / name).stat().st_mtime_ns for name in before} == before
    assert again.rows == first.rows
    refused = localization(*flags, "--k_patches", 7, fails=True)
    assert "already holds 3 *.box.json files, but with k_patches=100 instead of 7" in refused.error
    localization(*flags, "--k_patches", 7, "--overwrite")


def test_skip_if_exists(localization, tmp_path, voc):
    root = voc({"a": voc_annotation(voc_object())})
    flags = ["--data_root", root, "--set", "test", "--trivial", "whole"]
    first = localization(*flags, "--skip_if_exists")
    assert (first.folder / "results.txt").read_text() == "corloc,100.0,,\n"
    (first.folder / "boxes.csv").unlink()
    again = localization(*flags, "--skip_if_exists")
    assert again.said == f"{first.folder / 'results.txt'} is there already: corloc,100.0,,\n"
    assert not (first.folder / "boxes.csv").exists()


def test_without_evaluation_or_pickles(localization, voc):
    root = voc({"a": None})  # no annotation at all
    flags = ["--data_root", root, "--set", "test", "--trivial", "central", "--no_evaluation"]
    found = localization(*flags)
    assert {path.name for path in found.folder.iterdir()} == {"boxes", "boxes.csv", "results.json", "preds.pkl"}
    assert (found.folder / "boxes.csv").read_text().splitlines()[1] == "a.jpg,12,9.6,68,54.4,,"
    assert "corloc" not in found.summary
    assert pickle.loads((found.folder / "preds.pkl").read_bytes())["a.jpg"].shape == (4,)
    found = localization(*flags, "--save_predictions", "False", name="bare")
    assert {path.name for path in found.folder.iterdir()} == {"boxes", "boxes.csv", "results.json"}


def test_a_launcher_shares_out_the_images(localization, tmp_path, monkeypatch):
    """Two processes of torchrun, one after the other: the second one finds all boxes there and writes the results."""
    images = write_pictures(tmp_path / "images", 3)
    table = write_table(tmp_path / "boxes.csv", {f"image{i}.png": [(0, 0, 80, 64)] for i in range(3)})
    flags = [*folder_flags(images, table), "--trivial", "whole"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    first = localization(*flags)
    assert "1 boxes are the other processes' work" in first.complained
    assert not (first.folder / "results.txt").exists()
    monkeypatch.setenv("RANK", "1")
    second = localization(*flags)
    assert "process 1 of 2 takes 1 of 3 images" in second.complained
    assert (second.folder / "results.txt").read_text() == "corloc,100.0,,\n"


def test_the_backbones_of_the_papers():
    from objectloc.options import ARCHITECTURES, CONVNETS, DetectorOptions
    from objectloc.patch_models import VITS, backbone_name
    from spectralseg.models.backbones import SOURCES

    assert backbone_name(DetectorOptions()) == "dino_vits16"
    assert backbone_name(DetectorOptions(patch_size=8)) == "dino_vits8_300ep"  # what LOST used
    assert backbone_name(DetectorOptions(arch="vit_base", patch_size=8)) == "dino_vitb8"
    assert backbone_name(DetectorOptions(arch="dinov2_vits14")) == "dinov2_vits14"
    assert {arch for arch, _ in VITS} | set(CONVNETS) == set(ARCHITECTURES)
    assert {name for (arch, _), name in VITS.items() if arch != "vit_tiny"} <= set(SOURCES)


@pytest.mark.slow
def test_from_its_own_folder_with_two_processes(localization, samples, tmp_path):
    """As in README: python main.py in object-localization. The results equal those of one process."""
    flags = [*folder_flags(SAMPLES / "images", samples / "boxes.csv")]
    flags += ["--eigenseg", "--precomputed_eigs_dir", samples / "laplacian"]
    alone = localization(*flags)
    command = [sys.executable, "main.py", *flags, "--num_workers", 2, "--output_dir", tmp_path / "two"]
    result = run_command(command, cwd=PROJECT / "object-localization")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "two" / "folder_images" / "eigenseg-extracted-laplacian"
    for name in ("boxes.csv", "results.json", "results.txt", "preds.pkl", "gt.pkl"):
        assert (folder / name).read_bytes() == (alone.folder / name).read_bytes(), name


# --- real photographs ---


def test_trivial_boxes_of_voc2007(localization):
    """Measured figures: what any detector must beat on these 300 images."""
    for box, correct in (("whole", 94), ("central", 113)):
        found = localization("--data_root", shared() / "data", "--set", "test", "--trivial", box, name=box)
        assert (found.summary["images"], found.summary["correct"]) == (300, correct)


@pytest.mark.parametrize("mode", MODES[:3], ids=["lost", "eigenseg", "tokencut"])
def test_detectors_run_on_all_sizes(localization, tmp_path, mode):
    """The first photographs of VOC2007's test set, in its layout."""
    source, ids = voc2007_images()[0].parents[1], [path.stem for path in voc2007_images()[:24]]
    target = tmp_path / "VOC2007" / "VOCdevkit" / "VOC2007"
    (target / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("JPEGImages", "Annotations"):
        (target / name).symlink_to(source / name)
    (target / "ImageSets" / "Main" / "test.txt").write_text("\n".join(ids))
    found = localization("--data_root", tmp_path, "--set", "test", *mode, "--arch", "lab_hog")
    assert found.summary["images"] == len(ids)
    assert (found.folder / "results.txt").read_text() == f"corloc,{found.summary['corloc']:.1f},,\n"
    assert 0 < found.summary["correct"] < len(ids)
