"""JSMA against brute force over all pairs and a loop over single images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import JSMA, Mask, jsma

quick = settings(max_examples=40)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def every_pair(a, b, free):
    """The largest product over all pairs of one row, 0 where there is none with both factors positive."""
    rise, fall = a[:, None] + a, b[:, None] + b
    allowed = (free[:, None] & free) & ~torch.eye(len(a), dtype=torch.bool)
    return torch.where(allowed & (rise > 0) & (fall > 0), rise * fall, 0.0).max()


@quick
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 70),
    correlation=st.sampled_from([-1.0, -0.9, 0.0, 0.9, 1.0]),
    ties=st.booleans(),
)
def test_best_pair_is_that_of_all_pairs(seed, count, correlation, ties):
    generator = torch.Generator().manual_seed(seed)
    a, noise = torch.randn(2, 3, count, dtype=torch.float64, generator=generator)
    b = correlation * a + (1 - correlation**2) ** 0.5 * noise
    if ties:
        a, b = a.round(), b.round()
    free = torch.rand(3, count, generator=generator) < 0.8
    pairs, found = jsma.best_pair(a, b, free)
    for row in range(3):
        expected = every_pair(a[row], b[row], free[row])
        assert bool(found[row]) == bool(expected > 1e-300)
        if found[row]:
            p, q = pairs[row]
            assert p != q
            assert bool(free[row, pairs[row]].all())
            torch.testing.assert_close((a[row, p] + a[row, q]) * (b[row, p] + b[row, q]), expected, rtol=1e-12, atol=0)


def test_best_pair_in_tables_of_bounded_size(monkeypatch):
    """On a circle no column is below another, so that all of them have to be looked at."""
    angle = torch.linspace(0.1, 1.4, 300, dtype=torch.float64)
    a, b = angle.cos()[None], angle.sin()[None]
    free = torch.ones_like(a, dtype=torch.bool)
    monkeypatch.setattr(jsma, "_TABLE", 1000)
    (pair,), (found,) = jsma.best_pair(a, b, free)
    assert bool(found)
    torch.testing.assert_close(a[0, pair].sum() * b[0, pair].sum(), every_pair(a[0], b[0], free[0]))


def test_best_pair_of_slopes_whose_products_underflow():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 50, generator=generator)
    free = torch.ones(1, 50, dtype=torch.bool)
    expected, _ = jsma.best_pair(a, b, free)
    pair, found = jsma.best_pair(1e-30 * a, 1e-30 * b, free)
    assert bool(found)
    assert sorted(pair[0].tolist()) == sorted(expected[0].tolist())


def slow_jsma(model, image, goal, done, *, theta, most, on):
    """Algorithm 2 with the Jacobian row by row and all pairs in a table."""
    x, steps = image.clone(), 0
    while True:
        leaf = x[None].clone().requires_grad_()
        logits = model(leaf)
        outputs = logits[0] if on == "logits" else logits[0].softmax(0)
        jacobian = torch.stack(
            [torch.autograd.grad(value, leaf, retain_graph=True)[0][0].flatten() for value in outputs]
        )
        alpha = jacobian[goal]
        beta = jacobian.sum(0) - alpha
        if done(int(logits.argmax())) or int((x != image).sum()) + 2 > most:
            return x, steps
        sign = 1 if theta > 0 else -1
        free = (x < 1 if theta > 0 else x > 0).flatten()
        score = (alpha[:, None] + alpha) * -(beta[:, None] + beta)
        allowed = (sign * (alpha[:, None] + alpha) > 0) & (sign * (beta[:, None] + beta) < 0)
        allowed &= free[:, None] & free & ~torch.eye(len(alpha), dtype=torch.bool)
        if not bool(allowed.any()):
            return x, steps
        place = int(torch.where(allowed, score, -1.0).argmax())
        for feature in (place // len(alpha), place % len(alpha)):
            x.view(-1)[feature] = (x.view(-1)[feature] + theta).clamp(0, 1)
        steps += 1


@pytest.mark.parametrize("theta", [1.0, 0.4, -1.0, -0.3])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("on", ["logits", "probs"])
def test_agrees_with_a_loop_over_single_images(theta, targeted, on, pictures):
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(120, 5)).double()
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.data = 0.3 * torch.randn(p.shape, dtype=torch.float64, generator=generator)
    x = pictures(6, channels=2, height=6, width=7, dtype=torch.float64)
    with torch.no_grad():
        order = model(x).argsort(1, descending=True)
    y, goal = order[:, 0], order[:, 2] if targeted else order[:, 1]
    result = JSMA(theta=theta, gamma=0.6, on=on).run(model, x, y, targets=goal if targeted else None)
    for i in range(6):
        wanted = (lambda k, i=i: k == int(goal[i])) if targeted else (lambda k, i=i: k != int(y[i]))
        expected, steps = slow_jsma(model, x[i], int(goal[i]), wanted, theta=theta, most=50, on=on)
        torch.testing.assert_close(result.images[i], expected, rtol=0, atol=1e-12)
        assert int(result.iterations[i]) == steps
    assert int(result.iterations.max()) > 1
    assert targeted or bool(result.success.all())


def test_two_features_a_step_until_gamma_of_them_have_changed(net, pictures):
    model, x = net().double(), pictures(6, low=0.1, high=0.9, dtype=torch.float64)
    y = predict(model, x)
    confident = nn.Sequential(model, nn.Linear(4, 4)).double()
    confident[1].weight.data = torch.eye(4, dtype=torch.float64)
    confident[1].bias.data = torch.zeros(4, dtype=torch.float64)
    for gamma, steps in ((0.05, 4), (1 / 64, 1), (0.0, 0)):  # of 192 features
        # the label's logit is out of reach
        confident[1].bias.data = torch.tensor([1e3, 0, 0, 0], dtype=torch.float64)
        result = JSMA(gamma=gamma).run(confident, x, torch.zeros_like(y))
        assert not bool(result.success.any())
        assert result.iterations.tolist() == [steps] * 6
        changed = (result.images != x).flatten(1)
        assert changed.sum(1).tolist() == [2 * steps] * 6
        assert bool((result.images.flatten(1)[changed] == 1).all())
        assert result.forwards.tolist() == [steps] * 6
        assert result.backwards.tolist() == [2 * steps] * 6


def test_smaller_steps_change_no_more_than_gamma_of_the_features(net, pictures):
    model, x = net().double(), pictures(6, low=0.0, high=0.3, dtype=torch.float64)
    model.head.bias.data[0] += 1e3  # out of reach
    for count in (7, 9, 12, 15):
        result = JSMA(theta=0.4, gamma=count / 192).run(model, x, predict(model, x))
        changed = (result.images != x).flatten(1).sum(1)
        assert int(changed.max()) <= count
        assert bool((2 * result.iterations >= changed).all())
    assert bool((2 * result.iterations > changed).any())


@pytest.mark.parametrize(("on", "each"), [("logits", 2), ("probs", 1)])
def test_pass_counts(on, each, net, pictures):
    model, x = net().double(), pictures(8, dtype=torch.float64)
    y = predict(model, x)
    attack = JSMA(gamma=1.0, on=on)
    result = attack.run(model, x, y)
    assert bool(result.success.all())
    assert len(set(result.iterations.tolist())) > 1
    assert torch.equal(result.forwards, result.iterations + 1)
    assert torch.equal(result.backwards, each * result.forwards)
    cost = attack.cost(model, x)
    assert (cost.forwards, cost.backwards) == (96, 96 * each)


def test_slopes_of_the_probabilities_sum_to_0(net, pictures):
    model, x = net().double(), pictures(2, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).softmax(1).sum(), x)
    assert float(gradient.abs().max()) < 1e-12


def test_one_feature_alone_is_no_pair(net, pictures):
    model, x = net(1), pictures(1, channels=1)
    y = predict(model, x)
    first = JSMA(gamma=2 / 64)(model, x, y)
    mask = (first != x)[:, 0].float()
    assert int(mask.sum()) == 2
    assert torch.equal(JSMA()(model, x, y, region=Mask(mask)), first)
    mask.view(-1)[int(mask.argmax())] = 0
    assert torch.equal(JSMA()(model, x, y, region=Mask(mask)), x)


def test_large_images_take_linear_memory():
    """A table of all pairs of 3 x 224 x 224 features would take 90 GB."""
    model = nn.Sequential(nn.Conv2d(3, 4, 7, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 28 * 28, 5)).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 224, 224, generator=generator)
    y = predict(model, x)
    result = JSMA(gamma=10 / x[0].numel()).run(model, x, y)
    assert int(result.iterations) <= 5
    assert 0 < int((result.images != x).sum()) <= 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"theta": 0.0}, r"JSMA: theta must be in \[-1, 1\] and not 0, got 0"),
        ({"theta": 255.0}, r"JSMA: theta .*got 255"),
        ({"gamma": 14.5}, r"JSMA: gamma must be in \[0, 1\], got 14.5"),
        ({"on": "softmax"}, r"JSMA: on must be logits or probs"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        JSMA(**fields)
