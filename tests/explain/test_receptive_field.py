"""Receptive fields against what gradients reach, on plain, branching and residual networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from lit_adv.explain import activations, neuron_gradient, receptive_field
from lit_adv.models import Classifier


class Branches(nn.Module):
    """Paths of different fields to one unit, padding by hand, a strided cut and channels shuffled."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, padding=1)
        self.wide = nn.Conv2d(4, 4, 5, 2, padding=2, dilation=1)
        self.narrow = nn.Conv2d(4, 4, 1, 2)
        self.dilated = nn.Conv2d(8, 4, 3, padding=2, dilation=2)
        self.last = nn.Conv2d(4, 3, (1, 3), padding=(0, 1))
        self.gate = nn.Conv2d(3, 3, 1)
        self.gated = nn.Identity()
        self.mixed = nn.Identity()

    def forward(self, x):
        x = F.relu(self.stem(x), inplace=True)
        both = torch.cat([self.wide(x) + self.narrow(x), F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))[:, 2:6]], 1)
        both = both.view(len(x), 2, 4, *both.shape[2:]).transpose(1, 2).flatten(1, 2)
        x = self.last(F.max_pool2d(self.dilated(both), 3, 1, 1))
        gated = self.gated(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())
        return self.mixed(F.interpolate(gated, scale_factor=2))


def positive(model):
    """The same network where nothing cancels and no rectifier is dead."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.abs_().add_(0.01)
            if module.bias is not None:
                module.bias.data.abs_()
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.weight.data.abs_().add_(0.01)
    return model


def support(model, layer, unit, shape, seed=0):
    """Top, left, bottom and right of the pixels that the gradient of a unit of the last channel reaches."""
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    last = activations(model, x, layer).shape[1] - 1
    reached = neuron_gradient(model, x, layer, torch.tensor([[last, *unit]]))[0].abs().sum(0) > 0
    rows, columns = reached.any(1).nonzero()[:, 0], reached.any(0).nonzero()[:, 0]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def averaged(model):
    """Mean for maximum: its gradient reaches the whole window."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
    return model


@pytest.mark.parametrize(
    ("name", "side", "layer"),
    [
        ("resnet20", 32, "network.layer2"),
        ("resnet20", 32, "network.layer1.1.conv1"),
        ("resnet18", 72, "network.layer2"),
        ("densenet121", 72, "network.features.denseblock1"),
        ("mobilenet_v2", 72, "network.features.4"),
        ("small_cnn", 16, "network.features.6"),
    ],
)
def test_the_field_is_what_the_gradient_of_positive_weights_reaches(name, side, layer):
    torch.manual_seed(0)
    model = averaged(positive(Classifier(name, 3, side))).double().eval()
    if name == "mobilenet_v2":
        # rectifiers that end at 6 would be shut
        for module in model.modules():
            if isinstance(module, nn.Hardtanh):
                module.max_val = 1e9
    field = receptive_field(model, layer, (3, side, side))
    height, width = activations(model, torch.zeros(1, 3, side, side).double(), layer).shape[2:]
    units = torch.tensor([[0, 0], [height // 2, width // 2], [height - 1, width // 3]])
    for unit, box in zip(units.tolist(), field.boxes(units).clamp(0, side).tolist(), strict=True):
        assert list(support(model, layer, unit, (3, side, side))) == box


@pytest.mark.parametrize("seed", range(5))
def test_the_field_holds_all_that_any_weights_reach(seed):
    torch.manual_seed(seed)
    model = Branches().double()
    shape = (3, 40, 33)
    fields = {layer: receptive_field(model, layer, shape) for layer in ("stem", "wide", "dilated", "last", "gated")}
    for layer, field in fields.items():
        maps = activations(model, torch.zeros(1, *shape).double(), layer)
        for unit in ((0, 0), (maps.shape[2] // 2, maps.shape[3] // 2), (maps.shape[2] - 1, maps.shape[3] - 1)):
            top, left, bottom, right = field.boxes(torch.tensor([unit]))[0].tolist()
            reached = support(model, layer, unit, shape, seed)
            assert top <= reached[0] < reached[2] <= bottom
            assert left <= reached[1] < reached[3] <= right
    assert fields["last"].size[1] > fields["last"].size[0]
    # behind squeeze and excitation
    assert (fields["gated"].size, fields["gated"].stride) == ((40, 33), (0, 0))


def test_the_recursion_by_hand():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 7, 2, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(2, 2, 3, 1, 2, dilation=2),
        nn.AvgPool2d(2),
    )
    j, r, c = 1, 1, 0.5
    for layer, (k, s, p, d) in {"0": (7, 2, 3, 1), "2": (3, 2, 1, 1), "3": (3, 1, 2, 2), "4": (2, 2, 0, 1)}.items():
        r += (k - 1) * d * j
        c += ((k - 1) * d / 2 - p) * j
        j *= s
        field = receptive_field(model, layer, (1, 64, 48))
        assert (field.size, field.stride, field.centre) == ((r, r), (j, j), (c, c))


@pytest.mark.parametrize(("name", "layer", "size", "stride"), [("alexnet", "12", 195, 32), ("vgg16", "30", 212, 32)])
def test_known_networks(name, layer, size, stride):
    """Araujo et al. 2019, Computing receptive fields of convolutional neural networks, table 1."""
    with torch.device("meta"):
        model = getattr(models, name)(weights=None).features
    field = receptive_field(model.to_empty(device="cpu"), layer, (3, 64, 64))
    assert (field.size, field.stride) == ((size, size), (stride, stride))


@pytest.mark.parametrize(
    ("norm", "whole"),
    [
        (nn.BatchNorm2d(4), False),
        (nn.BatchNorm2d(4, track_running_stats=False), True),
        (nn.InstanceNorm2d(4), True),
        (nn.InstanceNorm2d(4, track_running_stats=True), False),
        (nn.GroupNorm(2, 4), True),
    ],
)
def test_what_is_normalised_by_its_own_mean_sees_the_whole_image(norm, whole):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.Conv2d(4, 2, 3)).double().eval()
    shape, unit = (3, 14, 11), (5, 4)
    box = receptive_field(model, "2", shape).boxes(torch.tensor([unit]))[0].tolist()
    assert box == list(support(model, "2", unit, shape, 0)) == ([0, 0, 14, 11] if whole else [4, 3, 9, 8])


def test_what_has_no_field_is_named():
    model = Branches()
    resized = Branches()
    resized.forward = lambda x: resized.mixed(F.interpolate(resized.stem(x), scale_factor=2))
    with pytest.raises(
        ValueError, match=r"mixed has no field that can be told, since aten\.upsample.* comes before it"
    ):
        receptive_field(resized, "mixed", (3, 16, 16))
    with pytest.raises(ValueError, match="receptive_field: layer must name a layer of the model, got 'head'"):
        receptive_field(model, "head", (3, 16, 16))
    with pytest.raises(ValueError, match=r"receptive_field: image_shape must be \(C, H, W\), got \(16, 16\)"):
        receptive_field(model, "stem", (16, 16))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(ValueError, match=r"layer must give maps \(B, C, h, w\), got \(1, 3\) from 1"):
        receptive_field(flat, "1", (3, 4, 4))
