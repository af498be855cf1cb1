"""Fingerprints: equal for equal settings, different for different ones, refused where they could not be stable."""

import dataclasses

import pytest
import torch

from lit_adv.attacks import PGD, BoundedPatch, CarliniWagnerL2, Center, Mask, Radius
from lit_adv.attacks.fingerprint import fingerprint


@dataclasses.dataclass(frozen=True)
class Setting:
    value: int | float | object
    other: int | object = 0


@dataclasses.dataclass(frozen=True)
class Twin:
    value: int | float | object
    other: int | object = 0


def test_is_a_sha256():
    assert len(fingerprint(Setting(1))) == 64
    assert int(fingerprint(Setting(1)), 16) > 0


def test_every_difference_counts():
    values = [
        None,
        True,
        1,
        1.0,
        0,
        0.0,
        False,
        "1",
        "None",
        "",
        (1, 2),
        (12,),
        ((1,), 2),
        (1, (2,)),
        (),
        ("a", "b"),
        ("ab",),
        2**53,
        2**53 + 1,
        0.1 + 0.2,
        0.3,
        torch.zeros(2, 2),
        torch.zeros(4),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.zeros(2, 2, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.bfloat16),
        torch.zeros(2, 2, dtype=torch.bool),
        torch.tensor(0.0),
        torch.zeros(0),
        torch.ones(2, 2),
        Center(2),
        Mask(torch.eye(2)),
        PGD(),
        PGD(steps=11),
        Setting(1),
        Twin(1),
        Setting(1, 1),
    ]
    assert len({fingerprint(Setting(value)) for value in values}) == len(values)
    assert fingerprint(Setting(1)) != fingerprint(Twin(1))
    assert fingerprint(Setting(1, 2)) != fingerprint(Setting(2, 1))


def test_pixels_and_shares_are_different_settings():
    assert Center(1).fingerprint() != Center(1.0).fingerprint()
    assert BoundedPatch(size=1).fingerprint() != BoundedPatch(size=1.0).fingerprint()


def test_equal_settings_are_equal():
    assert fingerprint(Setting(Radius("8/255"))) == fingerprint(Setting(8 / 255))
    assert PGD(eps=Radius("8/255")).fingerprint() == PGD(eps=8 / 255).fingerprint()
    # a field that is a float may be given as an int
    assert PGD(eps=1).fingerprint() == PGD(eps=1.0).fingerprint()
    assert CarliniWagnerL2(c=100).fingerprint() == CarliniWagnerL2(c=100.0).fingerprint()
    assert fingerprint(Setting([1, 2])) == fingerprint(Setting((1, 2)))
    tensor = torch.arange(12.0).view(3, 4)
    assert fingerprint(Setting(tensor.t())) == fingerprint(Setting(tensor.t().contiguous()))
    assert fingerprint(Setting(tensor.requires_grad_())) == fingerprint(Setting(tensor.detach()))


def test_what_has_no_stable_description_is_refused():
    for value in ({1}, object(), len, {1: "a"}, 1j):
        with pytest.raises(TypeError, match="has no stable fingerprint"):
            fingerprint(Setting(value))


class Network(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.register_buffer("unsaved", torch.zeros(1), persistent=False)


class OtherNetwork(Network):
    def _get_name(self):
        return "Network"


def test_networks_count_with_all_their_tensors():
    def changed(change):
        network = Network()
        with torch.no_grad():
            change(network)
        return fingerprint(Setting(network))

    found = {
        fingerprint(Setting(Network(3))),
        fingerprint(Setting(OtherNetwork())),
        fingerprint(Setting((Network(),))),
        fingerprint(Setting((Network(), Network()))),
        changed(lambda network: None),
        changed(lambda network: network.layer.weight[0, 0].add_(1e-6)),
        changed(lambda network: network.norm.running_mean.add_(1e-6)),
        changed(lambda network: network.norm.num_batches_tracked.add_(1)),
        changed(lambda network: network.unsaved.add_(1)),
        changed(lambda network: network.double()),
    }
    assert len(found) == 10
    # not what changes no answer
    assert changed(lambda network: network.eval().requires_grad_(False)) == changed(lambda network: None)
