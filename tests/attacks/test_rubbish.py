"""Rubbish images: champions are the best of all that was ever tried, and ascent is the paper's loop."""

import itertools
import random

import pytest
import torch
from torch import nn

from lit_adv.attacks import ClassImage, MapElites
from lit_adv.attacks.rubbish import polynomial


class Recording(nn.Module):
    """Keeps what goes through a model."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.inner(x)


def confidences(model, x):
    with torch.no_grad():
        return model(x).softmax(1)


ELITES = MapElites(generations=12, children=6, confidence=1)


def test_champions_are_the_best_of_all_that_was_tried(net):
    model = Recording(net())
    found = ELITES(model, (3, 8, 8), seed=4)
    seen = torch.cat(model.seen)
    assert found.queries == len(seen) == 6 * 13
    best, which = confidences(model.inner, seen).max(0)
    torch.testing.assert_close(found.confidence, best)
    assert torch.equal(found.images, seen[which])
    assert torch.equal(found.generations, which // 6)
    assert found.classes.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(confidences(model.inner, found.images).diagonal(), found.confidence)


def test_confidences_never_fall_and_do_rise(net):
    model = net()
    found = [MapElites(generations=g, children=6, confidence=1)(model, (3, 8, 8), seed=4) for g in (1, 2, 4, 8, 40)]
    for less, more in itertools.pairwise(found):
        assert bool((more.confidence >= less.confidence).all())
    assert bool((found[-1].confidence > found[0].confidence).all())


def test_children_are_mutated_champions(net):
    model = Recording(net())
    settings = MapElites(generations=6, children=5, mutation_rate=0.4, halve_every=2, confidence=1)
    settings(model, (3, 16, 16), seed=1)
    assert all(0 <= float(x.min()) <= float(x.max()) <= 1 for x in model.seen)
    for generation in range(1, 7):
        before = torch.cat(model.seen[:generation])
        champions = before[confidences(model.inner, before).argmax(0)].flatten(1)
        changed = (model.seen[generation].flatten(1)[:, None] != champions).float().mean(2).amin(1)
        rate = 0.4 * 0.5 ** ((generation - 1) // 2)
        assert float(changed.mean()) == pytest.approx(rate, rel=0.25)


def test_polynomial_mutation_is_debs():
    draws = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:-1]
    found = polynomial(draws, 15 / 255)
    low, high = draws[draws < 0.5], draws[draws >= 0.5]
    expected = torch.cat([(2 * low) ** (1 / 16) - 1, 1 - (2 * (1 - high)) ** (1 / 16)])  # eta = 15
    torch.testing.assert_close(found, expected)
    for strength in (15 / 255, 0.01, 0.3):
        assert float(polynomial(draws, strength).abs().mean()) == pytest.approx(strength, rel=1e-3)


def test_ends_once_all_are_sure(net):
    model = net()
    found = MapElites(generations=400, children=16, confidence=0.4, mutation_rate=0.5)(model, (3, 8, 8))
    assert bool((found.confidence > 0.4).all())
    assert found.queries < 16 * 401
    assert found.queries == 16 * (int(found.generations.max()) + 1)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("start", ["noise", "zeros"])
def test_ascent_is_a_loop_in_float64(start, decay, net):
    model = net()
    settings = ClassImage(step_size=0.02, decay=decay, steps=15, confidence=0.6, start=start)
    found = settings(model, (3, 8, 8), [2, 0, 2, 3], seed=1)
    first = ClassImage(step_size=0.0, steps=1, start=start)(model, (3, 8, 8), [2, 0, 2, 3], seed=1).images
    model = model.double()
    queries = 0
    for row, target in enumerate([2, 0, 2, 3]):
        x = first[row : row + 1].double()
        for step in range(16):
            x = x.requires_grad_()
            logits = model(x)
            queries += 1
            if float(logits.detach().softmax(1)[0, target]) > 0.6 or step == 15:
                break
            (gradient,) = torch.autograd.grad(logits[0, target], x)
            x = (x + 0.02 * gradient - 2 * 0.02 * decay * x).detach().clamp(0, 1)
        torch.testing.assert_close(found.images[row : row + 1].double(), x.detach(), atol=2e-5, rtol=0)
        assert int(found.generations[row]) == step
    assert found.queries == queries
    assert len(set(found.generations.tolist())) > 1
    assert torch.equal(first[0], first[2]) == (start == "zeros")


def test_ascent_reaches_the_confidence_for_every_class(net):
    model = net()
    found = ClassImage(step_size=0.05, steps=200)(model, (3, 8, 8))
    assert found.classes.tolist() == [0, 1, 2, 3]
    # the network is sure of no image of class 1: the ascent ends in a corner of the box
    assert (found.confidence > 0.99).tolist() == [True, False, True, True]
    assert (found.generations < 200).tolist() == [True, False, True, True]
    torch.testing.assert_close(confidences(model, found.images).diagonal(), found.confidence, atol=1e-5, rtol=0)


def test_decay_has_the_closed_form_of_a_linear_model(linear):
    """Where dZ_t/dx is the constant w, x goes to w / (2 lambda)."""
    model, _, _ = linear(0)
    w = model.weight.detach().view(2, 1, 4, 3)
    found = ClassImage(step_size=0.1, decay=2.5, steps=100, confidence=1.0, start="zeros")(model, (1, 4, 3))
    torch.testing.assert_close(found.images.double(), (w / 5).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [ELITES, ClassImage(steps=5)], ids=["MapElites", "ClassImage"])
def test_seeds_and_side_effects(make, net):
    model = net()
    expected = make(model, (3, 6, 9), seed=2)
    assert expected.images.shape == (4, 3, 6, 9)
    model.train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    with torch.inference_mode():
        again = make(model, (3, 6, 9), seed=2)
    assert torch.equal(again.images, expected.images)
    assert torch.equal(again.confidence, expected.confidence)
    assert not torch.equal(make(model, (3, 6, 9), seed=3).images, expected.images)
    assert all(module.training for module in model.modules())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_half_precision_models(net):
    model = net().bfloat16()
    for make in (ELITES, ClassImage(steps=5)):
        found = make(model, (3, 8, 8))
        assert found.images.dtype == found.confidence.dtype == torch.float32


def test_what_is_refused(net):
    for make, message in (
        (lambda: MapElites(generations=0), "MapElites: generations must be at least 1, got 0"),
        (lambda: MapElites(children=0), "MapElites: children must be at least 1"),
        (lambda: MapElites(mutation_rate=0), r"MapElites: mutation_rate must be in \(0, 1\]"),
        (lambda: MapElites(strength=15), r"MapElites: strength must be in \(0, 0.5\), got 15"),
        (lambda: ClassImage(steps=0), "ClassImage: steps must be at least 1"),
        (lambda: ClassImage(decay=-1), "ClassImage: decay must be at least 0"),
        (lambda: ClassImage(confidence=2), "ClassImage: confidence must be in"),
        (lambda: ClassImage(start="ones"), "ClassImage: start must be noise or zeros"),
        (lambda: ClassImage()(net(), (3, 8, 8), [0, 4]), "ClassImage: classes must be 0 to 3, got 0 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
