"""Several objects per image: cuts, masks, scores, the COCO file."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks import plain_maskcut
from running import refused_here, run_here
from shared_data import SAMPLES
from spectralseg.api import Segmenter
from spectralseg.commands.objects import ObjectSettings
from spectralseg.errors import InputError
from spectralseg.files.images import to_tensor
from spectralseg.mathematics.cuts import maskcut
from spectralseg.mathematics.objects import METHODS, colour_features, distinct, find_parts, iou, score, separation
from spectralseg.models.backbones import load_backbone
from spectralseg.models.tokens import TokenExtractor

GRID = (12, 16)


def scene(*boxes: tuple[int, int, int, int], seed: int = 0, noise: float = 0.3) -> torch.Tensor:
    """(1, T, 12) features: a background, and a rectangle (top, left, bottom, right) of its own kind for each box."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(GRID, dtype=torch.long)
    for number, (top, left, bottom, right) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = number
    kinds = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    return (kinds[labels.flatten()] + noise * torch.randn(labels.numel(), 12, generator=generator) / 12**0.5)[None]


TWO = ((1, 1, 5, 6), (6, 8, 11, 14))


def test_two_objects_one_after_the_other():
    cuts = maskcut(scene(*TWO), GRID, max_objects=2)[0]
    found = {
        tuple(int(edge) for edge in (*np.argwhere(c.mask).min(0), *(np.argwhere(c.mask).max(0) + 1))) for c in cuts
    }
    assert found == set(TWO)
    assert all(each.vector[each.seed] > (1 - 1e-5) * each.vector.max() and each.mask[each.seed] for each in cuts)


@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0.1, 3))
@settings(max_examples=25)
def test_masks_are_those_of_dense_lapack(seed, count, noise):
    random = np.random.default_rng(seed)
    boxes = [(top, left, top + 4, left + 5) for top, left in random.integers(0, 8, (count, 2)).tolist()]
    features = scene(*boxes, seed=seed, noise=noise)
    ours = maskcut(features, GRID, 3)[0]
    plain = plain_maskcut.maskcut(features[0].numpy(), *GRID, 3)
    assert len(ours) == len(plain)
    for own, expected in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(own.mask, expected)


@pytest.mark.filterwarnings("error")  # of eigenvectors that did not converge
@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_a_graph_in_many_parts_that_hardly_hang_together(name):
    with Image.open(SAMPLES / "images" / f"{name}.jpg") as image:
        pixels = to_tensor(image.convert("RGB").resize((336, 256)))[None]
    keys = TokenExtractor(load_backbone("lab_hog"))(pixels)["k"]
    cuts = maskcut(keys, (16, 21), tau=0.8)[0]
    assert cuts[0].value < 0.01
    for own, expected in zip(cuts, plain_maskcut.maskcut(keys[0].numpy(), 16, 21, tau=0.8), strict=True):
        np.testing.assert_array_equal(own.mask, expected)


def test_a_batch_is_cut_like_its_images():
    batch = torch.cat([scene(*TWO), torch.ones(1, 192, 12), scene((2, 3, 9, 9), seed=5)])
    together = maskcut(batch, GRID, 2)
    assert together[1] == []  # a single colour: nothing to cut
    for own, image in zip(together, batch, strict=True):
        alone = maskcut(image[None], GRID, 2)[0]
        assert len(own) == len(alone)
        for one, other in zip(own, alone, strict=True):
            np.testing.assert_array_equal(one.mask, other.mask)


