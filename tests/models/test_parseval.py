"""Wide ResNets: their sizes, their files, and that a Parseval network keeps its bound."""

from typing import get_args

import pytest
import torch

from lit_adv.attacks import PGD
from lit_adv.models import Classifier, ParsevalWideResNet, WideResNet, fingerprint, lipschitz_bound, load_classifier
from lit_adv.models.classifier import ClassifierName, save_classifier
from lit_adv.models.parseval import WideResNetName, wide_resnet
from lit_adv.models.parseval_layers import ConvexSum, ParsevalConv2d, ParsevalLinear


def test_published_sizes():
    """Zagoruyko & Komodakis 2016, table 4: 2.7 M, 36.5 M parameters; a Parseval network adds two a block and one."""
    for depth, width, millions in ((16, 4, 2.7), (28, 10, 36.5)):
        with torch.device("meta"):
            plain = WideResNet(depth, width, 10)
        assert round(sum(p.numel() for p in plain.parameters()) / 1e6, 1) == millions
    plain, parseval = WideResNet(16, 4, 10), ParsevalWideResNet(16, 4, 10, batch_norm=True)
    count = [sum(p.numel() for p in network.parameters()) for network in (plain, parseval)]
    assert count[1] == count[0] + 2 * 6 + 1


@pytest.mark.parametrize("name", [n for n in get_args(WideResNetName) if "10_" in n and "28" not in n])
def test_names_say_what_is_inside(name):
    network = wide_resnet(name, 3, 8, 1)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    constrained = [m for m in layers if isinstance(m, ParsevalConv2d | ParsevalLinear)]
    width = int(name.removesuffix("_bn")[-1])
    # stem, two a block, shortcuts where the channels change, head
    assert len(layers) == 1 + 6 + (2 if width == 1 else 3) + 1
    assert len(constrained) == (len(layers) if name.startswith("parseval") else 0)
    assert {m.constraint for m in constrained} <= {"linf" if "inf" in name else "l2"}
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()) == name.endswith("_bn")
    assert sum(isinstance(m, ConvexSum) for m in network.modules()) == (3 if constrained else 0)
    assert network.layer3[0].conv1.out_channels == 64 * width


def test_all_are_classifiers():
    assert set(get_args(WideResNetName)) <= set(get_args(ClassifierName))


def test_every_parameter_learns():
    torch.manual_seed(0)
    for name in ("wrn10_1", "wrn10_1_bn", "parseval_wrn10_1", "parseval_wrn10_1_bn", "parseval_inf_wrn10_1_bn"):
        network = wide_resnet(name, 3, 8, 1)
        loss = torch.nn.functional.cross_entropy(network(torch.randn(6, 1, 8, 8)), torch.arange(6) % 3)
        for key, grad in zip(
            dict(network.named_parameters()), torch.autograd.grad(loss, list(network.parameters())), strict=True
        ):
            assert grad.abs().max() > 0, (name, key)


def trained_a_little(network):
    """Away from where it starts, where all bounds are 1."""
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)).double()
            parameter += 0.3 * noise * parameter.std() if parameter.numel() > 2 else 0
    return network


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    "network",
    [
        lambda: ParsevalWideResNet(10, 1, 4, 8, 2),
        lambda: ParsevalWideResNet(16, 1, 4, 8, 2, constraint="linf", identity_share=0.9),
        lambda: ParsevalWideResNet(10, 1, 4, 8, 2, batch_norm=True),
        lambda: WideResNet(10, 1, 4, 8, 2, batch_norm=False),
    ],
)
def test_the_whole_network_keeps_its_bound(network, norm):
    torch.manual_seed(0)
    network = trained_a_little(network().double()).eval()
    order = 2 if norm == "l2" else float("inf")
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, 8, 8, generator=draws).double()
    near = x + 1e-3 * torch.randn(12, 2, 8, 8, generator=draws).double()
    # and along the gradient, where a network changes most
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[:, 0].sum(), leaf)
    steep = x + 1e-3 * (gradient / gradient.abs().amax() if norm == "l2" else gradient.sign())
    bound = lipschitz_bound(network, norm)
    for y in (near, steep, x.flip(0)):
        gap = torch.linalg.vector_norm(network(x) - network(y), order, dim=1)
        assert (gap <= bound * torch.linalg.vector_norm((x - y).flatten(1), order, dim=1) * (1 + 1e-9)).all()


def test_without_batch_norm_the_bound_is_the_scale():
    """As it starts all layers have norm 1: the learned scale is left, and the convolutions of stride 2.

    Their patches repeat a pixel four times at most, not nine, and they are the first in one branch of their blocks.
    """
    torch.manual_seed(0)
    network = ParsevalWideResNet(16, 2, 10, 16)
    assert lipschitz_bound(network) == pytest.approx(network.scale.item() * ((1 + 2 / 3) / 2) ** 2, rel=1e-4)
    infinite = ParsevalWideResNet(16, 2, 10, 16, constraint="linf")
    assert lipschitz_bound(infinite, "linf") == pytest.approx(infinite.scale.item(), rel=1e-4)
    # pixels in [0, 1] are divided by 0.5 first
    whole = Classifier("parseval_wrn10_1", 4, 8, 1)
    assert lipschitz_bound(whole) == pytest.approx(2 * lipschitz_bound(whole.network), rel=1e-4)


@pytest.mark.parametrize("name", ["parseval_wrn10_1", "parseval_wrn10_1_bn", "wrn10_1_bn"])
def test_files_and_attacks(tmp_path, name):
    torch.manual_seed(0)
    model = Classifier(name, 4, 8, 1)
    save_classifier(model, tmp_path / "net.safetensors")
    again = load_classifier(tmp_path / "net.safetensors")
    assert fingerprint(again) == fingerprint(model)
    images, labels = torch.rand(5, 1, 8, 8), torch.arange(5) % 4
    results = [
        PGD(eps=0.1, step_size=0.05, steps=3)(again, images, labels, seed=1),
        PGD(eps=0.1, step_size=0.05, steps=3, fold=True)(again, images, labels, seed=1),
    ]
    assert (results[0] - images).abs().max() == pytest.approx(0.1, abs=1e-6)
    assert torch.allclose(*results, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 12}, r"depth must be 6n\+4, at least 10, got 12"),
        ({"depth": 4}, r"depth must be 6n\+4, at least 10, got 4"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"constraint": "l1"}, "constraint must be l2 or linf"),
    ],
)
def test_bad_fields(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParsevalWideResNet(**{"depth": 10, "width": 1, "num_classes": 3, **arguments})
