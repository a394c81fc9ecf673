"""extract_eigs on features files made here: what it reads, what it writes, what it refuses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from running import as_flags, picture, refused_here, reported, run_here, write_pictures
from spectralseg.commands import eigs
from spectralseg.mathematics.affinity import colour_grid, knn_affinity, rw_affinity
from spectralseg.mathematics.eigen import TOLERANCE, spectral_eigenvectors

HEIGHT, WIDTH, PATCH = 197, 263, 16  # 12 x 16 patches, enough for the iteration with K = 5
ROWS, COLUMNS = 12, 16


def features_of(seed: int) -> torch.Tensor:
    return torch.randn(1, ROWS * COLUMNS, 9, generator=torch.Generator().manual_seed(seed)).abs()


def record_of(seed: int, **changes: object) -> dict:
    record = {"k": features_of(seed), "id": f"image{seed}", "file": f"image{seed}.png", "indices": seed}
    record |= {"model_name": "none", "patch_size": PATCH, "shape": (1, 3, HEIGHT, WIDTH), "q": features_of(seed + 100)}
    return record | changes


@pytest.fixture
def folder(tmp_path) -> Path:
    """images/ and features/ of two images."""
    for name in ("images", "features"):
        (tmp_path / name).mkdir()
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"image{seed}.png")
        torch.save(record_of(seed), tmp_path / "features" / f"image{seed}.pth")
    return tmp_path


def command(folder: Path, **changes: object) -> list[object]:
    flags = {"images_root": folder / "images", "features_dir": folder / "features", "output_dir": folder / "eigs"}
    return ["extract_eigs", *as_flags(**flags | {"K": 5} | changes)]


def run(folder: Path, output_dir: str = "eigs", **changes: object) -> dict[str, dict]:
    run_here(*command(folder, output_dir=folder / output_dir, **changes))
    return {path.stem: torch.load(path, weights_only=True) for path in (folder / output_dir).glob("*.pth")}


def check(record: dict, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    # Rounding differs by how memory lies, and the iteration ends at residuals of that size.
    torch.testing.assert_close(record["eigenvalues"], expected[0], atol=TOLERANCE[torch.float32], rtol=0)
    torch.testing.assert_close(record["eigenvectors"], expected[1], atol=1e-5, rtol=1e-4)


def test_what_it_writes(folder):
    records = run(folder)
    assert records.keys() == {"image0", "image1"}
    for seed in (0, 1):
        record = records[f"image{seed}"]
        assert record.keys() == {
            *("eigenvalues", "eigenvectors", "id", "shape", "grid", "step", "which_matrix", "file")
        }
        check(record, spectral_eigenvectors(features_of(seed)[0], 5))
        assert record["eigenvalues"].dtype == record["eigenvectors"].dtype == torch.float32
        assert tuple(record["shape"]) == (1, 3, HEIGHT, WIDTH)
        assert (tuple(record["grid"]), record["step"], record["which_matrix"]) == ((ROWS, COLUMNS), PATCH, "laplacian")
        assert (record["id"], record["file"]) == (f"image{seed}", f"image{seed}.png")


def test_flags_reach_the_mathematics(folder):
    for name, flags, options in (
        ("raw", {"normalize": False, "lapnorm": False, "threshold_at_zero": False}, {}),
        ("affinity", {"which_matrix": "affinity", "normalize": False}, {}),
        ("fine", {"image_downsample_factor": 8}, {"grid": (12, 16), "resize_to": (24, 32)}),
        ("coarse", {"image_downsample_factor": 24}, {"grid": (12, 16), "resize_to": (8, 10)}),
    ):
        record = run(folder, output_dir=name, **flags)["image1"]
        same = {key: value for key, value in flags.items() if key != "image_downsample_factor"}
        check(record, spectral_eigenvectors(features_of(1)[0], 5, **same, **options))
        assert tuple(record["grid"]) == options.get("resize_to", (ROWS, COLUMNS))
        assert record["step"] == flags.get("image_downsample_factor", PATCH)


def test_queries_instead_of_keys(folder):
    check(run(folder, which_features="q")["image0"], spectral_eigenvectors(features_of(100)[0], 5))


@pytest.mark.parametrize(("which", "affinity"), [("knn", knn_affinity), ("rw", rw_affinity)])
@pytest.mark.parametrize("factor", [PATCH, 8])
def test_colours_of_the_image(which, affinity, factor, folder):
    """From the image cropped to 192 x 256 pixels, on the grid of the eigenvectors."""
    grid = (192 // factor, 256 // factor)
    colours = colour_grid(Image.open(folder / "images" / "image0.png"), (192, 256), grid)
    flags = {"image_color_lambda": 3, "which_color_matrix": which, "image_downsample_factor": factor}
    record = run(folder, **flags)["image0"]
    resize_to = None if factor == PATCH else grid
    expected = spectral_eigenvectors(
        features_of(0)[0], 5, colour=affinity(colours), colour_lambda=3, grid=(ROWS, COLUMNS), resize_to=resize_to
    )
    check(record, expected)
    assert (expected[0] - run(folder, output_dir="grey")["image0"]["eigenvalues"]).abs().max() > 1e-3


def test_images_are_not_needed_without_colour(folder, capsys):
    assert run(folder, images_root=folder / "absent").keys() == {"image0", "image1"}
    flags = {"images_root": folder / "absent", "output_dir": folder / "colour", "image_color_lambda": 1}
    said = refused_here(capsys, *command(folder, **flags))
    assert said.endswith(f"error: no such images_root: {folder / 'absent'}")


def test_files_of_the_published_code(folder):
    """There indices is a tensor, shape a torch.Size, file and id may be lists of one."""
    ours = run(folder, image_color_lambda=3)["image0"]
    published = record_of(0, indices=torch.tensor([0]), shape=torch.Size((1, 3, HEIGHT, WIDTH)), file=["image0.png"])
    torch.save(published | {"id": ["image0"]}, folder / "features" / "image0.pth")
    theirs = run(folder, image_color_lambda=3, output_dir="theirs")["image0"]
    check(theirs, (ours["eigenvalues"], ours["eigenvectors"]))
    for name in ("id", "file", "shape", "grid", "step"):
        assert theirs[name] == ours[name]


@pytest.mark.slow
def test_workers_give_what_one_process_gives(folder):
    """By the iteration, and with the same signs."""
    flags = {"image_color_lambda": 3}
    here, workers = (run(folder, multiprocessing=n, output_dir=f"eigs{n}", **flags) for n in (0, 2))
    assert here.keys() == workers.keys()
    for name, record in here.items():
        check(workers[name], (record["eigenvalues"], record["eigenvectors"]))
        assert {key: workers[name][key] for key in ("grid", "step", "shape", "file")} == {
            key: record[key] for key in ("grid", "step", "shape", "file")
        }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"which_matrix": "graph"}, "no which_matrix 'graph'; known are laplacian, matting_laplacian, affinity"),
        ({"which_color_matrix": "lab"}, "no which_color_matrix 'lab'; known are knn, rw"),
        ({"solver": "fast"}, "no solver 'fast'; known are auto, dense"),
        ({"K": 0}, "K=0: must be at least 1"),
        ({"image_downsample_factor": 0}, "image_downsample_factor=0: must be at least 1"),
        ({"image_color_lambda": -1}, "image_color_lambda=-1.0: must be at least 0"),
        (
            {"which_matrix": "affinity", "image_color_lambda": 10},
            "colour and downsampling are for Laplacians, not for which_matrix=affinity",
        ),
        (
            {"which_matrix": "affinity_svd", "image_downsample_factor": 8},
            "colour and downsampling are for Laplacians, not for which_matrix=affinity_svd",
        ),
        ({"which_matrix": "local", "image_color_lambda": 1}, "not for which_matrix=local"),
        ({"which_matrix": "local", "lapnorm": False}, "local is a normalised problem"),
        ({"local_radius": 0}, "local_radius=0: must be at least 1"),
        ({"device": "cuda:99"}, "no device 'cuda:99' here: "),
    ],
)
def test_refused_before_any_work(flags, message, folder, capsys):
    assert message in refused_here(capsys, *command(folder, **flags))
    assert not (folder / "eigs").exists()


def test_eigenvectors_need_a_folder_of_their_own(folder, capsys):
    before = sorted(os.listdir(folder / "features"))
    flags = {"output_dir": folder / "images" / ".." / "features"}
    assert "features_dir and output_dir are both" in refused_here(capsys, *command(folder, **flags))
    assert sorted(os.listdir(folder / "features")) == before


def reason(folder: Path, capsys: pytest.CaptureFixture[str], **flags: object) -> str:
    """Why image1 failed, or all did likewise."""
    *_, why = reported(refused_here(capsys, *command(folder, **flags)), "extract_eigs").values()
    return why


@pytest.mark.parametrize("name", ["v", "k_block_-2", "file", "indices"])
def test_features_that_are_not_in_the_file(name, folder, capsys):
    assert f"image1.pth has no features '{name}'" in reason(folder, capsys, which_features=name)


def test_features_that_are_not_one_row_per_patch(folder, capsys):
    for wrong in (features_of(0)[0], features_of(0)[:, :-1], torch.ones(2, ROWS * COLUMNS, 3), torch.ones(())):
        torch.save(record_of(1, k=wrong), folder / "features" / "image1.pth")
        expected = f"features of shape {tuple(wrong.shape)} do not fit 12x16 patches of an image of 263x197"
        assert expected in reason(folder, capsys)


def test_factors_that_leave_too_little(folder, capsys):
    assert "=193 leaves nothing of 256x192 pixels" in reason(folder, capsys, image_downsample_factor=193)
    few = reason(folder, capsys, image_downsample_factor=96, output_dir=folder / "few")
    assert few == "K=5 eigenvectors of 4 patches with 9 features: ask for 1 to 4"
    for record in run(folder, image_downsample_factor=96, output_dir="four", K=4).values():
        assert record["eigenvectors"].shape == (4, 4)


def test_a_graph_beyond_the_memory(folder, capsys, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("memory", (), {"available": 4 * 192**2 * 4 - 1}))
    assert reason(folder, capsys).startswith("192 patches need about 0 GB for their affinities")


def test_on_a_gpu_images_of_one_size_are_solved_together(folder, capsys, monkeypatch):
    """The GPU's way through the files, with the CPU in its place: batches by size, and a bad image among them."""
    for seed in (2, 3, 4):
        torch.save(record_of(seed), folder / "features" / f"image{seed}.pth")
    for seed in (5, 6):
        small = record_of(seed, k=features_of(seed)[:, :176], shape=(1, 3, 11 * PATCH, WIDTH))
        torch.save(small, folder / "features" / f"image{seed}.pth")
    alone = run(folder, output_dir="alone")
    torch.save(record_of(1, k=torch.full((1, ROWS * COLUMNS, 9), 1e38)), folder / "features" / "image1.pth")
    sizes, solve = [], eigs.solve

    def on_cpu(problems, settings, device):
        assert device.type == "cuda"
        sizes.append(len(problems))
        return solve(problems, settings, torch.device("cpu"))

    monkeypatch.setattr(eigs, "solve", on_cpu)
    monkeypatch.setattr(eigs, "device_or_processes", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(eigs, "GPU_BATCH_CELLS", 3 * (ROWS * COLUMNS) ** 2)
    assert reason(folder, capsys) == "the features hold NaN, infinite or immense values; extract them again"
    assert sizes == [3, 1, 1, 1, 2, 2]  # images 0 to 2 together, then one by one for the bad one; 3 and 4; 5 and 6
    records = {path.stem: torch.load(path, weights_only=True) for path in (folder / "eigs").glob("*.pth")}
    assert records.keys() == alone.keys() - {"image1"}
    for name, record in records.items():
        check(alone[name], (record["eigenvalues"], record["eigenvectors"]))


@pytest.mark.parametrize(
    ("seen", "graph"),
    [
        ({}, {}),
        ({"max_size": 64}, {"image_color_lambda": 5, "image_downsample_factor": 8, "color_grid": "released"}),
        ({"debias": "position", "which_block": -2}, {"which_features": "out"}),
    ],
    ids=["plain", "colours", "block"],
)
def test_from_images_the_files_are_the_same(tmp_path, capsys, seen, graph):
    images = write_pictures(tmp_path / "images", 3)
    picture(3, 160, 128).save(images / "larger.png")
    (images / "none.png").write_bytes(b"no picture")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path.name}\n" for path in sorted(images.iterdir())))
    backbone = {"model_name": "vit_tiny_patch16_224", "weights": "random"} if graph.get("which_features") else {}
    of_images = {"images_list": listed, "images_root": images, "model_name": "lab_hog"} | backbone
    both = {name: graph[name] for name in graph if name == "which_features"}
    refused_here(capsys, "extract_features", *as_flags(**of_images, **seen, **both, output_dir=tmp_path / "features"))
    stages = {"images_root": images, "features_dir": tmp_path / "features", "output_dir": tmp_path / "stages"}
    run_here("extract_eigs", *as_flags(**stages, K=3, **graph))
    flags = as_flags(**of_images, **seen, **graph, output_dir=tmp_path / "direct", K=3)
    said = refused_here(capsys, "extract_eigs", *flags, "--batch_size=2")
    assert reported(said, "extract_eigs").keys() == {"none"}
    files = sorted(path.name for path in (tmp_path / "direct").glob("*.pth"))
    assert files == ["image0.pth", "image1.pth", "image2.pth", "larger.pth"]
    for name in files:
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "stages" / name).read_bytes()
    made = [json.loads((tmp_path / way / "stage.json").read_text())["arguments"] for way in ("direct", "stages")]
    assert made[0] == made[1]
    segments = {"eigs_dir": tmp_path / "direct", "output_dir": tmp_path / "segments"}
    run_here("extract_multi_region_segmentations", *as_flags(**segments))
    boxes = {"features_dir": tmp_path / "direct", "segmentations_dir": tmp_path / "segments"}
    run_here("extract_bboxes", *as_flags(**boxes, output_file=tmp_path / "boxes.pth"))
    expected = boxes | {"features_dir": tmp_path / "features"}
    run_here("extract_bboxes", *as_flags(**expected, output_file=tmp_path / "same.pth"))
    assert (tmp_path / "boxes.pth").read_bytes() == (tmp_path / "same.pth").read_bytes()