def test_score_and_separation_by_hand():
    features = torch.tensor([[1.0, 0], [1, 0], [0.6, 0.8], [0.6, 0.8], [0, 1], [-1, 0]])
    mask = np.array([[True, True, True], [True, False, False]])
    assert separation(features, mask) == pytest.approx((1 + 1 + 4 * 0.6) / 6 - (0 + 0.8 - 1 - 0.6) / 4)
    for nothing in (np.ones((2, 3), bool), np.zeros((2, 3), bool), mask & mask[:, ::-1]):
        assert separation(features, nothing) == 0
    centred = np.zeros((4, 4), bool)
    centred[1:3, 1:3] = True
    assert score(centred) == 0.5
    centred[0, 0] = True  # a corner counts for both of its sides: 2 of 16
    assert score(centred) == pytest.approx((5 / 16) ** 0.5 * 14 / 16)
    assert score(np.zeros((4, 4), bool)) == score(np.ones((4, 4), bool)) == 0


def test_cosines_of_colour_features_are_a_kernel():
    colours = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) / 4
    unit = torch.nn.functional.normalize(colour_features(colours), dim=-1)
    torch.testing.assert_close(unit @ unit.T, torch.exp(-50 * torch.cdist(colours, colours) ** 2), atol=0.15, rtol=0)


@pytest.mark.parametrize("model_name", ["lab_graph", "lab_hog"])
def test_segmenter_finds_the_objects_of_the_command(model_name, tmp_path):
    segment, flags = Segmenter(model_name), {"tau": 0.5, "crf_backend": "torch"}
    for nothing in (np.full((128, 160, 3), 90), np.random.default_rng(0).integers(0, 256, (128, 160, 3))):
        assert segment.objects(nothing.astype(np.uint8)) == []
    images = {"images_list": tmp_path / "list.txt", "images_root": tmp_path}
    (tmp_path / "list.txt").write_text("coffee.png\n")
    with Image.open(SAMPLES / "images" / "coffee.jpg") as image:
        image.resize((300, 200)).save(tmp_path / "coffee.png")
    run_here("extract_features", **images, model_name=model_name, batch_size=1, output_dir=tmp_path / "features")
    run_here("extract_objects", **images, features_dir=tmp_path / "features", output_dir=tmp_path / "objects", **flags)
    found = segment.objects(tmp_path / "coffee.png", **flags)
    entries = json.loads((tmp_path / "objects" / "objects.json").read_text())["annotations"]
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert sorted(each.mask.sum() for each in found) == sorted(entry["area"] for entry in entries)
    assert len(found) > 0
    for each in found:
        rows, columns = np.nonzero(each.mask)
        assert each.mask.shape == (200, 300)
        assert each.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_noise_is_no_object():
    backbone = load_backbone("test_vit", "random")
    noise = torch.rand(3, 3, 208, 256, generator=torch.Generator().manual_seed(0))
    keys = TokenExtractor(backbone)(noise)["k"]
    for method in METHODS:
        parts = [part for parts in find_parts(keys, (13, 16), method) for part in parts]
        assert max((part.separation for part in parts), default=0) < ObjectSettings().min_separation


def test_what_is_no_object_of_its_own():
    whole = np.zeros((20, 20), bool)
    first, second, same, dust = (whole.copy() for _ in range(4))
    first[:10, :10], second[12:, 12:], same[:10, :9], dust[19, :3] = True, True, True, True
    assert distinct([first, second, same, dust, second], [first, second, same, dust, first]) == [0, 1]
    assert distinct([dust, whole], [dust, whole]) == [0]  # the first may be small; nothing is left of the other
    assert (iou(first, same), iou(whole, whole)) == (0.9, 0.0)


@pytest.mark.parametrize("method", ["maskcut", "segments"])
def test_both_methods_find_what_stands_out(method):
    parts = find_parts(scene(*TWO), GRID, method, max_objects=2)[0]
    masks = [part.mask for part in parts]
    for top, left, bottom, right in TWO:
        truth = np.zeros(GRID, bool)
        truth[top:bottom, left:right] = True
        assert max(iou(mask, truth) for mask in masks) > 0.9
    assert all(part.separation > 0.5 for part in parts)


