"""REDRL's networks: the invariants of their description that concern G and Psi alone."""

import pytest
import torch
from torch import nn

from lit_adv.models import AttackRecognizer, Reconstructor


def test_reconstructor_size():
    assert sum(p.numel() for p in Reconstructor().parameters()) == 1_702_211


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 33, 33), (1, 3, 64, 64), (1, 3, 32, 40)])
def test_reconstructor_keeps_the_shape(shape):
    model = Reconstructor(width=8, blocks=2)
    assert model(torch.rand(shape)).shape == shape


def test_reconstructor_has_no_batchnorm():
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in Reconstructor().modules())


def test_reconstructor_has_no_global_skip():
    model = Reconstructor(width=8, blocks=2)
    nn.init.zeros_(model.conv_last.weight)
    out = model(torch.rand(2, 3, 9, 9))
    assert torch.equal(out, model.conv_last.bias.view(1, 3, 1, 1).expand(2, 3, 9, 9))


def test_reconstructor_against_its_formula():
    torch.manual_seed(0)
    model = Reconstructor(channels=1, width=4, blocks=2)
    x = torch.rand(2, 1, 8, 8)
    conv = torch.nn.functional.conv2d
    h = torch.nn.functional.leaky_relu(conv(x, model.conv_first.weight, model.conv_first.bias, padding=1), 0.1)
    for block in model.blocks:
        inner = conv(h, block.conv1.weight, block.conv1.bias, padding=1).relu()
        h = h + conv(inner, block.conv2.weight, block.conv2.bias, padding=1)
    expected = conv(h, model.conv_last.weight, model.conv_last.bias, padding=1)
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_block_initialisation():
    """Kaiming normal, a tenth of it: standard deviation 0.1 * sqrt(2 / fan_in)."""
    torch.manual_seed(0)
    conv = Reconstructor(width=64, blocks=1).blocks[0].conv1
    assert conv.weight.std().item() == pytest.approx(0.1 * (2 / (64 * 9)) ** 0.5, rel=0.02)
    assert conv.bias.abs().max() == 0


@pytest.mark.parametrize("network", ["resnet18", "small"])
@pytest.mark.parametrize("in_channels", [2, 3, 6])
def test_recognizer(network, in_channels):
    model = AttackRecognizer(5, in_channels, network).eval()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == in_channels
    assert model(torch.rand(2, in_channels, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("network", ["resnet18", "small"])
def test_recognizer_order_matters(network):
    torch.manual_seed(0)
    model = AttackRecognizer(network=network).eval()
    residual, image = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert not torch.allclose(model(torch.cat([residual, image], 1)), model(torch.cat([image, residual], 1)))


def test_recognizer_paper_trunk():
    model = AttackRecognizer()
    conv = model.trunk.conv1
    assert (conv.in_channels, conv.kernel_size, conv.stride, conv.padding) == (6, (7, 7), (2, 2), (3, 3))
    assert conv.bias is not None
    assert [m.out_features for m in model.head if isinstance(m, nn.Linear)] == [32, 6]


def test_small_recognizer_sees_single_pixels_first():
    strides = [m.stride[0] for m in AttackRecognizer(network="small").modules() if isinstance(m, nn.Conv2d)]
    assert len(strides) == 7
    assert strides[:2] == [1, 1]


def test_bad_fields():
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        Reconstructor(blocks=0)
    with pytest.raises(ValueError, match="network must be 'resnet18' or 'small', got 'large'"):
        AttackRecognizer(network="large")
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        AttackRecognizer(0)


@pytest.mark.parametrize("network", ["small", "resnet18"])
def test_half_precision_keeps_the_last_grey_levels(network):
    """A tenth of a grey level, below bfloat16's resolution, is still seen by both networks under autocast."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32) / 2 + 0.5
    nearby = x + 0.1 / 255
    assert float((x.bfloat16() == nearby.bfloat16()).float().mean()) > 0.9
    made = Reconstructor(width=8, blocks=2).eval()
    named = AttackRecognizer(6, 3, network).eval()
    with torch.no_grad():
        whole = made(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = made(x)
            first = next(module for module in named.modules() if isinstance(module, nn.Conv2d))
            seen, seen_nearby = first(x), first(nearby)
        assert half.dtype == seen.dtype == torch.float32
        torch.testing.assert_close(half, whole, rtol=0, atol=2e-3)
        assert torch.equal(seen, first(x))
        assert float((seen != seen_nearby).float().mean()) > 0.99


def test_half_precision_weights_work():
    x = torch.rand(2, 3, 32, 32)
    assert Reconstructor(width=8, blocks=2).bfloat16()(x).dtype == torch.bfloat16
