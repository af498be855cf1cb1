"""Ensembles: against attacks on a hand-made average, loops in float64, and the attack on a single network."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from lit_adv.attacks import (
    BIM,
    FGSM,
    PGD,
    BoundedPatch,
    CarliniWagnerL2,
    DeepFool,
    EnsembleTransfer,
    Frame,
    RandomPatch,
)
from lit_adv.attacks.norms import norm

WEIGHTS = (0.5, 1.5, 2.0)


class Average(nn.Module):
    """The average of logits or probabilities, as one network."""

    def __init__(self, models, weights, average):
        super().__init__()
        self.models, self.weights, self.average = nn.ModuleList(models), weights, average

    def forward(self, x):
        total = sum(self.weights)
        if self.average == "logits":
            return sum(w / total * model(x) for w, model in zip(self.weights, self.models, strict=True))
        return sum(w / total * model(x).softmax(1) for w, model in zip(self.weights, self.models, strict=True)).log()


class Unasked(nn.Module):
    def forward(self, x):
        raise AssertionError("the model of the call must be asked nothing")


@pytest.fixture
def models(net):
    return [net(seed=seed).double() for seed in (1, 2, 3)]


@pytest.fixture
def case(models, pictures):
    x = pictures(6, dtype=torch.float64)
    with torch.no_grad():
        return models, x, Average(models, WEIGHTS, "logits")(x).argmax(1)


ATTACKS = {
    "PGD": PGD(eps=0.05, step_size=0.02, steps=3),
    "PGD-stop": PGD(eps=0.2, step_size=0.05, steps=6, objective="margin", stop_at_success=True),
    "DeepFool": DeepFool(steps=5),
    "CarliniWagnerL2": CarliniWagnerL2(c=3.0, steps=8, search_steps=0, learning_rate=0.05),
    "BoundedPatch": BoundedPatch(size=4, eps=0.3, step_size=0.1, steps=3),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@every_attack
@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("targeted", [False, True])
def test_is_the_attack_on_the_average(attack, average, targeted, case):
    models, x, y = case
    keywords = {"targets": (y + 1) % 4 if targeted else None, "seed": torch.arange(6)}
    ensemble = EnsembleTransfer(attack=attack, models=models, weights=WEIGHTS, average=average)
    found = ensemble(Unasked(), x, y, **keywords)
    # rows draw from the same streams: the seeds are given
    expected = attack(Average(models, WEIGHTS, average), x, y, **keywords)
    assert not torch.equal(found, x)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


@every_attack
@pytest.mark.parametrize("average", ["losses", "logits", "probabilities"])
def test_one_network_is_that_network(attack, average, case):
    models, x, _ = case
    y = models[0](x).argmax(1)
    expected = attack(models[0], x, y, seed=2)
    for chosen, weights in ((models[:1], None), (models, (3.0, 0.0, 0.0))):
        ensemble = EnsembleTransfer(attack=attack, models=chosen, weights=weights, average=average)
        torch.testing.assert_close(ensemble(Unasked(), x, y, seed=2), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("targeted", [False, True])
def test_average_of_losses_is_a_loop_over_losses(targeted, case):
    models, x, y = case
    classes = (y + 1) % 4 if targeted else y
    inner = BIM(eps=0.06, step_size=0.02, steps=4)
    attack = EnsembleTransfer(attack=inner, models=models, weights=WEIGHTS, average="losses")
    moved = x.clone()
    for _ in range(4):
        moved = moved.requires_grad_()
        losses = [w * cross_entropy(model(moved), classes) for w, model in zip(WEIGHTS, models, strict=True)]
        (gradient,) = torch.autograd.grad(sum(losses), moved)
        moved = moved.detach() + 0.02 * gradient.sign() * (-1 if targeted else 1)
        moved = torch.minimum(torch.maximum(moved, x - 0.06), x + 0.06).clamp(0, 1)
    found = attack(Unasked(), x, y, targets=classes if targeted else None)
    torch.testing.assert_close(found, moved, atol=1e-12, rtol=0)


def test_the_three_averages_differ(case):
    models, x, y = case
    found = [
        EnsembleTransfer(attack=FGSM(eps=0.1), models=models, average=average)(Unasked(), x, y)
        for average in ("losses", "logits", "probabilities")
    ]
    for i in range(3):
        assert not torch.equal(found[i], found[i - 1])


def test_liu_et_al_equation_3(case):
    """The loss is -log of the weighted sum of probabilities."""
    models, x, y = case
    leaf = x.clone().requires_grad_()
    mixed = sum(w / 4 * model(leaf).softmax(1) for w, model in zip(WEIGHTS, models, strict=True))
    loss = -((mixed * one_hot(y, 4)).sum(1)).log().sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    attack = EnsembleTransfer(attack=FGSM(eps=0.03), models=models, weights=WEIGHTS, average="probabilities")
    torch.testing.assert_close(attack(Unasked(), x, y), (x + 0.03 * gradient.sign()).clamp(0, 1), atol=1e-12, rtol=0)


def test_transfers(net, pictures):
    models = [net(seed=seed) for seed in range(3)]
    x = pictures(40)
    with torch.no_grad():
        y = Average(models, (1, 1, 1), "logits")(x).argmax(1)
    inner = PGD(eps=0.1, step_size=0.02, steps=10)
    one = EnsembleTransfer(attack=inner, models=models[:1]).run(models[1], x, y, seed=1)
    both = EnsembleTransfer(attack=inner, models=models[:2]).run(models[1], x, y, seed=1)
    assert both.success.sum() > one.success.sum()
    assert int(both.forwards.sum()) == int(both.backwards.sum()) == 0
    with torch.no_grad():
        assert torch.equal(both.success, models[1](both.images).argmax(1) != y)


@pytest.mark.parametrize("average", ["losses", "logits", "probabilities"])
def test_networks_are_left_as_they_are(average, case):
    models, x, y = case
    for model in models:
        model.train()
        model.head.weight.grad = torch.ones_like(model.head.weight)
    states = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    attack = EnsembleTransfer(attack=PGD(steps=2), models=models, average=average)
    out = attack(Unasked(), x, y, seed=1)
    for model, state in zip(models, states, strict=True):
        assert all(module.training for module in model.modules())
        assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        model.eval()
    assert torch.equal(out, attack(Unasked(), x, y, seed=1))


def test_region_budget_and_the_attacks_own_place(case):
    models, x, y = case
    for inner in (PGD(norm="l2", eps=0.5, step_size=0.3, steps=3), ATTACKS["BoundedPatch"]):
        attack = EnsembleTransfer(attack=inner, models=models)
        out = attack(Unasked(), x, y, region=Frame(0.5), seed=1)
        assert bool(((out != x) & (Frame(0.5)(x) == 0)).sum() == 0)
        half = attack(Unasked(), x.bfloat16(), y, seed=1)
        size = norm(inner.norm).size(half.double() - x.bfloat16().double())
        assert float(size.max()) <= inner.eps + 1e-6
    out = EnsembleTransfer(attack=ATTACKS["BoundedPatch"], models=models)(Unasked(), x, y, seed=1)
    assert int((out != x).any(1).sum((1, 2)).max()) <= 16
    assert not torch.equal(
        out, EnsembleTransfer(attack=ATTACKS["BoundedPatch"], models=models)(Unasked(), x, y, seed=2)
    )
    seeds = torch.arange(6)
    drawn = EnsembleTransfer(attack=PGD(steps=2), models=models)(Unasked(), x, y, region=RandomPatch(3), seed=seeds)
    assert int((drawn != x).any(1).sum((1, 2)).max()) == 9


def test_folding_changes_nothing(net, pictures):
    models, x = [net(seed=seed) for seed in (1, 2)], pictures(20)
    y = torch.arange(20) % 4
    for average in ("losses", "logits", "probabilities"):
        found = [
            EnsembleTransfer(attack=PGD(steps=4, objective="margin", fold=fold), models=models, average=average)(
                Unasked(), x, y, seed=1
            )
            for fold in (False, True)
        ]
        assert float(((found[0] - found[1]).abs() > 1e-5).float().mean()) < 0.02


def test_what_is_refused(case, net):
    models, x, y = case
    for fields, message in (
        ({"models": []}, "models must be one network or more"),
        ({"models": [len]}, "models must be one network or more"),
        ({"average": "votes"}, "average must be one of losses, logits, probabilities, got 'votes'"),
        ({"weights": (1.0,)}, "weights must be 3 numbers, one a model"),
        ({"weights": (1.0, -1.0, 1.0)}, "weights must be 3 numbers"),
        ({"weights": (0.0, 0.0, 0.0)}, "weights must be 3 numbers"),
    ):
        with pytest.raises(ValueError, match=f"EnsembleTransfer: {message}"):
            EnsembleTransfer(**{"attack": PGD(), "models": models} | fields)
    with pytest.raises(ValueError, match="models must have the same number of classes"):
        EnsembleTransfer(attack=FGSM(), models=[models[0], net(classes=3).double()])(Unasked(), x, y)
    for average in ("losses", "logits"):
        with pytest.raises(ValueError, match="labels and targets must be classes 0 to 3"):
            EnsembleTransfer(attack=FGSM(), models=models, average=average)(Unasked(), x, y + 3)
