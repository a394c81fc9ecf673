"""What the networks get to see: squares, labels, the blurred view, stored records; draws that any process repeats."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from eagle_layouts import camvid, scenes, write_directory
from eagleseg.data.crops import generator_for
from eagleseg.data.dataset import DataSettings, EagleDataset, build_dataset, to_picture
from eagleseg.data.views import cut, flip_and_zoom, jitter, label_tensor, maybe_blurred
from running import error_line
from spectralseg.commands.eigs import EigenSettings, extract_eigs
from spectralseg.commands.features import FeatureSettings, extract_features
from spectralseg.errors import InputError
from spectralseg.files.storage import load_record, save_record
from spectralseg.training.batches import Batches, read_batches

SPLITS = {"train": scenes(6, width=80, height=56), "val": scenes(2, 9)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_directory(tmp_path / "mine", SPLITS)
    return tmp_path


def open_set(root: Path, split: str = "train", training: bool = True, **settings: object) -> EagleDataset:
    mine = {"dir_dataset_name": "mine", "dir_dataset_n_classes": 3, "crop_type": None, "res": 48}
    return build_dataset(DataSettings(str(root), "directory", **{**mine, **settings}), split, training)


def refused(root: Path, item: int | None = None, **settings: object) -> str:
    def read() -> None:
        dataset = open_set(root, **settings)
        if item is not None:
            _ = dataset[item]

    return error_line(read)


# --- items ---


def test_items(data):
    item = open_set(data)[2]
    assert item["id"] == "scene2"
    assert item["index"] == 2
    assert item["img"].shape == item["img_blur"].shape == (3, 48, 48)
    assert item["img"].dtype == torch.float32
    assert item["label"].shape == (48, 48)
    assert item["label"].dtype == torch.int64
    assert set(open_set(data, "val", training=False)[0]) == {"id", "index", "img", "label"}


def test_the_centred_square_is_torchvisions(data):
    """Nearest neighbour to the shorter side, and the centre; the label likewise."""
    dataset = open_set(data)
    square = v2.Compose([v2.Resize(48, v2.InterpolationMode.NEAREST_EXACT), v2.CenterCrop(48)])
    item, photograph = dataset[0], dataset.photograph(0)
    expected = v2.functional.to_dtype(v2.functional.to_image(square(photograph)), scale=True)
    assert torch.allclose(item["img"], expected, atol=1e-6)
    assert to_picture(item["img"]).tobytes() == square(photograph).tobytes()
    assert np.array_equal(item["label"], np.array(square(Image.fromarray(dataset.source.label(0)))))


def test_void_is_minus_one():
    label = np.array([[0, 1], [255, 253]], dtype=np.uint8)
    assert label_tensor(Image.fromarray(label)).tolist() == [[0, 1], [-1, 253]]


def test_image_and_label_stay_together(tmp_path):
    """A picture whose red is its label: whatever is cut, flipped and zoomed, they agree."""
    label = np.random.default_rng(0).integers(0, 5, (9, 12), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    picture = Image.fromarray(np.stack([label * 50] * 3, axis=2))
    seen = set()
    for number in range(8):
        generator = generator_for(0, 0, number)
        image, labels = cut(picture, label, 64, "random", generator)
        assert np.array_equal(np.asarray(image)[..., 0], np.asarray(labels) * 50)
        seen.add(image.tobytes())
        zoomed, labels = flip_and_zoom(image, labels, generator)
        near = np.abs(np.asarray(zoomed)[..., 0].astype(int) - np.asarray(labels).astype(int) * 50) < 25
        assert near.mean() > 0.8  # bilinear against nearest: they differ at edges
    assert len(seen) > 4


# --- randomness ---


def test_the_blurred_view_is_blurred_half_of_the_time():
    rgb = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    views = [maybe_blurred(rgb, generator_for(0, 0, number)) for number in range(400)]
    blurred = [not torch.equal(view, rgb) for view in views]
    assert 160 < sum(blurred) < 240
    changes = [float((view - rgb).abs().mean()) for view, changed in zip(views, blurred, strict=True) if changed]
    strongest = v2.functional.gaussian_blur(rgb, [3, 3], [2.0, 2.0])
    assert max(changes) <= float((strongest - rgb).abs().mean()) + 1e-6
    assert min(changes) < 0.1 * max(changes)


@given(st.integers(0, 10_000))
def test_jitter_stays_in_range(seed):
    rgb = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
    changed = jitter(rgb, generator_for(seed, 0, 0))
    assert changed.shape == rgb.shape
    assert 0 <= changed.min() <= changed.max() <= 1


def test_draws_depend_on_seed_epoch_and_index_alone(data):
    def blurred(epoch: int, workers: int = 0, **settings: object) -> list[torch.Tensor]:
        dataset = open_set(data, loader_crop_type="random", **settings)
        half = len(dataset) // 2
        batches = Batches(len(dataset), 2, lambda epoch: 0, epoch * half, (epoch + 1) * half)
        return [batch["img_blur"] for batch in read_batches(dataset, batches, workers)]

    torch.manual_seed(1)
    first = blurred(1)
    torch.manual_seed(2)
    for again in (blurred(1), blurred(1, workers=2)):
        assert all(map(torch.equal, first, again))
    for other in (blurred(0), blurred(1, seed=3)):
        assert not all(map(torch.equal, first, other))


def test_reading_leaves_torchs_own_randomness_alone(data):
    dataset = open_set(data, augment_geometric=True, augment_photometric=True)
    state = torch.get_rng_state()
    for index in range(4):
        _ = dataset[index]
    assert torch.equal(state, torch.get_rng_state())


def test_augmentation_is_of_the_training_set_alone(data):
    plain, augmented = open_set(data), open_set(data, augment_geometric=True, augment_photometric=True)
    assert not torch.equal(plain[0]["img"], augmented[0]["img"])
    still = {"augment_geometric": True, "loader_crop_type": "random"}
    assert torch.equal(
        open_set(data, "val", training=False)[0]["img"], open_set(data, "val", training=False, **still)[0]["img"]
    )


def test_camvid(tmp_path):
    write_directory(tmp_path / "mine", {"train": camvid("train", 3)})
    dataset = open_set(tmp_path, dir_dataset_n_classes=11, dir_dataset_void=11, res=224)
    for item in dataset:
        assert -1 <= item["label"].min() <= item["label"].max() <= 10
        assert (item["label"] >= 0).float().mean() > 0.8
        if item["index"] == 2:
            break


# --- stored records ---


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features and eigenvectors of the training images by the extract stage, of a random ViT with patches of 16."""
    root = tmp_path_factory.mktemp("extracted")
    images = write_directory(root / "mine", SPLITS) / "imgs" / "train"
    (root / "list.txt").write_text("".join(f"{path.name}\n" for path in sorted(images.iterdir())))
    settings = FeatureSettings("test_vit", (-3, -2, -1), weights="random", resize=48, center_crop=48)
    extract_features(str(root / "list.txt"), str(images), str(root / "features"), settings, batch_size=6, device="cpu")
    extract_eigs(str(images), str(root / "features"), str(root / "eigs"), EigenSettings(K=4), device="cpu")
    return root