def test_features_or_images(folder, capsys):
    of_images = {"features_dir": None, "images_list": "a", "model_name": "lab_hog"}
    for changes, said in (
        ({"features_dir": None}, "give --features_dir, or --images_list and --model_name"),
        ({"model_name": "lab_hog", "resize": 20}, "model_name and resize would make features, and features_dir has"),
        (of_images | {"joint": True}, "joint is a graph of"),
        (of_images | {"multiprocessing": 2}, "multiprocessing"),
        (of_images | {"which_features": "cls"}, "no which_features 'cls'"),
    ):
        given = {name: value for name, value in changes.items() if value is not None}
        flags = {"images_root": folder / "images", "features_dir": folder / "features", "output_dir": folder / "eigs"}
        kept = {name: value for name, value in flags.items() if changes.get(name, value) is not None}
        assert refused_here(capsys, "extract_eigs", *as_flags(**kept | given)).startswith(f"error: {said}")
    eigs_dir, out = folder / "old", folder / "out"
    eigs_dir.mkdir()
    torch.save({"eigenvalues": torch.zeros(2), "eigenvectors": torch.zeros(2, 4)}, eigs_dir / "a.pth")
    flags = as_flags(eigs_dir=eigs_dir, output_dir=out)
    said = refused_here(capsys, "extract_multi_region_segmentations", *flags)
    assert "as those of the published code: give --features_dir" in said
