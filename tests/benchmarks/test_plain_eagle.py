"""The plain implementation that the benchmark compares with: same losses, gradients and steps."""

import pytest
import torch
from torch import nn

from benchmarks import plain_eagle, plain_extract
from eagleseg.losses.eicue import normalise
from eagleseg.losses.step import EagleStep, total_loss
from eagleseg.model.features import Featurizer, features_of_views
from eagleseg.model.heads import EagleModel
from eagleseg.training.loop import parameter_groups
from eagleseg.training.settings import TrainSettings
from shared_data import standin_weights
from spectralseg.mathematics.eigen import fix_signs
from spectralseg.models.backbones import load_backbone

HEADS = ("A.", "B.", "C.")
CLASSES, EXTRA, SHARE = 5, 2, 0.9
LOSSES = (
    *("correspondence_positive", "correspondence_negative", "eigen", "eigen_blur"),
    *("contrast", "contrast_blur", "linear", "cluster"),
)


@pytest.fixture(autouse=True)
def signed_eigenvectors(monkeypatch: pytest.MonkeyPatch):
    """The published code leaves the sign of each eigenvector to LAPACK; ours has a rule, which plain gets too."""
    decompose = plain_eagle.eigenvectors

    def signed(*arguments: object) -> torch.Tensor:
        maps = decompose(*arguments)
        return fix_signs(maps.flatten(2)).view_as(maps)

    monkeypatch.setattr(plain_eagle, "eigenvectors", signed)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def our_names(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The plain model's parameters under the names that they have in ours."""
    renamed = {}
    for name, value in parameters.items():
        if not name.startswith("backbone."):
            name = f"head.{name}" if name.startswith(HEADS) else name
            renamed[name if "." in name else f"{name}.clusters"] = value
    return renamed


def random_batch(count: int = 3) -> dict[str, torch.Tensor]:
    rgb = torch.rand(count, 3, 64, 64)
    blurred = rgb.clone()
    blurred[1] = (rgb[1] + rgb[1].roll(1)) / 2
    return {"img": rgb, "img_blur": blurred, "label": torch.randint(-1, CLASSES, (count, 64, 64))}


def normalised(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the published loader yields it."""
    return {name: normalise(value) if name.startswith("img") else value for name, value in batch.items()}


def both(backbone: nn.Module, **settings: object) -> tuple[plain_eagle.PlainEagle, EagleStep]:
    """The plain model and ours, with equal parameters and without dropout."""
    plain = plain_eagle.PlainEagle(backbone, CLASSES, EXTRA).eval()
    settings = TrainSettings("", backbone="dino_vits8", momentum_limit=SHARE, step_schedulers=0, **settings)
    model = EagleModel(3 * backbone.embed_dim, CLASSES, EXTRA)
    model.load_state_dict(our_names(plain.state_dict()))
    return plain, EagleStep(model.eval(), settings)


def test_same_losses(tmp_path_factory: pytest.TempPathFactory):
    path = str(standin_weights(tmp_path_factory, "dino_vits8"))
    torch.manual_seed(0)
    plain, ours = both(plain_extract.load_model(path, "dino_vits8"))
    batch = random_batch()
    torch.manual_seed(1)
    expected = plain.losses(**normalised(batch))
    features = features_of_views(Featurizer(load_backbone("dino_vits8", path)), batch)
    torch.manual_seed(1)
    terms = ours(*features, batch, share=SHARE)
    assert terms.keys() == expected.keys() == set(LOSSES)
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name], rtol=2e-3, atol=1e-5, msg=name)


class PlainFeatures(nn.Module):
    """In the backbone's place: (B, 3, 64, 64) images -> (B, 36, 8, 8), a fixed linear map of each patch."""

    embed_dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 36, 8, stride=8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.patches(images)


@pytest.fixture
def pair_in_float64(float64: None, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    monkeypatch.setattr(plain_eagle.PlainEagle, "features", torch.no_grad()(lambda self, images: self.backbone(images)))
    return both(PlainFeatures())


def our_terms(
    plain: plain_eagle.PlainEagle, ours: EagleStep, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    views = normalised(batch)
    return ours(plain.features(views["img"]), plain.features(views["img_blur"]), batch, share=SHARE)


@pytest.mark.parametrize("loss", LOSSES)
def test_same_gradient(pair_in_float64: tuple[plain_eagle.PlainEagle, EagleStep], loss: str):
    plain, ours = pair_in_float64
    batch = random_batch()
    torch.manual_seed(1)
    plain.losses(**normalised(batch))[loss].backward()
    torch.manual_seed(1)
    our_terms(plain, ours, batch)[loss].backward()
    expected = our_names({name: parameter.grad for name, parameter in plain.named_parameters()})
    compared = 0
    for name, parameter in ours.model.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        elif expected[name].any():
            assert (parameter.grad - expected[name]).norm() < 1e-4 * expected[name].norm(), name
            compared += 1
    assert compared


def test_same_parameters_after_20_steps(pair_in_float64: tuple[plain_eagle.PlainEagle, EagleStep]):
    plain, ours = pair_in_float64
    optimizer = torch.optim.Adam(parameter_groups(ours.model, ours.settings))
    before = {name: parameter.detach().clone() for name, parameter in ours.model.named_parameters()}
    for step in range(20):
        batch = random_batch()
        torch.manual_seed(step)
        expected_loss = plain.step(**normalised(batch))
        torch.manual_seed(step)
        loss = total_loss(our_terms(plain, ours, batch), SHARE, ours.settings)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = our_names(plain.state_dict())
    for name, parameter in ours.model.named_parameters():
        travelled = (expected[name] - before[name]).norm()
        assert travelled > 0
        assert (parameter - expected[name]).norm() < 1e-4 * travelled, name