@pytest.fixture
def records(extracted: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(extracted, tmp_path / "data"))


def test_stored_records(records):
    stored = {"features_dir": str(records / "features"), "eigs_dir": str(records / "eigs"), "patch_size": 16}
    dataset = open_set(records, **stored)
    item = dataset[1]
    record = load_record(records / "features" / "scene1.pth")
    keys = torch.cat([record[f"k_block_{block}"][0] for block in (-3, -2, -1)], dim=1)
    assert torch.equal(item["features"].flatten(1).T, keys)
    vectors = load_record(records / "eigs" / "scene1.pth")["eigenvectors"]
    assert torch.equal(item["eigs"].flatten(1), vectors[1:4])
    assert item["eigs"].shape == (3, 3, 3)
    plain = open_set(records)[1]
    assert torch.equal(item["img_blur"], plain["img_blur"])
    assert set(open_set(records, "val", training=False, **stored)[0]) == {"id", "index", "img", "label"}
    for same in (dataset, open_set(records)):
        same.require_backbone(record["model_name"], record["weights"])
    error = error_line(dataset.require_backbone, record["model_name"], "vit.pth sha256:0123")
    path = f"{records}/features/scene0.pth"
    expected = f"features_dir: {path} is of weights {record['weights']}, the backbone is of vit.pth sha256:0123"
    assert error == expected
    with pytest.raises(InputError, match="is of model_name"):
        dataset.require_backbone("another", record["weights"])


def test_records_that_do_not_fit(records):
    features, eigs = str(records / "features"), str(records / "eigs")
    fits = {"features_dir": features, "patch_size": 16}
    path = records / "features" / "scene1.pth"
    for moved in ({"augment_geometric": True}, {"loader_crop_type": "random"}):
        name = f"{next(iter(moved))}={str(next(iter(moved.values()))).lower()}"
        assert refused(records, **fits, **moved) == (
            f"features_dir is of the centred square of each image, which {name} does not show"
        )
    assert refused(records, 1, **fits, res=32) == (
        f"{path} is of 48x48 pixels with resize=48, center_crop=48; the loader shows 32x32: extract with --resize 32"
        " --center_crop 32"
    )
    assert refused(records, 1, features_dir=features) == f"{path} has patches of 16 pixels; patch_size is 8"
    assert refused(records, 1, eigs_dir=eigs, patch_size=8) == (
        f"{records}/eigs/scene1.pth has eigenvectors of 9 cells; 6x6 patches of 8 pixels are needed"
        " (no --image_downsample_factor)"
    )
    assert refused(records, 1, eigs_dir=eigs, patch_size=16, eigen_cluster=5) == (
        f"{records}/eigs/scene1.pth has 4 eigenvectors; eigen_cluster=5 needs as many"
    )
    record = load_record(path)
    save_record(path, {**record, "file": "other.jpg"})
    assert refused(records, 1, **fits) == (
        f"{path} was made from other.jpg, not from {records}/mine/imgs/train/scene1.jpg"
    )
    save_record(path, {**record, "resize": None})
    assert "with resize=None, center_crop=48; the loader shows 48x48" in refused(records, 1, **fits)
    del record["k_block_-2"]
    save_record(path, record)
    assert refused(records, 1, **fits).startswith(str(path))
    path.unlink()
    assert refused(records, **fits) == f"features_dir={features} lacks 1 of 6 images: scene1.pth is not there"
    assert refused(records, features_dir=str(records / "none")).startswith(f"no such folder: {records}/none")
    eigs_path = records / "eigs" / "scene1.pth"
    record = load_record(eigs_path)
    save_record(eigs_path, {**record, "which_matrix": "affinity"})
    assert "is of which_matrix=affinity" in refused(records, 1, eigs_dir=eigs, patch_size=16)
    save_record(eigs_path, {**record, "eigenvectors": record["eigenvectors"] / 0})
    assert "holds NaN or infinite values" in refused(records, 1, eigs_dir=eigs, patch_size=16)
