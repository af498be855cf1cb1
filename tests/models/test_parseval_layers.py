"""Parseval layers: they keep their norms, on random images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_adv.models import ConvexSum, ParsevalConv2d, ParsevalLinear, lipschitz_bound


def pair(*shape):
    draws = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=draws).double(), torch.randn(shape, generator=draws).double()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs", "side"), [(3, 8, 3), (8, 4, 3), (1, 16, 3), (4, 6, 1), (2, 5, 5)])
def test_convolution_does_not_enlarge(inputs, outputs, side, stride):
    """By definition: orthonormal flattened kernel and 1 / sqrt(area), zero padding."""
    torch.manual_seed(1)
    layer = ParsevalConv2d(inputs, outputs, side, stride, side // 2, bias=False).double()
    x, _ = pair(40, inputs, 9, 9)
    # images of one grey are what patches repeat most
    x[20:] = x[20:, :, :1, :1]
    before, after = x.flatten(1).norm(dim=1), layer(x).flatten(1).norm(dim=1)
    assert (after <= before * (1 + 1e-6)).all()
    # and the factor is what makes it so
    if side > 1 and stride == 1:
        plain = F.conv2d(x, layer.weight, None, stride, side // 2).flatten(1).norm(dim=1)
        assert (plain > before).any()


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 4), (8, 4), (1, 16)])
def test_it_starts_as_a_tight_frame(inputs, outputs):
    torch.manual_seed(0)
    layer = ParsevalConv2d(inputs, outputs, 3)
    assert (torch.linalg.svdvals(layer.weight.flatten(1)) - 1).abs().max() < 1e-5
    assert layer.bias.abs().max() == 0
    reference = F.conv2d(torch.ones(1, inputs, 5, 5), layer.weight) / 3
    assert torch.allclose(layer(torch.ones(1, inputs, 5, 5)), reference, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_infinity_norm(stride):
    """Rows in the l1 ball: 1-Lipschitz in the infinity norm, and no factor is needed."""
    torch.manual_seed(0)
    layer = ParsevalConv2d(3, 8, 3, stride, 1, constraint="linf").double()
    assert torch.allclose(layer.weight.flatten(1).abs().sum(1), torch.ones(8).double(), atol=1e-6)
    x, y = pair(50, 3, 7, 7)
    gap = (layer(x) - layer(y)).flatten(1).abs().amax(1)
    assert (gap <= (x - y).flatten(1).abs().amax(1) * (1 + 1e-6)).all()
    # reached by the image that has the signs of a row
    signs = layer.weight[0].sign()[None].detach()
    assert F.conv2d(signs, layer.weight)[0, 0].item() == pytest.approx(1, abs=1e-6)


def test_linear_is_a_plain_linear_layer_with_another_start():
    torch.manual_seed(0)
    layer = ParsevalLinear(12, 5)
    assert (torch.linalg.svdvals(layer.weight) - 1).abs().max() < 1e-5
    x = torch.randn(3, 12)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_convex_sum_of_1_lipschitz_branches_is_1_lipschitz(share):
    torch.manual_seed(0)
    branches = [ParsevalConv2d(4, 4, 3, 1, 1).double(), ParsevalConv2d(4, 4, 1).double()]
    total = ConvexSum(share).double()
    x, y = pair(60, 4, 6, 6)
    gap = total(branches[0](x), branches[1](x)) - total(branches[0](y), branches[1](y))
    assert (gap.flatten(1).norm(dim=1) <= (x - y).flatten(1).norm(dim=1) * (1 + 1e-6)).all()


def test_coefficients_return_to_the_simplex():
    total = ConvexSum(0.5)
    with torch.no_grad():
        total.coefficients.copy_(torch.tensor([0.9, 0.6]))
    total.project_()
    assert torch.allclose(total.coefficients, torch.tensor([0.65, 0.35]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_bounds_hold_and_are_reached_where_they_are_exact(norm):
    torch.manual_seed(0)
    order = 2 if norm == "l2" else float("inf")

    def size(values):
        return torch.linalg.vector_norm(values.flatten(1), order, dim=1)

    x, y = pair(50, 3, 8, 8)
    layers = [
        nn.Conv2d(3, 5, 3, 2, 1).double(),
        nn.Conv2d(3, 5, 4, 3).double(),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double(),
        nn.AvgPool2d(3, 1),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, 1),
        nn.MaxPool2d(2),
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).double().eval(),
    ]
    layers[-1][0].running_var.copy_(torch.tensor([0.1, 1.0, 4.0]))
    for layer in layers:
        ratio = (size(layer(x) - layer(y)) / size(x - y)).max()
        assert ratio <= lipschitz_bound(layer, norm) * (1 + 1e-9), layer
    linear = layers[2][1]
    assert lipschitz_bound(layers[2], norm) == pytest.approx(
        float(torch.linalg.matrix_norm(linear.weight.detach(), order))
    )
    # a mean of equal pixels: the norm 1 / 2 of a 2 x 2 pool in the 2-norm
    assert lipschitz_bound(nn.AvgPool2d(2), norm) == (0.5 if norm == "l2" else 1.0)
    assert lipschitz_bound(layers[-1], norm) == pytest.approx((0.1 + 1e-5) ** -0.5)


def ones(layer):
    nn.init.ones_(layer.weight)
    return layer.double().requires_grad_(False)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("layer", "side"),
    [
        # all taps of a kernel meet the same pixel where stride and dilation share a factor
        (ones(nn.Conv2d(1, 1, 3, 2, dilation=2, bias=False)), 25),
        (ones(nn.Conv2d(1, 1, 3, 6, dilation=4, bias=False)), 33),
        (ones(nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)), 9),
        (nn.MaxPool2d(3, 2, dilation=2), 13),
        (nn.LeakyReLU(-2.0), 4),
    ],
    ids=lambda each: type(each).__name__,
)
def test_bounds_hold_where_a_pixel_is_in_most_patches(layer, side, norm):
    torch.manual_seed(0)
    channels = getattr(layer, "in_channels", 1)
    x = torch.rand(channels * side**2, dtype=torch.float64) - 1
    # a pixel above all others is what every patch of a pool takes
    x[:: side + 1] += 2
    matrix = torch.autograd.functional.jacobian(lambda v: layer(v.view(1, channels, side, side)).flatten(), x)
    reached = torch.linalg.matrix_norm(matrix, 2 if norm == "l2" else float("inf"))
    assert reached <= lipschitz_bound(layer, norm) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(1, 1, 3, padding="same", padding_mode="reflect"), "padding must be with zeros, got reflect"),
        (nn.AvgPool2d(2, divisor_override=1), "must divide by the size of its kernel"),
        (nn.AvgPool2d(2, ceil_mode=True), "must divide by the size of its kernel"),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "must divide by the size of its kernel"),
    ],
)
def test_layers_without_a_bound_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        lipschitz_bound(layer)


def test_what_is_refused():
    with pytest.raises(ValueError, match="ParsevalLinear: constraint must be l2 or linf, got 'l1'"):
        ParsevalLinear(2, 2, constraint="l1")
    with pytest.raises(ValueError, match=r"identity_share must be in \[0, 1\], got 1.5"):
        ConvexSum(1.5)
    with pytest.raises(ValueError, match="nothing is known of Softmax"):
        lipschitz_bound(nn.Softmax(1))
    with pytest.raises(ValueError, match="norm must be l2 or linf"):
        lipschitz_bound(nn.ReLU(), "l1")
