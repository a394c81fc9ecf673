"""DeepLab on ResNet-50 and on ViTs: shapes, what trains, what stays frozen."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from semanticseg.deeplab import DeepLab, ResNetFeatures, ViTFeatures, build_model, parameter_counts
from semanticseg.settings import Model
from spectralseg.errors import InputError
from spectralseg.models.backbones import load_backbone


def model(name: str = "deeplabv3plus", backbone: str = "test_vit", unfrozen: int = 1, classes: int = 5) -> DeepLab:
    return build_model(Model(name, backbone, "random", unfrozen), classes, seed=0)[0]


@pytest.fixture(scope="module")
def resnet() -> DeepLab:
    return model(backbone="dino_resnet50")


def images(height: int = 48, width: int = 64, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["deeplabv3plus", "deeplabv3"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 50), (16, 16)])
def test_logits_have_the_size_of_the_image(name: str, height: int, width: int):
    network = model(name).eval()
    logits = network(images(height, width))
    assert logits.shape == (2, 5, height, width)
    assert logits.dtype == torch.float32


def test_resnet_as_published(resnet: DeepLab):
    low, high = resnet.backbone.eval()(images())
    assert low.shape == (2, 256, 12, 16)
    assert high.shape == (2, 2048, 6, 8)  # output stride 8
    rates = [module.dilation[0] for module in resnet.aspp.modules() if isinstance(module, nn.Conv2d)]
    assert sorted(set(rates)) == [1, 12, 24, 36]
    assert resnet.project[0].weight.shape == (48, 256, 1, 1)
    first, norm, activation, last = resnet.classifier
    assert first.weight.shape == (256, 256 + 48, 3, 3)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(activation, nn.ReLU)
    assert last.weight.shape == (5, 256, 1, 1)
    assert resnet.eval()(images(37, 50)).shape == (2, 5, 37, 50)


def test_a_local_file_of_weights(tmp_path):
    torch.manual_seed(3)
    tensors = {name: value for name, value in models.resnet50().state_dict().items() if not name.startswith("fc.")}
    torch.save(tensors, tmp_path / "dino_resnet50_pretrain.pth")
    asked = Model("deeplabv3", "dino_resnet50", str(tmp_path / "dino_resnet50_pretrain.pth"), 1)
    network, origin = build_model(asked, 21, seed=0)
    assert origin.startswith("dino_resnet50_pretrain.pth sha256:")
    assert torch.equal(network.backbone.stages.layer4[0].conv1.weight, tensors["layer4.0.conv1.weight"])


def test_a_vit_gives_the_outputs_of_its_blocks():
    backbone = load_backbone("test_vit", "random")
    seen = {}
    for number in (-5, -1):
        backbone.model.blocks[number].register_forward_hook(
            lambda _, inputs, output, number=number: seen.update({number: output})
        )
    low, high = ViTFeatures(backbone)(images())
    for features, number in ((low, -5), (high, -1)):
        tokens = backbone.model.norm(seen[number])[:, backbone.model.num_prefix_tokens :]
        torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens)
    assert low.shape == (2, 64, 3, 4)


@pytest.mark.parametrize("backbone", ["dino_vits16", "dinov2_vits14_reg", "dinov3_vits16"])
def test_families_of_vits(backbone: str):
    network = model(backbone=backbone, unfrozen=-1).eval()
    logits = network(images(40, 50, 1))
    assert logits.shape == (1, 5, 40, 50)
    logits.sum().backward()
    unused = [name for name, value in network.named_parameters() if value.grad is None]
    assert not unused  # processes of a training would wait for their gradients


def test_the_normalisation_is_the_backbones_or_what_is_given():
    assert model().mean.flatten().tolist() == [0.5] * 3
    assert model(backbone="dino_vits16").mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    network, _ = build_model(Model("deeplabv3", "test_vit", "random", 1), 5, 0, [0.1, 0.2, 0.3], [1, 2, 3])
    assert network.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert network.std.flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize(("unfrozen", "count"), [(0, 0), (1, 1), (3, 3), (-1, 7), (99, 7)])
def test_freezing_a_vit(unfrozen: int, count: int):
    """It has 7 layers: patches and 6 blocks."""
    network = model(unfrozen=unfrozen)
    trains = [any(value.requires_grad for m in layer for value in m.parameters()) for layer in network.backbone.layers]
    assert trains == [False] * (7 - count) + [True] * count
    assert network.backbone.vit.pos_embed.requires_grad == (count == 7)
    assert all(value.requires_grad for name, value in network.named_parameters() if not name.startswith("backbone."))


def test_freezing_a_resnet(resnet: DeepLab):
    trained = [name for name, value in resnet.backbone.named_parameters() if value.requires_grad]
    assert {name.split(".")[1] for name in trained} == {"layer4"}  # the last child
    whole, training = parameter_counts(resnet)
    assert whole > training > 14e6


def test_what_is_frozen_does_not_change():
    torch.manual_seed(0)
    stages = nn.Sequential()
    for name, (inputs, outputs) in {"layer1": (3, 8), "layer4": (8, 8)}.items():
        stages.add_module(name, nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)))
    features = ResNetFeatures(stages)
    features.channels = (8, 8)
    network = DeepLab(features, 3, unfrozen_layers=1).train()
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=1.0)
    network(images(count=4)).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if "layer1" in name]  # neither weights nor batch norm statistics
    assert changed >= {"backbone.stages.layer4.0.weight", "backbone.stages.layer4.1.running_mean"}


def test_the_seed_makes_the_new_layers():
    asked = Model("deeplabv3plus", "test_vit", "random", 1)
    first, again, other = (build_model(asked, 5, seed)[0].classifier[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "backbone", "message"),
    [
        ("deeplabv4", "test_vit", "no model.name 'deeplabv4': deeplabv3plus or deeplabv3"),
        ("deeplabv3", "lab_hog", "model.backbone=lab_hog has no layers to train"),
        ("deeplabv3", "nothing", "no backbone 'nothing'"),
    ],
)
def test_models_that_there_are_not(name: str, backbone: str, message: str):
    with pytest.raises(InputError, match=message):
        build_model(Model(name, backbone, None if backbone == "lab_hog" else "random", 1), 5, 0)
