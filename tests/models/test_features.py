"""VGG feature maps."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from lit_adv.models import VGGFeatures, fingerprint


@pytest.mark.parametrize(
    ("name", "layer", "modules"),
    [("vgg16_bn", "relu3_3", 23), ("vgg16", "relu3_3", 16), ("vgg19", "relu3_1", 12), ("vgg19_bn", "relu1_2", 6)],
)
def test_cut_after_the_relu(name, layer, modules):
    model = VGGFeatures(name, layer, weights=None)
    assert len(model.features) == modules
    assert isinstance(model.features[-1], nn.ReLU)
    blocks = int(layer[4]) - 1
    features = model(torch.rand(1, 3, 32, 32))
    assert features.shape == (1, 64 * 2**blocks, 32 >> blocks, 32 >> blocks)
    assert features.min() >= 0


def test_weights_from_file_equal_torchvision(tmp_path):
    torch.manual_seed(0)
    reference = models.vgg16_bn(weights=None).features[:23].eval()
    for module in reference:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = reference((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    for prefix in ("", "features."):
        state = {f"{prefix}{key}": value for key, value in reference.state_dict().items()}
        state["features.24.weight"] = torch.zeros(3)
        torch.save(state, tmp_path / "vgg.pth")
        with torch.no_grad():
            assert torch.allclose(VGGFeatures(weights=tmp_path / "vgg.pth")(x), expected, atol=1e-5)


def test_missing_keys_are_an_error(tmp_path):
    torch.save(VGGFeatures("vgg19", "relu2_1", None).features.state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match=r"does not fit vgg19 up to relu3_1: 7.weight is missing"):
        VGGFeatures("vgg19", "relu3_1", tmp_path / "vgg.pth")
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        VGGFeatures(weights=tmp_path / "none.pth")


def test_frozen_but_differentiable():
    model = VGGFeatures("vgg16_bn", "relu2_2", None)
    before = fingerprint(model)
    nn.ModuleList([model]).train()
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert gradient.abs().max() > 0
    assert fingerprint(model) == before
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_grey_images_are_repeated():
    model = VGGFeatures("vgg16", "relu1_2", None)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(x), model(x.repeat(1, 3, 1, 1)))


def test_bad_fields():
    with pytest.raises(ValueError, match=r"name must be one of vgg16, .* got 'vgg11'"):
        VGGFeatures("vgg11", weights=None)
    with pytest.raises(ValueError, match=r"relu5_3 for vgg16, got 'relu3_4'; did you mean relu3_"):
        VGGFeatures("vgg16", "relu3_4", None)


def test_download_failure_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r"VGGFeatures: .*no route to host.*vgg16_bn-.*give a file's path as weights"
    ):
        VGGFeatures()


@pytest.mark.data
@pytest.mark.skipif("LIT_ADV_DATA" not in os.environ, reason="LIT_ADV_DATA names no folder")
def test_real_weights():
    """Those weights were scaled so that mean activations are near one (Gatys et al. 2016)."""
    path = Path(os.environ["LIT_ADV_DATA"]) / "weights" / "imagenet_vgg19_norm_to_relu3_1.pth"
    features = VGGFeatures("vgg19", "relu3_1", path)(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 256, 16, 16)
    assert 0.1 < features.mean() < 10