def test_errors():
    for options, reason in (
        ({"method": "cutonce"}, "no method 'cutonce'; known are maskcut, segments"),
        ({"max_objects": 0}, "max_objects=0: must be at least 1"),
        ({"grid": (3, 3)}, "192 patches do not fit a grid of 3x3"),
    ):
        with pytest.raises(InputError, match=reason):
            find_parts(scene(*TWO), **({"grid": GRID} | options))
    with pytest.raises(InputError, match="NaN or infinite"):
        find_parts(scene(*TWO) * np.nan, GRID)


@pytest.fixture
def photographs(tmp_path):
    """Three photographs, a single colour, and the features of all."""
    (tmp_path / "images").mkdir()
    names = ["astronaut", "chelsea", "coffee"]
    for name in names:
        with Image.open(SAMPLES / "images" / f"{name}.jpg") as image:
            image.resize((240, 176)).save(tmp_path / "images" / f"{name}.png")
    Image.new("RGB", (240, 176), (90, 120, 200)).save(tmp_path / "images" / "blue.png")
    (tmp_path / "list.txt").write_text("".join(f"{name}.png\n" for name in [*names, "blue"]))
    images = {"images_list": tmp_path / "list.txt", "images_root": tmp_path / "images"}
    run_here("extract_features", model_name="lab_hog", batch_size=1, output_dir=tmp_path / "features", **images)
    return images | {"features_dir": tmp_path / "features"}


def test_the_command_and_what_coco_tools_read(photographs, tmp_path, capsys):
    from pycocotools.coco import COCO
    from torchvision.datasets import CocoDetection

    flags = photographs | {"output_dir": tmp_path / "objects", "tau": 0.85, "crf_backend": "torch"}
    run_here("extract_objects", **flags)
    content = json.loads((tmp_path / "objects" / "objects.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        "astronaut.png",
        "blue.png",
        "chelsea.png",
        "coffee.png",
    ]
    coco = COCO(tmp_path / "objects" / "objects.json")
    assert coco.getAnnIds(imgIds=[2]) == []  # nothing in a single colour
    assert len(coco.anns) >= 3
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.shape == (176, 240)
        assert mask.sum() == annotation["area"]
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask)
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert 0 <= annotation["score"] <= 1
    assert len(CocoDetection(photographs["images_root"], tmp_path / "objects" / "objects.json")) == 4
    before = (tmp_path / "objects" / "objects.json").read_bytes()
    (tmp_path / "objects" / "coffee.objects.json").unlink()
    run_here("extract_objects", **flags, multiprocessing=2, save_masks=True)
    for image in coco.imgs.values():
        best = max(coco.imgToAnns[image["id"]], key=lambda each: each["score"], default=None)
        with Image.open(tmp_path / "objects" / "masks" / image["file_name"]) as mask:
            np.testing.assert_array_equal(mask, np.zeros((176, 240)) if best is None else coco.annToMask(best))
    assert (tmp_path / "objects" / "objects.json").read_bytes() == before
    assert "3 already there" in capsys.readouterr().err
    several = flags | {"tau": "0.2,0.85", "output_dir": tmp_path / "several"}
    run_here("extract_objects", **several)
    assert (tmp_path / "several" / "tau_0.85" / "objects.json").read_bytes() == before
    assert "with tau=0.85 instead of 0.2" in refused_here(capsys, "extract_objects", **(flags | {"tau": 0.2}))


def test_objects_of_reduced_images_have_the_size_of_the_photographs(photographs, tmp_path):
    images = {name: photographs[name] for name in ("images_list", "images_root")}
    features = {"model_name": "lab_hog", "batch_size": 1, "resize": 88, "output_dir": tmp_path / "small"}
    run_here("extract_features", **images, **features)
    found = {
        "features_dir": tmp_path / "small",
        "output_dir": tmp_path / "objects",
        "tau": 0.85,
        "crf": False,
        "min_separation": -2,
    }
    run_here("extract_objects", **images, **found)
    content = json.loads((tmp_path / "objects" / "objects.json").read_text())
    assert {tuple(each["segmentation"]["size"]) for each in content["annotations"]} == {(176, 240)}
