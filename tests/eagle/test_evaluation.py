"""Evaluation and prediction: by the scripts, on checkpoints of ours and published ones; and what they compute."""

import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from eagle_layouts import scenes, write_directory
from eagle_runs import EAGLE, NAMES, write_checkpoint
from eagleseg.checkpoints.files import save_checkpoint
from eagleseg.commands.convert import main as convert
from eagleseg.evaluation.probabilities import cluster_log_probabilities, cluster_scores, image_code, linear_logits
from eagleseg.evaluation.scores import ProbeCounts, as_classes, as_table, scores
from eagleseg.model.heads import EagleModel
from running import run_script_here, write_pictures
from shared_data import SAMPLES
from spectralseg.models.backbones import load_backbone

EVALUATE, DEMO = "eval_segmentation", "demo_segmentation"


@pytest.fixture
def prepared(tmp_path: Path) -> list[str]:
    """Overrides to evaluate a checkpoint on four scenes."""
    write_directory(tmp_path / "data" / "scenes", {"val": scenes(4)})
    path = write_checkpoint(tmp_path / "model.pth")
    return [f"model_path={path}", f"pytorch_data_dir={tmp_path / 'data'}", "device=cpu", "num_workers=0", "res=48"]


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


# the mathematics


@pytest.fixture
def model() -> EagleModel:
    torch.manual_seed(0)
    return EagleModel(6, 4, 2, dim=70).eval()


