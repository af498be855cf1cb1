"""Input saliency against a double backward pass image by image, and its invariants."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_adv.explain import heat_map, input_saliency, parameter_saliency, saliency_statistics


class Net(nn.Module):
    """A grouped convolution, one called twice, max-pooling, and activations in place."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.bn = nn.BatchNorm2d(8)
            self.act = nn.ReLU(inplace=True)
            self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.head = nn.Linear(8, 4)
            self.bn.running_mean.uniform_(-0.3, 0.3)

    def forward(self, x):
        x = F.max_pool2d(self.act(self.bn(self.first(x))), 2)
        x = self.act(self.second(x))
        return self.head(torch.tanh(self.second(x)).mean((2, 3)))


def images(count=4, dtype=torch.float64):
    x = torch.rand(count, 3, 8, 10, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.arange(count) % 4


def prepared(model):
    x, y = images(6)
    statistics = saliency_statistics(model)
    statistics.update(parameter_saliency(model, x, y))
    return statistics


def loop(model, x, y, statistics, n, boost, absolute=False):
    """The signed gradients, ``(B, C, H, W)``."""
    model = copy.deepcopy(model).eval().requires_grad_()
    model.act = nn.ReLU()
    found, rows = statistics.compute(), []
    filters = [each for each in model.parameters() if each.ndim == 4]
    for image, label in zip(x.split(1), y.split(1), strict=True):
        image = image.clone().requires_grad_()
        gradients = torch.autograd.grad(F.cross_entropy(model(image), label), filters, create_graph=True)
        raw = torch.cat([each.abs().flatten(1).mean(1) for each in gradients])
        profile = (raw - found["mean"]) / found["std"]
        profile = profile.abs() if absolute else profile
        boosted = profile.detach().clone()
        boosted[boosted.argsort(descending=True)[:n]] *= boost
        distance = 1 - (profile @ boosted) / (profile.norm() * boosted.norm())
        rows += torch.autograd.grad(distance, image)
    return torch.cat(rows)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("n", "boost"), [(10, 100.0), (3, 2.0)])
def test_equals_a_loop_over_single_images(n, boost, absolute):
    model = Net().double().requires_grad_(absolute)
    statistics, (x, y) = prepared(model), images()
    wanted = loop(model, x, y, statistics, n, boost, absolute)
    given = {"n": n, "boost": boost, "absolute": absolute}
    assert wanted.abs().max() > 1e-4
    found = input_saliency(model, x, y, statistics, **given)
    torch.testing.assert_close(found, wanted.abs().amax(1), rtol=0, atol=1e-13)
    signed = input_saliency(model, x, y, statistics, channel="max_then_abs", chunk_size=3, **given)
    torch.testing.assert_close(signed, wanted.amax(1).abs(), rtol=0, atol=1e-13)
    assert (signed <= found + 1e-15).all()
    assert not torch.allclose(signed, found)


def test_a_batch_norm_without_running_statistics_mixes_no_images():
    model = Net().double()
    model.bn = nn.BatchNorm2d(8, track_running_stats=False).double()
    statistics, (x, y) = prepared(model), images()
    with pytest.raises(ValueError, match="mixes the images of a batch, unless chunk_size is 1"):
        input_saliency(model, x, y, statistics)
    wanted = loop(model, x, y, statistics, 10, 100.0).abs().amax(1)
    found = input_saliency(model, x, y, statistics, chunk_size=1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


def test_without_a_boost_there_is_nothing_to_see():
    model = Net().double()
    assert input_saliency(model, *images(), prepared(model), boost=1.0).max() < 1e-14


def test_a_floor_is_that_of_the_statistics():
    model = Net().double()
    statistics = prepared(model)
    (x, y), usual = images(), statistics.compute()
    lifted = prepared(model)
    std = lifted.deviations(1.0)
    # statistics whose deviations are the lifted ones
    lifted.moments = torch.stack([lifted.moments[0], usual["mean"], std.square() * (lifted.moments[0] - 1)])
    lifted._computed = None
    found = input_saliency(model, x, y, statistics, floor=1.0)
    torch.testing.assert_close(found, input_saliency(model, x, y, lifted), rtol=1e-9, atol=1e-15)
    assert not torch.allclose(found, input_saliency(model, x, y, statistics), rtol=0.01)
    with pytest.raises(ValueError, match=r"input_saliency: floor must be in \[0, 1\], got -0.1"):
        input_saliency(model, x, y, statistics, floor=-0.1)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_leaves_everything_as_it_was(guard):
    model = Net().double().train()
    wanted = input_saliency(model, *images(), prepared(model))
    state = torch.random.get_rng_state()
    with guard():
        statistics = prepared(model)
        x, y = images()
        found = input_saliency(model, x, y, statistics)
    assert torch.equal(found, wanted)
    assert not found.requires_grad
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    single = input_saliency(model.float(), images()[0].float(), y, statistics.clone())
    assert single.dtype == torch.float32
    assert input_saliency(model, x[:0].float(), y[:0], statistics).shape == (0, 8, 10)


def test_heat_maps_are_clipped_scaled_and_blurred():
    maps = torch.zeros(2, 10, 10, dtype=torch.float64)
    maps[0, 4, 5] = 5.0
    maps[0, 4, 6] = 100.0
    # a hundred pixels: the 99th percentile is 5 and a hundredth of the way to 100
    high = 5 + 0.01 * 95
    wanted = torch.zeros(12, 12, dtype=torch.float64)
    blur = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    wanted[4:7, 5:8] += 5 / high * blur[:, None] * blur
    wanted[4:7, 6:9] += blur[:, None] * blur
    found = heat_map(maps)
    torch.testing.assert_close(found[0], wanted[1:-1, 1:-1], rtol=0, atol=1e-6)
    assert not found[1].any()
    assert heat_map(maps[:0]).shape == (0, 10, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be from 1 to 16, the filters, got 0"),
        ({"n": 17}, "n must be from 1 to 16, the filters, got 17"),
        ({"boost": -1.0}, "boost must be >= 0, got -1.0"),
        ({"channel": "max"}, "channel must be one of abs_then_max, max_then_abs, got 'max'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    model = Net().double()
    with pytest.raises(ValueError, match=message):
        input_saliency(model, *images(), prepared(model), **change)


def test_statistics_must_fit_the_network():
    model = Net().double()
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(ValueError, match="statistics must be of the model's filters, got 16 in 2 layers and not 4 in"):
        input_saliency(other, *images(), prepared(model))
