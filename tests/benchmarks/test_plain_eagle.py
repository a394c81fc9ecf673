"""The plain implementation that the benchmark compares with computes the same losses as the project."""

import pytest
import torch

from benchmarks import plain_eagle, plain_extract
from eagle_features import features_of_views
from eagle_model import EagleModel
from eagle_settings import TrainSettings
from eagle_step import EagleStep, total_loss
from eagle_views import normalise
from featurizer import Featurizer
from shared_data import standin_weights
from spectralseg.backbones import load_backbone
from spectralseg.eigen import fix_signs

HEADS = ("A.", "B.", "C.")


def signed(maps: torch.Tensor) -> torch.Tensor:
    return fix_signs(maps.flatten(2)).view_as(maps)


def test_same_losses(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    decompose = plain_eagle.eigenvectors
    # The published code leaves the sign of each eigenvector to LAPACK.
    monkeypatch.setattr(plain_eagle, "eigenvectors", lambda *arguments: signed(decompose(*arguments)))
    path = str(standin_weights(tmp_path_factory, "dino_vits8"))
    torch.manual_seed(0)
    plain = plain_eagle.PlainEagle(plain_extract.load_model(path, "dino_vits8"), n_classes=5, extra_clusters=2).eval()
    settings = TrainSettings("", backbone="dino_vits8", momentum_limit=0.9, step_schedulers=0)
    model = EagleModel(3 * 384, 5, 2)
    renamed = {}
    for name, value in plain.state_dict().items():
        if not name.startswith("backbone."):
            name = f"head.{name}" if name.startswith(HEADS) else name
            renamed[name if "." in name else f"{name}.clusters"] = value
    model.load_state_dict(renamed)
    ours = EagleStep(model.eval(), settings)
    rgb = torch.rand(3, 3, 64, 64)
    images, blurred = normalise(rgb), normalise(rgb)
    blurred[1] = normalise((rgb[1] + rgb[1].roll(1)) / 2)
    label = torch.randint(-1, 5, (3, 64, 64))
    batch = {"img": images, "img_blur": blurred, "label": label}
    torch.manual_seed(1)
    expected = plain.losses(images, blurred, label)
    features = features_of_views(Featurizer(load_backbone("dino_vits8", path)), batch)
    torch.manual_seed(1)
    terms = ours(*features, batch, share=0.9)
    assert terms.keys() == expected.keys()
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name], rtol=2e-3, atol=1e-5, msg=name)
    torch.manual_seed(1)
    torch.testing.assert_close(total_loss(terms, 0.9, settings), plain.step(images, blurred, label), rtol=2e-3, atol=0)
