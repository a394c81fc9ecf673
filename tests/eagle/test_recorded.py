"""The parts of EAGLE against the values recorded from the published code."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eagleseg.losses.correspondence import CorrespondenceSettings, correspondence_loss, sample
from eagleseg.losses.eicue import code_affinity, colour_affinity, laplacian_eigenvectors, normalise
from eagleseg.losses.object_contrast import consecutive, means, medoids, object_contrast, token_weights
from eagleseg.model.features import Featurizer
from eagleseg.model.probes import ClusterProbe
from shared_data import reference, standin_weights
from spectralseg.files.images import to_tensor
from spectralseg.mathematics.crf import EAGLE_CRF, refine_probabilities
from spectralseg.models.backbones import IMAGENET_MEAN, IMAGENET_STD, load_backbone


@functools.cache
def _numbers(file_name: str = "eagle.npz") -> dict[str, NDArray]:
    with np.load(reference(file_name)) as file:
        return dict(file)


def recorded(name: str) -> torch.Tensor:
    return torch.from_numpy(_numbers()[name])


def leaf(name: str) -> torch.Tensor:
    """A recorded input that collects a gradient."""
    return recorded(name).requires_grad_()


def assert_gradients(case: str, **leaves: torch.Tensor) -> None:
    """Gradients as recorded from the published losses: ``case``/grad_<name>, by the norm of the difference."""
    for name, tensor in leaves.items():
        expected = torch.from_numpy(_numbers("eagle_gradients.npz")[f"{case}/grad_{name}"])
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        assert (gradient - expected).norm() <= 1e-4 * expected.norm(), name


@pytest.mark.parametrize("setting", ["8_5", "3_7"])
@pytest.mark.parametrize("alpha", [None, 1.0, 4.0])
def test_cluster_probe(setting: str, alpha: float | None):
    folder = f"cluster_probe/{setting}"
    features = leaf(f"{folder}/x")
    clusters = recorded(f"{folder}/clusters")
    probe = ClusterProbe(*clusters.shape)
    probe.load_state_dict({"clusters": clusters})
    case = f"{folder}/alpha{'None' if alpha is None else int(alpha)}"
    loss, probabilities = probe(features, alpha)
    torch.testing.assert_close(loss, recorded(f"{case}/loss"), rtol=1e-4, atol=0)
    torch.testing.assert_close(probabilities, recorded(f"{case}/probs"), rtol=1e-4, atol=1e-6)
    loss.backward()
    assert_gradients(case, x=features, clusters=probe.clusters)
    if alpha is not None:
        expected = recorded(f"{case}/log_probs")
        torch.testing.assert_close(probe.log_probabilities(features, alpha), expected, rtol=1e-4, atol=1e-6)


def test_sample():
    torch.testing.assert_close(sample(recorded("sample/t"), recorded("sample/coords")), recorded("sample/out"))


@pytest.mark.parametrize(("setting", "bias"), [("cocostuff", 0.0), ("cityscapes", 0.11)])
@pytest.mark.parametrize("kind", ["pos", "neg"])
@pytest.mark.parametrize("equal", [False, True])
def test_correspondence(setting: str, bias: float, kind: str, equal: bool):
    f1, c1 = recorded(f"correspondence/{setting}/f1"), leaf(f"correspondence/{setting}/c1")
    # equal: the second pair has the values of the first, where a shift without gradient shows most
    f2 = recorded(f"correspondence/{setting}/{'f1' if equal else 'f2'}")
    c2 = leaf(f"correspondence/{setting}/{'c1' if equal else 'c2'}")
    case = f"correspondence/{setting}{'_equal' if equal else ''}/{kind}"
    loss, correlations = correspondence_loss((f1, f2), (c1, c2), kind == "pos", CorrespondenceSettings(shift_bias=bias))
    if not equal:
        torch.testing.assert_close(loss, recorded(f"{case}/loss"), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(correlations, recorded(f"{case}/cd"), rtol=1e-4, atol=1e-6)
    mean = loss.mean()
    assert mean.item() == pytest.approx(_numbers("eagle_gradients.npz")[f"{case}/loss_mean"].item(), rel=1e-4)
    mean.backward()
    assert_gradients(case, c1=c1, c2=c2)


@pytest.mark.parametrize("setting", ["cocostuff", "cityscapes"])
@pytest.mark.parametrize("mode", ["mean", "medoid", "prototype"])
def test_object_contrast(setting: str, mode: str):
    folder = f"object_nce/{setting}"
    own, other, features = leaf(f"{folder}/z1"), leaf(f"{folder}/z2"), recorded(f"{folder}/feats")
    labels, count = consecutive(recorded(f"{folder}/segmentation").flatten())
    prototypes = (means if mode == "mean" else medoids)(own, labels, count)
    torch.testing.assert_close(prototypes, recorded(f"{folder}/{mode}/centroids"))
    weights = token_weights(features)
    torch.testing.assert_close(weights, recorded(f"{folder}/similarity").mean(dim=2).flatten())
    loss = object_contrast(own, other, labels, prototypes, weights, label_smoothing=setting == "cityscapes")
    torch.testing.assert_close(loss, recorded(f"{folder}/{mode}/loss"), rtol=1e-4, atol=0)
    loss.backward()
    assert_gradients(f"{folder}/{mode}", z1=own, z2=other)


@pytest.mark.parametrize("side", [28, 14])
def test_eicue(side: int):
    folder = f"eicue/{side}"
    code = recorded(f"{folder}/code").mT.unflatten(-1, (side, side))
    images = recorded(f"{folder}/img_small").movedim(-1, 1)
    affinity = code_affinity(code) + colour_affinity(images)
    values, vectors = laplacian_eigenvectors(affinity, 4)
    expected = recorded(f"{folder}/eigenvectors")
    torch.testing.assert_close(values, recorded(f"{folder}/eigenvalues"), rtol=0, atol=1e-4)
    cosines = (vectors.mT * expected).sum(dim=1).abs()
    gaps = recorded(f"{folder}/eigenvalues").diff(dim=1)
    for image, gap in enumerate(gaps):
        for number in range(3):
            if (number == 0 or gap[number - 1] >= 1e-3) and gap[number] >= 1e-3:
                assert cosines[image, number] > 0.999
    shares = (vectors > 0).float().mean(dim=(1, 2))
    assert ((shares <= 0.5) | (shares == 1)).all()  # the published rule


def test_eicue_matrices():
    images = recorded("eicue/14/img_small").movedim(-1, 1)
    colour = colour_affinity(images)
    torch.testing.assert_close(colour, recorded("eicue/14/color_affinity"), rtol=1e-4, atol=1e-6)
    affinity = code_affinity(recorded("eicue/14/code").mT.unflatten(-1, (14, 14))) + colour
    degree = affinity.sum(dim=-1)
    scale = degree.rsqrt()
    laplacian = torch.diag_embed(degree) - affinity
    laplacian = laplacian * scale[:, :, None] * scale[:, None, :]
    torch.testing.assert_close(laplacian, recorded("eicue/14/laplacian"), rtol=1e-4, atol=1e-5)


def test_featurizer(tmp_path_factory: pytest.TempPathFactory):
    backbone = load_backbone("dino_vits8", str(standin_weights(tmp_path_factory, "dino_vits8")))
    image = to_tensor(_numbers()["featurizer/image"])[None]
    features = Featurizer(backbone)(image)
    expected = recorded("featurizer/kk").float()
    assert (features - expected).norm() / expected.norm() < 5e-4  # recorded in half precision
    outputs = backbone.model.forward_intermediates(
        normalise(image), indices=[9, 10, 11], norm=True, intermediates_only=True
    )
    means_of_blocks = torch.cat(outputs, dim=1).mean(dim=(2, 3))
    torch.testing.assert_close(means_of_blocks, recorded("featurizer/feat_mean"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
def test_dense_crf(backend: str):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    logits = recorded("dense_crf/logits")
    # Recorded with the image normalised and back, and cut to whole numbers: a quarter of its values are lower by one.
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    back = normalise(to_tensor(_numbers()["dense_crf/image"])) * std + mean
    image = (back.clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
    enlarged = torch.nn.functional.interpolate(logits[None], image.shape[:2], mode="bilinear", align_corners=False)[0]
    crf = replace(EAGLE_CRF, crf_backend=backend)
    probabilities = refine_probabilities(torch.from_numpy(image), torch.log_softmax(enlarged, dim=0), crf).numpy()
    assert (probabilities.argmax(axis=0) == _numbers()["dense_crf/labels"]).mean() >= 0.999
    np.testing.assert_allclose(probabilities[0], _numbers()["dense_crf/probs_class0"], rtol=1e-2, atol=1e-3)
