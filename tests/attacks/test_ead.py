"""EAD against a loop over single images and the known distances on linear models."""

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lit_adv.attacks import EAD, Mask

few = settings(max_examples=3, phases=[Phase.generate])
seeds = st.integers(0, 10**6)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def elastic(delta, beta):
    return delta.square().sum((1, 2, 3)) + beta * delta.abs().sum((1, 2, 3))


@few
@given(seed=seeds)
def test_finds_the_nearest_image_and_nothing_nearer(linear, seed):
    """Without beta that is the nearest in L2; with much of it nearly the one in L1, where one pixel does it all."""
    model, x, y = linear(seed, margin=0.3)
    w = (model.weight[1] - model.weight[0]).detach()
    need = (x.flatten(1) @ w + (model.bias[1] - model.bias[0]).detach()).abs()
    fields = {"c": 0.01, "learning_rate": 0.01, "steps": 150}
    for norm, attack, dual, share in (
        ("l2", EAD(**fields, beta=0.0), w.norm(), 1.02),
        ("l1", EAD(**fields, beta=0.02, rule="l1"), w.abs().max(), 1.25),
    ):
        known = need / dual
        result = attack.run(model, x, y)
        assert bool(result.success.all())
        assert bool((result.norms[norm] >= known - 1e-12).all())
        assert bool((result.norms[norm] <= share * known + 1e-3).all()), (norm, (result.norms[norm] / known).tolist())


def slow(model, image, label, *, c, beta, learning_rate, steps, momentum, rule, target):
    """One image: section 4, equations 4 to 6."""
    x = y = image
    best, nearest = image, math.inf
    for k in range(steps + 1):
        at = (y if k < steps else x).clone().requires_grad_()
        logits = model(at[None])[0]
        goal = label if target is None else target
        rest = torch.cat([logits[:goal], logits[goal + 1 :]]).max()
        gap = logits[goal] - rest if target is None else rest - logits[goal]
        delta = at.detach() - image
        size = delta.abs().sum() if rule == "l1" else delta.square().sum() + beta * delta.abs().sum()
        if gap < 0 and size < nearest:
            best, nearest = at.detach(), float(size)
        if k == steps:
            return best
        (g,) = torch.autograd.grad(c * gap.clamp(min=0) + (at - image).square().sum(), at)
        z = y - learning_rate * math.sqrt(1 - k / steps) * g
        shrunk = torch.where(z - image > beta, (z - beta).clamp(max=1), image)
        shrunk = torch.where(z - image < -beta, (z + beta).clamp(min=0), shrunk)
        before, x = x, shrunk
        y = (x + k / (k + 3) * (x - before)).clamp(0, 1) if momentum else x
    raise AssertionError


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("rule", ["en", "l1"])
def test_agrees_with_a_loop_over_single_images(rule, momentum, targeted, smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64, seed=2)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    y = predict(smooth, x)
    targets = (y + 1) % 4 if targeted else None
    fields = {"c": 3.0, "beta": 0.01, "learning_rate": 0.05, "steps": 30, "momentum": momentum, "rule": rule}
    result = EAD(**fields, search_steps=0, abort_early=False).run(smooth, x, y, targets=targets)
    assert int(result.success.sum()) >= 3
    for i in range(4):
        expected = slow(smooth, x[i], int(y[i]), **fields, target=int(targets[i]) if targeted else None)
        torch.testing.assert_close(result.images[i], expected, rtol=0, atol=1e-9)
    assert result.forwards.tolist() == [31] * 4
    assert result.backwards.tolist() == result.iterations.tolist() == [30] * 4


def test_the_rule_and_beta_decide_what_is_small(smooth, pictures):
    x = pictures(6, 1, 6, 6, dtype=torch.float64, seed=4)
    y = predict(smooth, x)
    fields = {"c": 5.0, "learning_rate": 0.02, "steps": 60, "search_steps": 0}
    by_rule = {rule: EAD(**fields, beta=0.02, rule=rule).run(smooth, x, y) for rule in ("en", "l1")}
    assert bool((by_rule["l1"].success & by_rule["en"].success).all())
    assert bool((by_rule["l1"].norms["l1"] <= by_rule["en"].norms["l1"] + 1e-12).all())
    sizes = [elastic(by_rule[rule].images - x, 0.02) for rule in ("l1", "en")]
    assert bool((sizes[1] <= sizes[0] + 1e-12).all())
    dense = EAD(**fields, beta=0.0).run(smooth, x, y)
    assert float(by_rule["en"].norms["l0"].mean()) < float(dense.norms["l0"].mean())
    assert float(by_rule["en"].norms["l1"].mean()) < float(dense.norms["l1"].mean())


def test_search_of_c_and_early_ends(linear):
    model, x, y = linear(8, margin=0.6)
    fields = {"learning_rate": 0.02, "steps": 100, "beta": 0.01}
    little = EAD(**fields, c=1e-3, search_steps=0).run(model, x, y)
    assert not bool(little.success.any())
    assert torch.equal(little.images, x)
    whole = EAD(**fields, search_steps=7, abort_early=False).run(model, x, y)
    early = EAD(**fields, search_steps=7).run(model, x, y)
    assert whole.backwards.tolist() == [700] * 4
    assert bool((early.backwards < 0.8 * whole.backwards).all())
    assert bool((early.success & whole.success).all())
    torch.testing.assert_close(early.norms["l1"], whole.norms["l1"], rtol=0.1, atol=0)


@pytest.mark.parametrize("targeted", [False, True])
def test_confidence_is_a_margin_in_logits(targeted, linear):
    model, x, y = linear(4, classes=4, count=6)
    targets = (y + 1) % 4 if targeted else None
    goal = targets if targeted else y
    sizes = []
    for confidence in (0.0, 2.0):
        attack = EAD(c=1.0, learning_rate=0.02, steps=60, search_steps=4, confidence=confidence)
        result = attack.run(model, x, y, targets=targets)
        assert bool(result.success.all())
        own = result.logits.gather(1, goal[:, None])[:, 0]
        other = result.logits.scatter(1, goal[:, None], -math.inf).amax(1)
        assert bool(((own - other if targeted else other - own) >= confidence).all())
        sizes.append(result.norms["l1"])
    assert bool((sizes[1] > sizes[0]).all())


def test_failures_come_back_clean(smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64)
    y = predict(smooth, x)
    mask = torch.zeros(6, 6)
    mask[0, 0] = 1
    result = EAD(c=1.0, steps=10, search_steps=2).run(smooth, x, y, region=Mask(mask))
    assert not bool(result.success.any())
    assert torch.equal(result.images, x)


def test_black_and_white_pixels_move(smooth):
    x = (torch.arange(4 * 36).view(4, 1, 6, 6) * 7 % 11 > 4).double()
    result = EAD(c=10.0, learning_rate=0.02, steps=60, search_steps=0).run(smooth, x, predict(smooth, x))
    assert bool(result.success.all())
    assert bool(((result.images - x).abs() > 1 / 512).flatten(1).any(1).all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"c": 0}, "EAD: c must be greater than 0"),
        ({"learning_rate": -1}, "EAD: learning_rate must be"),
        ({"beta": -1e-3}, "EAD: beta must be at least 0"),
        ({"steps": 0}, "EAD: steps must be at least 1"),
        ({"search_steps": -1}, "EAD: search_steps must be"),
        ({"rule": "l2"}, "EAD: rule must be en or l1"),
        ({"objective": "ce"}, "EAD: objective must be one of f1 to f7"),
        ({"confidence": -1}, "EAD: confidence must be"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EAD(**fields)
