"""Attacks on Z / T: a saturated network has its gradient back."""

import pytest
import torch
from torch import nn

from lit_adv.attacks import FGSM, PGD, AtTemperature, CarliniWagnerL2, attack_family
from lit_adv.models import Temperature


class Saturated(nn.Module):
    """A network whose last layer is multiplied, as distillation at a high temperature does in effect."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.factor * self.inner(x)


def zero_share(model, x, y):
    x = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
    return float((torch.autograd.grad(loss, x)[0] == 0).float().mean())


def test_same_as_the_attack_on_the_divided_network(net, pictures):
    model, x = net(), pictures(6)
    y = model(x).argmax(1)
    for attack in (FGSM(), PGD(steps=3), CarliniWagnerL2(c=1.0, steps=10, search_steps=2, learning_rate=0.05)):
        expected = attack(Temperature(model, 7.0), x, y, seed=1)
        assert torch.equal(AtTemperature(attack=attack, temperature=7.0)(model, x, y, seed=1), expected)


def test_zero_gradients_grow_with_the_scale_and_hide_the_network_from_fgsm(net, pictures):
    """Card 8.2: a trained head times 100; FGSM stands still, and moves again at temperature 100."""
    model, x = net(), pictures(64)
    y = model(x).argmax(1)
    shares = [zero_share(Saturated(model, factor), x, y) for factor in (1, 100, 1e4)]
    assert shares[0] == 0
    assert 0 < shares[1] < shares[2]
    saturated = Saturated(model, 1e4)
    attack = FGSM(eps=16 / 255)
    still = attack.run(saturated, x, y)
    assert float((still.norms["linf"] == 0).float().mean()) > 0.5
    seen = AtTemperature(attack=attack, temperature=1e4).run(saturated, x, y)
    plain = attack.run(model, x, y)
    assert torch.equal(seen.success, plain.success)
    assert plain.success.sum() > still.success.sum()


def test_for_two_classes_the_sign_does_not_depend_on_the_temperature(linear):
    """float64, logits small enough for no underflow: the softmax only scales the gradient."""
    model, x, y = linear(3)
    expected = FGSM(eps=0.02)(model, x, y)
    assert not torch.equal(expected, x)
    for t in (0.7, 3.0, 40.0, 1000.0):
        assert torch.equal(AtTemperature(attack=FGSM(eps=0.02), temperature=t)(model, x, y), expected)


def test_budget_family_and_passes_are_those_of_the_attack(net, pictures):
    inner = PGD(eps=4 / 255, steps=5)
    attack = AtTemperature(attack=inner)
    assert attack._budget() == inner._budget()
    assert attack_family(attack) == attack_family(inner) == "iterative"
    model, x = net(), pictures(3)
    found = attack.run(model, x, model(x).argmax(1), seed=0)
    assert found.forwards.tolist() == [5] * 3
    assert attack.cost(model, x).forwards == 5
    assert found.norms["linf"].max() <= 4 / 255 + 1e-6


def test_bad_fields():
    for t in (0, -3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="AtTemperature: temperature must be above 0 and finite"):
            AtTemperature(attack=FGSM(), temperature=t)
    with pytest.raises(ValueError, match="AtTemperature: attack must be an attack, got str"):
        AtTemperature(attack="FGSM")
