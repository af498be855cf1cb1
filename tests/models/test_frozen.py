"""Freezing and fingerprints."""

import copy
import pickle

import torch
from torch import nn

from lit_adv.models import classifier, fingerprint, freeze_


def test_frozen_network_never_changes():
    victim = classifier("resnet20", 10, 8)
    assert freeze_(victim) is victim
    parent = nn.ModuleList([victim, nn.Linear(2, 2)])
    before = fingerprint(victim)
    parent.train()
    assert parent[1].training
    assert not any(module.training for module in victim.modules())
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    victim(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in victim.parameters())
    assert fingerprint(victim) == before
    assert victim.train() is victim


def test_freezing_survives_copies():
    victim = freeze_(classifier("small_cnn", 10, 8))
    for other in (copy.deepcopy(victim), pickle.loads(pickle.dumps(victim))):
        assert other.train() is other
        assert not other.training
    assert not victim.train().training


def test_fingerprint_ignores_mode_and_freezing():
    model = classifier("resnet20", 10, 8)
    before = fingerprint(model)
    assert len(before) == 64
    assert fingerprint(model.eval()) == before
    assert fingerprint(copy.deepcopy(model)) == before
    assert fingerprint(freeze_(model)) == before


def test_fingerprint_sees_every_change():
    torch.manual_seed(0)
    model = classifier("resnet20", 10, 8)
    seen = {fingerprint(model)}
    model.network.linear.bias.data[3] += 1e-6
    seen.add(fingerprint(model))
    model.network.bn1.running_mean[0] += 1e-6
    seen.add(fingerprint(model))
    model.normalize.mean[0] += 1e-6
    seen.add(fingerprint(model))
    seen.add(fingerprint(copy.deepcopy(model).half()))
    assert len(seen) == 5


def test_fingerprint_sees_architecture_without_weights():
    assert fingerprint(nn.Sequential(nn.ReLU())) != fingerprint(nn.Sequential(nn.Sigmoid()))
    one, two = nn.Conv2d(1, 1, 3, stride=1), nn.Conv2d(1, 1, 3, stride=2)
    two.load_state_dict(one.state_dict())
    assert fingerprint(one) != fingerprint(two)


def test_fingerprint_sees_buffers_that_are_not_saved():
    module = nn.Module()
    module.register_buffer("scale", torch.ones(1), persistent=False)
    before = fingerprint(module)
    module.scale += 1
    assert fingerprint(module) != before


def test_fingerprint_of_scalars_and_half_precision():
    module = nn.Module()
    module.register_buffer("a", torch.tensor(1.5, dtype=torch.bfloat16))
    module.register_buffer("b", torch.empty(0, 3))
    assert fingerprint(module) == fingerprint(copy.deepcopy(module))
