"""Parameter saliency against a loop over single images, on every kind of convolution, and what it leaves untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.explain import filter_layers, parameter_saliency, saliency_statistics
from lit_adv.models import fingerprint

METHODS = pytest.mark.parametrize("method", ["hooks", "vmap"])


class Net(nn.Module):
    """Grouped, depthwise, dilated, strided, reflected, 1 x 1 convolutions; one called twice, one shared, one idle."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # a kernel that no module has, declared first and called last
            self.kernel = nn.Parameter(torch.randn(6, 16, 2, 2) / 8)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.bn = nn.BatchNorm2d(8)
            self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
            self.twice = nn.Conv2d(8, 8, 1)
            self.shared = nn.Conv2d(8, 8, 1)
            self.shared.weight = self.twice.weight
            self.reflected = nn.Conv2d(8, 8, (3, 1), padding="same", padding_mode="reflect")
            self.even = nn.Conv2d(8, 8, (1, 3), padding="same")
            self.depthwise = nn.Conv2d(8, 16, 3, groups=8, stride=(2, 1))
            self.idle = nn.Conv2d(2, 2, 1)
            self.head = nn.Linear(6, 5)
            self.drop = nn.Dropout(0.5)
            self.act = nn.ReLU(inplace=True)
            self.bn.running_mean.uniform_(-0.3, 0.3)

    def forward(self, x):
        x = self.act(self.bn(self.first(x)))
        x = self.act(self.grouped(x))
        x = self.act(self.twice(x))
        x = x + self.even(self.reflected(x))
        x = self.shared(self.twice(x))
        x = self.act(self.depthwise(x))
        x = F.relu_(F.conv2d(x, self.kernel, stride=2))
        return self.head(self.drop(x.mean((2, 3))))


class Alone(nn.Module):
    """A single position, as after global pooling, and images of 16 x 16: both ends of what is reduced differently."""

    def __init__(self, groups=1):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.wide = nn.Conv2d(2, 4, 3, padding=1)
            self.last = nn.Conv2d(4, 6, 1, groups=groups)
            self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(torch.relu(self.wide(x)), 1)
        return self.head(torch.tanh(self.last(x)).flatten(1))


def images(count=5, channels=3, height=10, width=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(count, channels, height, width, generator=generator, dtype=dtype)
    return x, torch.arange(count) % 3


def loop(model, x, y):
    model = copy.deepcopy(model).eval().requires_grad_()
    filters = [each for each in model.parameters() if each.ndim == 4]
    rows = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        loss = F.cross_entropy(model(image), label)
        found = torch.autograd.grad(loss, filters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([each.abs().flatten(1).mean(1) for each in found]))
    return torch.stack(rows)


def close(found, wanted, limit=1e-14):
    torch.testing.assert_close(found, wanted, rtol=0, atol=limit)


@METHODS
@pytest.mark.parametrize("frozen", [False, True])
def test_equals_a_loop_over_single_images(method, frozen):
    model = Net().double().requires_grad_(not frozen)
    x, y = images()
    found = parameter_saliency(model, x, y, method=method)
    wanted = loop(model, x, y)
    close(found, wanted)
    assert found.min() >= 0
    assert wanted.max() > 0.01
    # what is never called is 0, and everything else is not
    idle = list(filter_layers(model)).index("idle")
    parts = found.split(list(filter_layers(model).values()), 1)
    assert [bool(part.any()) for part in parts] == [number != idle for number in range(len(parts))]
    close(parameter_saliency(model, x, y, method=method, chunk_size=2), wanted)
    single = parameter_saliency(model.float(), x.float(), y, method=method)
    assert single.dtype == torch.float32
    close(single, wanted.float(), 1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_single_position_and_many(groups):
    model = Alone(groups).double()
    x, y = images(4, 2, 16, 16)
    close(parameter_saliency(model, x, y, method="hooks"), loop(model, x, y))


@pytest.mark.parametrize("affine", [False, True])
def test_every_kind_of_batch_norm(affine):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4, affine=affine, eps=0.3)
            self.flat = nn.BatchNorm1d(4, affine=affine)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = self.norm(self.conv(x)).relu().mean((2, 3))
            x = F.batch_norm(input=x, running_mean=self.flat.running_mean, running_var=self.flat.running_var)
            return self.head(self.flat(x).relu())

    model = Normalised().double()
    for norm in (model.norm, model.flat):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.1, 2)
        for each in norm.parameters():
            nn.init.normal_(each)
    for method in ("hooks", "vmap"):
        close(parameter_saliency(model, *images(), method=method), loop(model, *images()))


