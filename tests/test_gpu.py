"""On a GPU: what it computes is what the CPU computes. They run with ``make test-gpu``, where there is one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from eagleseg.losses import correspondence
from eagleseg.losses.step import EagleStep, total_loss
from eagleseg.model import heads
from eagleseg.model.heads import EagleModel
from eagleseg.training.settings import TrainSettings
from shared_data import SAMPLES, reference
from spectralseg.commands import cli
from spectralseg.files.label_maps import upscale_labels
from spectralseg.mathematics.affinity import knn_affinity
from spectralseg.mathematics.crf import EAGLE_CRF, CrfSettings, dense_crf, refine_probabilities
from spectralseg.mathematics.cuts import maskcut, similarity_graph
from spectralseg.mathematics.eigen import normalised_cut, spectral_eigenvectors
from spectralseg.models.backbones import load_backbone
from spectralseg.models.tokens import TokenExtractor

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU, and to be asked for (make test-gpu)"
)
GPU = torch.device("cuda")
SIDE = 24


def features_of(seeds: range) -> torch.Tensor:
    """(B, T, 16) of images with four regions each."""
    images = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        regions = torch.arange(SIDE * SIDE) * 4 // (SIDE * SIDE)
        noise = 0.2 * torch.randn(SIDE * SIDE, 16, generator=generator)
        images.append(torch.rand(4, 16, generator=generator)[regions] + noise)
    return torch.stack(images)


@pytest.mark.filterwarnings("error")  # the fallback to LAPACK warns
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lapnorm": False},
        {"normalize": False},
        {"threshold_at_zero": False},
        {"which_matrix": "affinity"},
        {"which_matrix": "affinity_torch"},
        {"which_matrix": "affinity_svd"},
        {"colour_lambda": 10.0},
        {"solver": "dense"},
        {"resize_to": (20, 30)},
        {"solver": "blocked"},
        {"solver": "landmarks"},
    ],
    ids=str,
)
def test_eigenvectors(settings):
    features = features_of(range(5))
    if "colour_lambda" in settings:
        colours = np.random.default_rng(0).random((SIDE, SIDE, 3))
        settings = settings | {"colour": [knn_affinity(colours)] * 5}
    settings = settings | {"grid": (SIDE, SIDE), "K": 6}
    values, vectors = (result.cpu() for result in spectral_eigenvectors(features.to(GPU), **settings))
    expected, exact = spectral_eigenvectors(features, **(settings | {"solver": "dense"}))
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-5)
    scale = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    cosines = (vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)) @ (exact / scale).mT
    assert cosines[:, :4, :4].diagonal(dim1=1, dim2=2).min() > 0.999  # signs too; the others lie close together


def test_an_image_alone_and_float64():
    W = torch.rand(300, 300, generator=torch.Generator().manual_seed(0)).double()
    W = W + W.T
    for given, tolerance in ((W, 1e-9), (W.float(), 2e-5)):
        values, x, degrees = (result.cpu() for result in normalised_cut(given.to(GPU), 5))
        values, x, degrees = values.double(), x.double(), degrees.double()
        residual = degrees[:, None] * x - W @ x - values * degrees[:, None] * x
        assert residual.norm(dim=0).max() <= tolerance * degrees.max() ** 0.5


@pytest.mark.filterwarnings("error")
def test_graphs_in_many_parts():
    """MaskCut's float64 graphs, where eigenvalues crowd near 0 and the iteration goes on with a factorisation."""
    W = similarity_graph(torch.randn(3, SIDE * SIDE, 4, generator=torch.Generator().manual_seed(0)), 0.97)
    values = normalised_cut(W.to(GPU), 5)[0].cpu()
    torch.testing.assert_close(values, normalised_cut(W, 5, dense=True)[0], atol=1e-9, rtol=0)
    islands = torch.eye(16)[torch.arange(16).repeat_interleave(torch.arange(20, 84, 4))[: SIDE * SIDE]]
    features = torch.nn.functional.normalize(torch.stack([islands, *features_of(range(2))]), dim=-1)
    here, there = (maskcut(features.to(device), (SIDE, SIDE)) for device in ("cpu", GPU))
    for ours, theirs in zip(here, there, strict=True):
        assert [cut.seed for cut in ours] == [cut.seed for cut in theirs]
        assert all((one.mask != other.mask).mean() <= 0.002 for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("image", ["astronaut", "coffee"])
@pytest.mark.parametrize("kind", ["C2_P16", "C21_P16", "C4_P8"])
def test_recorded_label_maps_of_the_crf(image, kind):
    recorded = np.load(reference("regions.npz"))
    pixels = np.array(Image.open(reference(f"images/{image}.png")).convert("RGB"))
    classes, patch = (int(part[1:]) for part in kind.split("_"))
    labels = upscale_labels(recorded[f"crf/{image}/{kind}/segmap"], *pixels.shape[:2], patch)
    sharp = dense_crf(pixels, labels, classes, CrfSettings(), GPU)
    assert (sharp == recorded[f"crf/{image}/{kind}/labels"]).mean() >= 0.9999
    both = dense_crf(np.stack([pixels, 255 - pixels]), np.stack([labels, labels]), classes, CrfSettings(), GPU)
    assert (both[0] != sharp).mean() <= 1e-5
    again = dense_crf(pixels, labels, classes, CrfSettings(), GPU)
    np.testing.assert_array_equal(again, sharp)


def test_soft_probabilities_of_the_crf():
    image = torch.from_numpy(np.array(Image.open(SAMPLES / "images" / "coffee.jpg").convert("RGB").resize((300, 200))))
    logits = torch.randn(1, 27, 14, 20, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.interpolate(2 * logits, (200, 300), mode="bilinear")[0].log_softmax(0)
    settings = CrfSettings(**(EAGLE_CRF.__dict__ | {"crf_backend": "torch"}))
    here, there = (
        refine_probabilities(image, soft, settings),
        refine_probabilities(image.to(GPU), soft.to(GPU), settings),
    )
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=0)


@pytest.mark.parametrize("parts", [("k", "q", "v", "cls", "attn_cls")])
def test_features(parts):
    images = torch.rand(3, 3, 70, 97, generator=torch.Generator().manual_seed(0))
    backbones = load_backbone("dino_vits16", "random"), load_backbone("dino_vits16", "random", GPU)
    backbones[1].model.load_state_dict(backbones[0].model.state_dict())
    here, there = (
        TokenExtractor(each, (-1, -2), parts)(images.to(where))
        for each, where in zip(backbones, ("cpu", GPU), strict=True)
    )
    assert here.keys() == there.keys()
    for name, values in here.items():
        assert torch.linalg.norm(there[name].cpu() - values) <= 1e-4 * torch.linalg.norm(values)


@pytest.mark.parametrize("mode", ["prototype", "mean", "learned"])
def test_losses_of_eagle_and_their_gradients(mode, monkeypatch):
    """With the random points and pairs of the CPU on both, and without dropout."""
    for name in ("random_points", "other_images"):
        drawn = getattr(correspondence, name)
        monkeypatch.setattr(correspondence, name, lambda *a, drawn=drawn: drawn(*a[:-1], torch.device("cpu")).to(a[-1]))
    monkeypatch.setattr(heads, "DROPOUT", 0.0)
    settings = TrainSettings("", feature_samples=5, neg_samples=2, dropout=False, centroid_mode=mode)
    results = []
    for device in ("cpu", GPU):
        torch.manual_seed(0)
        model = EagleModel(24, 5, 2, dim=16, eigen_cluster_out=6, dropout=False, learned_prototypes=mode == "learned")
        features = features_of(range(4)).mT.unflatten(-1, (SIDE, SIDE)).repeat(1, 2, 1, 1)[:, :24]
        rgb, label = torch.rand(4, 3, 96, 96), torch.randint(-1, 5, (4, 96, 96))
        batch = {"img": rgb.to(device), "label": label.to(device)}
        terms = EagleStep(model.to(device), settings)(features.to(device), features.to(device) + 0.1, batch, 0.5)
        total_loss(terms, 0.5, settings).backward()
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        results.append(({name: float(term.detach()) for name, term in terms.items()}, gradients))
    (here, gradients), (there, gradients_there) = results
    assert there == pytest.approx(here, rel=1e-4, abs=1e-6)
    assert gradients.keys() == gradients_there.keys()
    for name, gradient in gradients.items():
        assert torch.linalg.norm(gradients_there[name] - gradient) <= 1e-3 * torch.linalg.norm(gradient) + 1e-7, name


def test_photographs_from_the_first_command_to_the_last(tmp_path):
    flags = ["run", f"--images={SAMPLES / 'images'}", "--model_name=lab_hog", "--K=4", "--max_size=300", "--objects=2"]
    for device in ("cpu", "cuda"):
        backend = "--crf_backend=torch"
        cli.main([*flags, f"--output={tmp_path / device}", f"--device={device}", "--batch_size=4", backend])
    for path in sorted((tmp_path / "cpu" / "masks").glob("*.png")):
        here, there = (np.array(Image.open(tmp_path / device / "masks" / path.name)) for device in ("cpu", "cuda"))
        assert (here == there).mean() >= 0.999, path.name
    found = [json.loads((tmp_path / device / "objects" / "objects.json").read_text()) for device in ("cpu", "cuda")]
    here, there = ([(each["image_id"], each["bbox"]) for each in one["annotations"]] for one in found)
    assert [image for image, _ in here] == [image for image, _ in there]
    np.testing.assert_allclose([box for _, box in here], [box for _, box in there], atol=3)
