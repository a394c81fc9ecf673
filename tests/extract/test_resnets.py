"""DINO's ResNet-50 as a stack of stages."""

import pytest
import torch
from torchvision import models

from spectralseg.errors import InputError
from spectralseg.models.resnets import DINO_RESNET50, load_resnet50


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """A state dict in torchvision's layout."""
    torch.manual_seed(1)
    return models.resnet50().state_dict()


@pytest.mark.parametrize(("stride", "grid"), [(8, (9, 12)), (16, (5, 6)), (32, (3, 3))])
def test_output_strides(stride: int, grid: tuple[int, int]):
    model, origin = load_resnet50("random", stride)
    assert origin == "random (seed 0)"
    assert [name for name, _ in model.named_children()][-4:] == ["layer1", "layer2", "layer3", "layer4"]
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 66, 96)).shape == (1, 2048, *grid)


@pytest.mark.parametrize("layout", ["torchvision", "DINO's training", "an old torch"])
def test_checkpoints(tensors, tmp_path, layout: str):
    content: dict = dict(tensors)
    if layout == "DINO's training":
        content = {
            "teacher": {f"module.backbone.{name}": value for name, value in tensors.items() if "fc." not in name}
        }
    if layout == "an old torch":
        content = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    model, origin = load_resnet50(str(path))
    assert origin.startswith("weights.pth sha256:")
    whole = models.resnet50(replace_stride_with_dilation=[False, True, True])
    whole.load_state_dict(tensors)
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    seen = {}
    whole.layer4.register_forward_hook(lambda module, inputs, output: seen.update(layer4=output))
    with torch.no_grad():
        whole.eval()(image)
        torch.testing.assert_close(model.eval()(image), seen["layer4"])


def test_the_published_file(tensors, tmp_path, monkeypatch: pytest.MonkeyPatch):
    assert DINO_RESNET50.endswith("/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(tensors, folder / "dino_resnet50_pretrain.pth")  # there already, so nothing is fetched
    model, _ = load_resnet50()
    assert torch.equal(model.conv1.weight, tensors["conv1.weight"])


def test_weights_that_cannot_be_had(tmp_path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="no such weights file"):
        load_resnet50(str(tmp_path / "none.pth"))
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="does not fit this model"):
        load_resnet50(str(tmp_path / "resnet18.pth"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="cannot download .*give its path"):
        load_resnet50((tmp_path / "absent.pth").as_uri())