def test_filters_in_the_order_of_the_parameters():
    layers = filter_layers(Net())
    assert list(layers) == [
        "kernel",
        "first",
        "grouped",
        "twice",
        "reflected",
        "even",
        "depthwise",
        "idle",
    ]
    assert layers == {**dict.fromkeys(layers, 8), "kernel": 6, "depthwise": 16, "idle": 2}


def test_only_other_weights_change_nothing_in_the_filters():
    model = Net().double()
    layers = filter_layers(model)
    with torch.no_grad():
        model.head.weight.normal_()
        model.bn.weight.uniform_()
    assert filter_layers(model) == layers


@METHODS
@settings(max_examples=5)
@given(order=st.permutations(range(5)), other=st.floats(0, 1))
def test_each_image_by_itself(method, order, other):
    model = Net().double()
    x, y = images()
    whole = parameter_saliency(model, x, y, method=method)
    close(parameter_saliency(model, x[order], y[order], method=method), whole[order])
    changed = x.clone()
    changed[1:] = other
    close(parameter_saliency(model, changed, y, method=method)[0], whole[0])


@METHODS
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_leaves_everything_as_it_was(method, guard):
    model = Net().double().train()
    model.bn.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes = [module.training for module in model.modules()]
    before, state = fingerprint(model), torch.random.get_rng_state()
    with guard():
        x, y = images()
        kept = x.clone()
        found = parameter_saliency(model, x, y, method=method)
    close(found.clone(), loop(model, *images()))
    assert torch.equal(x, kept)
    assert not found.requires_grad
    assert fingerprint(model) == before
    assert [module.training for module in model.modules()] == modes
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_where_hooks_do_not_serve_vmap_does():
    normed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    torch.nn.utils.parametrizations.weight_norm(normed[0])
    x, y = images()
    with pytest.raises(ValueError, match=r"hooks do not serve: a weight of shape \(.*\) is used by .* \(use method='v"):
        parameter_saliency(normed, x, y, method="hooks")
    close(parameter_saliency(normed, x, y), loop(normed, x, y))

    class Crops(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3).double()

        def forward(self, x):
            crops = torch.stack([x[..., :5], x[..., 4:]], 1).flatten(0, 1)
            return torch.tanh(self.conv(crops)).mean((2, 3)).unflatten(0, (-1, 2)).sum(1)

    with pytest.raises(ValueError, match=r"a convolution has inputs \(10, 3, 10, 5\) for 5 images"):
        parameter_saliency(Crops(), x, y, method="hooks")
    model = Crops()
    close(parameter_saliency(model, x, y), loop(model, x, y))


def test_a_batch_norm_without_running_statistics_mixes_no_images():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    x, y = images()
    wanted = loop(model, x, y)
    assert wanted.max() > 1e-3
    close(parameter_saliency(model, x, y), wanted)
    close(parameter_saliency(model, x, y, method="hooks", chunk_size=1), wanted)
    with pytest.raises(ValueError, match="hooks do not serve: a BatchNorm without running statistics mixes the images"):
        parameter_saliency(model, x, y, method="hooks")


def test_a_part_without_gradient_is_0():
    class Cut(Net):
        def forward(self, x):
            with torch.no_grad():
                x = self.first(x)
            return self.head(torch.tanh(F.conv2d(self.depthwise(self.twice(x).detach()), self.kernel)).mean((2, 3)))

    model, (x, y) = Cut().double(), images()
    wanted = loop(model, x, y)
    found = parameter_saliency(model, x, y, method="hooks")
    close(found, wanted)
    assert not found[:, 6:14].any()
    assert found[:, :6].all()


def test_statistics_are_bound_to_the_network():
    model = Net()
    found = saliency_statistics(model)
    assert (found.layers, found.network) == (filter_layers(model), fingerprint(model))


def test_an_empty_batch():
    model = Net()
    x, y = images(0, dtype=torch.float32)
    assert parameter_saliency(model, x, y).shape == (0, sum(filter_layers(model).values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 9, 9)}, r"images must be a floating-point tensor \(B, C, H, W\)"),
        ({"labels": torch.zeros(5)}, r"labels must be an int64 tensor of shape \(5,\), got torch.float32"),
        ({"labels": torch.full((5,), 7)}, r"labels must be in \[0, 5\), got 7 to 7"),
        ({"method": "loop"}, "method must be one of auto, hooks, vmap, got 'loop'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"model": nn.Linear(3, 3)}, "the model must have a convolution, got Linear without one"),
        ({"images": torch.full((5, 3, 10, 9), torch.nan)}, "image 0 gives NaN or infinity"),
    ],
)
def test_bad_arguments_are_named(change, message):
    x, y = images(dtype=torch.float32)
    given = {"model": Net(), "images": x, "labels": y, **change}
    with pytest.raises(ValueError, match=message):
        parameter_saliency(given.pop("model"), given.pop("images"), given.pop("labels"), **given)