def test_small_maps_enlarged_are_the_large_ones(model: EagleModel):
    code, size = torch.randn(2, 70, 4, 5), (19, 23)
    enlarged = functional.interpolate(code, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(linear_logits(model, code, size), model.linear_probe(enlarged), rtol=1e-4, atol=1e-5)
    expected = model.cluster_probe.log_probabilities(enlarged, 4.0)
    torch.testing.assert_close(cluster_log_probabilities(model, code, size), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(cluster_scores(model, code, size).argmax(dim=1), expected.argmax(dim=1))


def test_flip_averaging(model: EagleModel):
    def features_of(images: torch.Tensor) -> torch.Tensor:  # sees left and right differently
        ramp = torch.linspace(0, 1, images.shape[-1])
        return torch.cat([images, images * ramp], dim=1)

    images = torch.rand(2, 3, 6, 6)
    code = image_code(features_of, model, images)
    mirrored = image_code(features_of, model, images.flip(-1))
    torch.testing.assert_close(mirrored, code.flip(-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(code, image_code(features_of, model, images, flip=False))


def test_scores_by_hand():
    counts = ProbeCounts(n_clusters=3, n_classes=2)
    truth = torch.tensor([[0, 0, 1, -1]])
    counts.add(torch.tensor([[1, 1, 2, 0]]), torch.tensor([[0, 1, 1, 1]]), truth)
    assert counts.match() == {0: 1, 1: 0}
    results = scores(counts, ["a", "b"])
    assert results["linear"]["accuracy"] == pytest.approx(200 / 3)
    assert results["linear"]["miou"] == pytest.approx(50)
    assert results["cluster_released"]["accuracy"] == 100
    assert results["cluster_released"]["iou"] == {"a": 100, "b": None}  # the only pixel of b went to the extra cluster
    assert results["cluster_strict"]["accuracy"] == pytest.approx(200 / 3)
    assert results["cluster_strict"]["miou"] == pytest.approx(100 / 3)  # of a, b and the row of the rest
    assert as_table(results).splitlines()[2].split() == ["b", "50.00", "-", "0.00"]
    assert as_classes(np.array([0, 1, 2]), counts.match()).tolist() == [1, 0, -1]


# evaluation


def test_evaluation(run_script: Callable[..., Path], prepared: list[str], capsys: pytest.CaptureFixture[str]):
    folder = run_script(EVALUATE, *prepared, "run_crf=false", "save_predictions=true", "pictures=2")
    results = results_of(folder)
    assert results["images"] == 4
    assert results["step"] == 7
    assert set(results["scores"]) == {"linear", "cluster_released", "cluster_strict"}
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    names = {path.name for path in folder.glob("*.png")}
    assert names == {f"confusion_{key}.png" for key in results["scores"]} | {"predictions.png"}
    for probe, count in (("linear", 3), ("cluster", 5)):
        labels = np.array(Image.open(folder / "predictions" / probe / "scene0.png"))
        assert labels.shape == (48, 48)
        assert labels.max() < count


def test_crf_in_processes_changes_nothing(run_script: Callable[..., Path], prepared: list[str]):
    here = run_script(EVALUATE, *prepared, "save_predictions=true", folder="here")
    there = run_script(EVALUATE, *prepared, "save_predictions=true", "crf_processes=2", folder="there")
    assert results_of(here)["scores"] == results_of(there)["scores"]
    plain = run_script(EVALUATE, *prepared, "run_crf=false", "save_predictions=true", folder="plain")
    assert results_of(plain)["scores"] != results_of(here)["scores"]
    for probe in ("linear", "cluster"):
        name = f"predictions/{probe}/scene1.png"
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_several_models(run_script: Callable[..., Path], prepared: list[str], tmp_path: Path):
    one = tmp_path / "model.pth"
    other = write_checkpoint(tmp_path / "other.pth", step=9)
    folder = run_script(EVALUATE, *prepared, f"model_path=[{one},{other}]", "run_crf=false", "pictures=0")
    assert results_of(folder / "0_model")["step"] == 7
    assert results_of(folder / "1_other")["step"] == 9


def test_published_checkpoint(run_script: Callable[..., Path], prepared: list[str], tmp_path: Path):
    """A Lightning file with its backbone, as it is and converted."""
    torch.manual_seed(0)
    backbone = load_backbone("dino_vits16", "random").model.state_dict()
    channels, dim = 3 * 384, 8
    shapes = {
        **{"net.cluster1.0.weight": (dim, channels, 1, 1), "net.cluster1.0.bias": (dim,)},
        **{"net.cluster2.0.weight": (channels, channels, 1, 1), "net.cluster2.0.bias": (channels,)},
        **{"net.cluster2.2.weight": (dim, channels, 1, 1), "net.cluster2.2.bias": (dim,)},
        **{"linear_probe.weight": (3, dim, 1, 1), "linear_probe.bias": (3,), "cluster_probe.clusters": (5, dim)},
        **{"train_cluster_probe_eigen.clusters": (5, 3), "train_cluster_probe_eigen_aug.clusters": (5, 3)},
        **{"project_head.weight": (dim, dim), "project_head.bias": (dim,)},
    }
    state = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"net.model.{name}": value for name, value in backbone.items()}
    settings = {"model_type": "vit_small", "dino_patch_size": 16, "dim": dim, "extra_clusters": 2, "dropout": True}
    content = {"state_dict": collections.OrderedDict(state), "hyper_parameters": settings, "global_step": 5}
    published = tmp_path / "published.ckpt"
    torch.save({**content, "pytorch-lightning_version": "1.8.0"}, published)
    convert([str(published), str(tmp_path / "plain.pth")])
    data = ["dataset_name=directory", "dir_dataset_name=scenes", "dir_dataset_n_classes=3", "res=64", "run_crf=false"]
    scores_of = []
    for path in (published, tmp_path / "plain.pth"):
        folder = run_script(EVALUATE, *prepared, *data, f"model_path={path}", "pictures=0", folder=path.stem)
        scores_of.append(results_of(folder)["scores"])
    assert scores_of[0] == scores_of[1]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model_path=nowhere.pth", "no such checkpoint: nowhere.pth"),
        ("dir_dataset_n_classes=4", "classes"),
        ("dir_dataset_name=elsewhere", "elsewhere"),
        ("split=test", "test"),
        ("res=0", "res=0"),
        ("crf_processes=-1", "crf_processes=-1"),
        ("device=abacus", "abacus"),
        ("dtype=int8", "int8"),
        ("weights=nowhere.pth", "lab_hog8 has no weights"),
    ],
)
def test_what_cannot_be_evaluated(refused: Callable[..., str], prepared: list[str], override: str, says: str):
    assert says in refused(EVALUATE, *prepared, "dir_dataset_class_names=null", override)


def test_checkpoints_that_do_not_fit(refused: Callable[..., str], prepared: list[str], tmp_path: Path):
    path = tmp_path / "model.pth"
    content = torch.load(path, weights_only=True)
    tensors = content["model"]
    smaller = {**tensors, "cluster_probe.clusters": tensors["cluster_probe.clusters"][:4]}
    cases = [
        ({**content, "model": smaller}, "cluster_probe.clusters"),
        ({**content, "settings": {}}, "backbone"),
        ({**content, "settings": {**content["settings"], "backbone": "lab_hog9"}}, "lab_hog9"),
        ({"settings": content["settings"]}, "model"),
    ]
    for changed, says in cases:
        save_checkpoint(path, changed)
        assert says in refused(EVALUATE, *prepared)
    path.write_bytes(path.read_bytes()[:200])
    assert "model.pth" in refused(EVALUATE, *prepared)


def test_without_labels_there_is_nothing_to_evaluate(refused: Callable[..., str], prepared: list[str], tmp_path: Path):
    shutil.rmtree(tmp_path / "data" / "scenes" / "labels")
    assert "demo_segmentation.py" in refused(EVALUATE, *prepared)


def test_the_other_name_of_the_script(
    prepared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    more = ("run_crf=false", "pictures=0", f"hydra.run.dir={tmp_path / 'run'}")
    run_script_here(monkeypatch, EAGLE / "main.py", *prepared, *more)
    assert "mIoU" in capsys.readouterr().out
    assert results_of(tmp_path / "run")["images"] == 4


# prediction


def test_prediction_of_the_samples(run_script: Callable[..., Path], tmp_path: Path):
    path = write_checkpoint(tmp_path / "model.pth")
    chosen = [f"model_path={path}", f"image_dir={SAMPLES / 'images'}", "res=96", "max_side=160", "device=cpu"]
    folder = run_script(DEMO, *chosen)
    for photograph in (SAMPLES / "images").iterdir():
        size = Image.open(photograph).size
        for probe in ("cluster", "linear"):
            labels = Image.open(folder / probe / f"{photograph.stem}.png")
            assert labels.size == size
            assert np.array(labels).max() <= len(NAMES)  # 3: clusters without a class
        overlay = Image.open(folder / "overlays" / f"{photograph.stem}.png")
        assert overlay.width > size[0]  # the legend
        assert overlay.height >= size[1]


def test_photographs_of_all_kinds(
    refused: Callable[..., str], run_script: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = write_pictures(tmp_path / "images", 1)
    (images / "deeper").mkdir()
    Image.new("RGB", (5, 3), (9, 99, 199)).save(images / "tiny.png")
    Image.new("L", (160, 20), 80).save(images / "deeper" / "panorama.jpg")
    Image.new("RGBA", (40, 50), (1, 2, 3, 4)).save(images / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (60, 30)).save(images / "turned.jpg", exif=exif)
    (images / "broken.jpg").write_bytes(b"no picture")
    path = write_checkpoint(tmp_path / "model.pth", match={}, class_names=[])
    chosen = [f"model_path={path}", f"image_dir={images}", "res=32", "run_crf=false", "device=cpu"]
    assert "1 of 6 images failed" in refused(DEMO, *chosen)
    assert "broken" in capsys.readouterr().err
    folder = tmp_path / "run"
    sizes = {path.stem: Image.open(path).size for path in (folder / "cluster").glob("*.png")}
    assert sizes == {
        **{"image0": (80, 64), "tiny": (5, 3), "panorama": (160, 20), "transparent": (40, 50), "turned": (30, 60)}
    }
    assert not (folder / "linear").exists()  # it has learned nothing without labels
    (images / "broken.jpg").unlink()
    before = (folder / "cluster" / "tiny.png").stat().st_mtime_ns
    run_script(DEMO, *chosen)
    assert (folder / "cluster" / "tiny.png").stat().st_mtime_ns == before  # it goes on
    assert "res=32 instead of 48" in refused(DEMO, *chosen, "res=48")


@pytest.mark.parametrize(
    ("override", "says"),
    [("image_dir=nowhere", "nowhere"), ("res=0", "res=0"), ("max_side=0", "max_side=0"), ("model_path=x.pth", "x.pth")],
)
def test_what_cannot_be_predicted(refused: Callable[..., str], tmp_path: Path, override: str, says: str):
    path = write_checkpoint(tmp_path / "model.pth")
    chosen = [f"model_path={path}", f"image_dir={SAMPLES / 'images'}", "device=cpu"]
    assert says in refused(DEMO, *chosen, override)
    assert not (tmp_path / "run").exists()
