"""Feature maps of CNNs, with random weights."""

import pytest
import torch

from objectloc.convnets import ADDRESSES, load_convnet
from objectloc.options import CONVNETS
from spectralseg.errors import InputError


def test_every_network_has_an_address():
    assert tuple(ADDRESSES) == CONVNETS
    assert ADDRESSES["resnet50"].endswith("/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth")


@pytest.mark.parametrize(
    ("name", "dilate", "grid", "channels"),
    [
        ("resnet50", 1, (2, 3), 2048),
        ("resnet50", 2, (4, 6), 2048),
        ("resnet50_imagenet", 4, (8, 12), 2048),
        ("vgg16_imagenet", 2, (4, 6), 512),
    ],
)
def test_feature_maps(name, dilate, grid, channels):
    network = load_convnet(name, "random", dilate)
    assert network.weights == "random (seed 0)"
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    features, found = network(image)
    assert found == grid
    assert features.shape == (grid[0] * grid[1], channels)
    # LayerNorm over the whole map: one mean and one variance for all cells together.
    assert features.mean().item() == pytest.approx(0, abs=1e-4)
    if channels == 2048:  # VGG's random weights give a map that is all but constant
        assert features.var(unbiased=False).item() == pytest.approx(1, abs=1e-2)
    assert features.mean(dim=1).abs().max() > 1e-3


def test_dilation_keeps_the_weights_and_what_they_see():
    """With and without dilation the map of stage 3 is the same where the strides meet."""
    coarse, fine = (load_convnet("resnet50", "random", dilate) for dilate in (1, 2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(coarse.model.state_dict().values(), fine.model.state_dict().values(), strict=True)
    )


def test_a_vgg_checkpoint_given_or_fetched_by_torchvision_already(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = ADDRESSES["vgg16_imagenet"].rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / name
    torch.save(load_convnet("vgg16_imagenet", "random").model.state_dict(), checkpoint)
    assert torch.load(checkpoint, weights_only=True)["features.28.bias"].shape == (512,)
    for weights in (None, str(checkpoint)):
        assert load_convnet("vgg16_imagenet", weights).weights.startswith(name)
    with pytest.raises(InputError, match=f"{name} does not fit this model"):
        load_convnet("resnet50", str(checkpoint))
