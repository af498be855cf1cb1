"""APGD against a slow loop over single images written after the papers, closed forms and PGD."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import APGD, PGD, Mask
from lit_adv.attacks.apgd import halving_checkpoints, likely_others, sparse_checkpoints
from lit_adv.attacks.norms import norm
from lit_adv.attacks.objectives import objective
from lit_adv.attacks.randomness import Draws, row_seeds

quick = settings(max_examples=10)
seeds = st.integers(0, 10**6)
EPS = {"linf": 0.06, "l2": 0.5, "l1": 4.0}
every_norm = pytest.mark.parametrize("name", EPS)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def adversary_loss(model, x, y, name="ce"):
    with torch.no_grad():
        return objective(name)(model(x), y, False)


@pytest.fixture(scope="module")
def trained(pictures):
    """A small network trained on random pictures with a pattern, and pictures it gets right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 4)
        )
        patterns = torch.rand(4, 1, 8, 8)
    x = 0.6 * pictures(400, 1) + 0.4 * patterns.repeat(100, 1, 1, 1)
    y = torch.arange(400) % 4
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    keep = (predict(model, x) == y).nonzero()[:64, 0]
    return model.double().eval(), x[keep].double(), y[keep]


# the papers' algorithms, one image at a time


def slow_projection(name, x, z, eps):
    """The nearest point of the ball around x (l2: then of the box, as both papers' step does)."""
    if name == "linf":
        return np.clip(np.clip(z, x - eps, x + eps), 0, 1)
    delta = z - x
    if name == "l2":
        return np.clip(x + delta * min(1, eps / max(np.linalg.norm(delta), 1e-300)), 0, 1)
    room = np.where(delta > 0, 1 - x, x)
    low, high = 0.0, np.abs(delta).max()
    if np.minimum(np.abs(delta), room).sum() <= eps:
        return np.clip(z, 0, 1)
    for _ in range(200):
        middle = (low + high) / 2
        size = np.minimum(np.maximum(np.abs(delta) - middle, 0), room).sum()
        low, high = (middle, high) if size > eps else (low, middle)
    return x + np.sign(delta) * np.minimum(np.maximum(np.abs(delta) - high, 0), room)


def slow_apgd(value_and_gradient, x, start, name, eps, steps, rho=0.75):
    """Croce & Hein 2020, algorithm 1, for a value to be maximised; also how often the step was halved."""
    checkpoints, shares = [0], [0.0, 0.22]
    while shares[-1] < 1:
        checkpoints.append(math.ceil(round(shares[-1] * steps, 9)))
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    eta = 2 * eps

    def ascend(point, gradient):
        step = np.sign(gradient) if name == "linf" else gradient / np.linalg.norm(gradient)
        return slow_projection(name, x, point + eta * step, eps)

    xs, values = [start], []
    values.append(value_and_gradient(start)[0])
    xs.append(ascend(start, value_and_gradient(start)[1]))
    values.append(value_and_gradient(xs[1])[0])
    best, best_value = (start, values[0]) if values[0] >= values[1] else (xs[1], values[1])
    seen = [(start, values[0]), (xs[1], values[1])]
    at_checkpoint = {0: (eta, values[0])}
    improvements = [values[1] > values[0]]
    halvings = 0
    for k in range(1, steps):
        if k in checkpoints[1:]:
            before = checkpoints[checkpoints.index(k) - 1]
            condition_1 = sum(improvements[before:k]) < rho * (k - before)
            condition_2 = at_checkpoint[before] == (eta, best_value)
            at_checkpoint[k] = (eta, best_value)
            if condition_1 or condition_2:
                # the step size at this checkpoint, as the next one will compare it
                halvings += 1
                eta = eta / 2
                xs[k], values[k] = best, best_value
        z = ascend(xs[k], value_and_gradient(xs[k])[1])
        xs.append(slow_projection(name, x, xs[k] + 0.75 * (z - xs[k]) + 0.25 * (xs[k] - xs[k - 1]), eps))
        values.append(value_and_gradient(xs[k + 1])[0])
        seen.append((xs[k + 1], values[k + 1]))
        improvements.append(values[k + 1] > values[k])
        if values[k + 1] > best_value:
            best, best_value = xs[k + 1], values[k + 1]
    return best, seen, halvings


def slow_l1_apgd(value_and_gradient, x, start, eps, steps):
    """Croce & Hein 2021, section 3.3, with the sparsity adapted every 4 percent of the steps."""
    size = x.size
    eta, moving, changed = eps, size / 5, size
    point, best, best_value = start, start, -math.inf
    seen, resets = [], 0
    for step in range(steps + 1):
        value, gradient = value_and_gradient(point)
        seen.append((point, value))
        if value > best_value:
            best, best_value = point, value
        if step and step % max(1, int(0.04 * steps)) == 0:
            now = int((best != x).sum())
            moving = now / 1.5
            if now < 0.95 * changed:
                eta, point, resets = eps, best, resets + 1
                gradient = value_and_gradient(point)[1]
            else:
                eta = max(eta / 1.5, eps / 10)
            changed = now
        flat = np.abs(gradient).ravel()
        chosen = np.argsort(-flat, kind="stable")[: max(1, int(moving))]
        direction = np.zeros(size)
        direction[chosen] = np.sign(gradient).ravel()[chosen] / max(1, np.count_nonzero(gradient.ravel()[chosen]))
        point = slow_projection("l1", x, point + eta * direction.reshape(x.shape), eps)
    return best, seen, resets


def oracle(model, label, name):
    """An image as numpy to what the papers maximise, and its gradient."""

    def value_and_gradient(image):
        leaf = torch.from_numpy(image)[None].requires_grad_()
        value = -objective(name)(model(leaf), label[None], False).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient[0].numpy()

    return value_and_gradient


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
@every_norm
def test_a_slow_loop_after_the_paper_gives_the_same(name, loss, net, pictures):
    model, x = net(1).double(), pictures(4, 1, dtype=torch.float64)
    y = predict(model, x)
    eps = EPS[name] / 2
    attack = APGD(norm=name, eps=eps, steps=50, objective=loss, stop_at_success=False)
    out = attack(model, x, y, seed=3)
    draws = Draws(row_seeds(x, 3))
    start = (x + norm(name).random(draws, x, eps, None)).clamp(0, 1)
    adaptations = 0
    for i in range(4):
        arguments = oracle(model, y[i], loss), x[i].numpy(), start[i].numpy()
        if name == "l1":
            best, seen, adapted = slow_l1_apgd(*arguments, eps, 50)
        else:
            best, seen, adapted = slow_apgd(*arguments, name, eps, 50)
        adaptations += adapted
        fooled = [pair for pair in seen if predict(model, torch.from_numpy(pair[0])[None]) != y[i]]
        expected = max(fooled, key=lambda pair: pair[1])[0] if fooled else best
        np.testing.assert_allclose(out[i].numpy(), expected, atol=1e-9)
    assert adaptations >= 4


def test_checkpoints_are_the_papers():
    assert sorted(halving_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99, 105]
    assert sorted(halving_checkpoints(10)) == [3, 5, 6, 7, 8, 9, 10, 11]
    assert sorted(sparse_checkpoints(100)) == list(range(4, 101, 4))
    assert sorted(sparse_checkpoints(3)) == [1, 2, 3]


# closed forms


@quick
@given(seed=seeds, eps=st.floats(0.01, 0.3))
def test_linf_reaches_the_corner_of_the_ball(linear, seed, eps):
    model, x, y = linear(seed)
    out = APGD(eps=eps, steps=5, stop_at_success=False)(model, x, y, seed=seed)
    away = (model.weight[1 - y] - model.weight[y]).detach().sign().view_as(x)
    torch.testing.assert_close(out, x + eps * away, atol=1e-12, rtol=0)


@quick
@given(seed=seeds, eps=st.floats(0.01, 0.4))
def test_l2_converges_to_the_steepest_point(linear, seed, eps):
    model, x, y = linear(seed)
    out = APGD(norm="l2", eps=eps, steps=60, stop_at_success=False)(model, x, y, seed=seed)
    away = (model.weight[1 - y] - model.weight[y]).detach().view_as(x)
    torch.testing.assert_close(out, x + eps * norm("l2").steepest(away), atol=1e-5, rtol=0)


@settings(quick, max_examples=4)
@given(seed=seeds, eps=st.floats(0.5, 8))
def test_l1_fills_the_steepest_pixels_to_the_end_of_the_box(linear, seed, eps):
    model, x, y = linear(seed, count=2, channels=3, height=10, width=9)
    out = APGD(norm="l1", eps=eps, steps=100, stop_at_success=False)(model, x, y, seed=seed)
    for i in range(len(x)):
        away = (model.weight[1 - y[i]] - model.weight[y[i]]).detach()
        left, optimum = eps, 0.0
        for j in away.abs().argsort(descending=True):
            room = float(1 - x[i].flatten()[j] if away[j] > 0 else x[i].flatten()[j])
            optimum += float(away[j].abs()) * min(room, left)
            left -= min(room, left)
        reached = float((away * (out[i] - x[i]).flatten()).sum())
        assert optimum * 0.98 <= reached <= optimum * (1 + 1e-9)


# what it promises


@every_norm
@pytest.mark.parametrize("wide", [False, True])
def test_ball_box_and_region(name, wide, net, pictures):
    model, x = net(), pictures(6)
    y = predict(model, x)
    mask = (torch.arange(64) % 3 == 0).view(8, 8)
    for stop in (False, True):
        attack = APGD(norm=name, eps=EPS[name], steps=12, wide_start=wide, stop_at_success=stop)
        delta = attack(model, x, y, seed=1, region=Mask(mask)) - x
        assert float(norm(name).size(delta.double()).max()) <= EPS[name] * (1 + 1e-6)
        assert not bool(delta[:, :, ~mask].any())
        assert bool(delta[:, :, mask].any())


@every_norm
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_no_worse_than_pgd_at_equal_steps(name, loss, trained):
    model, x, y = trained
    eps = {"linf": 0.08, "l2": 0.6, "l1": 2.0}[name]
    apgd = APGD(norm=name, eps=eps, steps=20, objective=loss, stop_at_success=False).run(model, x, y, seed=1)
    assert 0.1 < float(apgd.success.float().mean()) < 0.95
    for share in (0.1, 0.25):
        pgd = PGD(norm=name, eps=eps, step_size=share * eps, steps=20, objective=loss).run(model, x, y, seed=1)
        assert int(apgd.success.sum()) >= int(pgd.success.sum())
        ours, theirs = (adversary_loss(model, result.images, y, loss).mean() for result in (apgd, pgd))
        assert float(ours) <= float(theirs) + 1e-3


@every_norm
def test_passes(name, net, pictures):
    model, x = net(), pictures(8)
    y = predict(model, x)
    full = APGD(norm=name, eps=EPS[name] / 20, steps=9, stop_at_success=False).run(model, x, y, seed=1)
    assert full.forwards.tolist() == [10] * 8
    assert full.backwards.tolist() == full.iterations.tolist() == [9] * 8
    early = APGD(norm=name, eps=EPS[name], steps=9).run(model, x, y, seed=1)
    every = APGD(norm=name, eps=EPS[name], steps=9, stop_at_success=False).run(model, x, y, seed=1)
    assert bool((early.success >= every.success).all())
    stopped = early.forwards < 10
    assert bool(stopped.any())
    assert bool(early.success[stopped].all())
    assert torch.equal(early.forwards[stopped], early.backwards[stopped])
    wide = APGD(norm=name, eps=EPS[name] / 20, steps=10, wide_start=True, stop_at_success=False)
    assert wide.run(model, x, y, seed=1).forwards.tolist() == [13] * 8
    assert wide._passes(4) == (13, 10)


def test_restarts_and_classes_go_on_with_what_is_left(trained):
    model, x, y = trained
    one = APGD(eps=0.06, steps=6).run(model, x, y, seed=1)
    more = APGD(eps=0.06, steps=6, restarts=3).run(model, x, y, seed=1)
    assert 0 < int(one.success.sum()) < 64
    assert bool((more.success >= one.success).all())
    assert torch.equal(more.images[one.success], one.images[one.success])
    assert torch.equal(more.forwards[one.success], one.forwards[one.success])
    failed = ~more.success
    assert more.forwards[failed].unique().tolist() == [21]
    assert bool((adversary_loss(model, more.images, y) <= adversary_loss(model, one.images, y) + 1e-12)[failed].all())
    targeted = APGD(eps=0.06, steps=6, target_classes=9, objective="dlr")
    result = targeted.run(model, x, y, seed=1)
    assert result.forwards[~result.success].unique().tolist() == [1 + 3 * 7]
    assert result.backwards.max() <= 18
    assert targeted._passes(4) == (22, 18)


def test_a_wide_start_goes_further_in_l1(trained):
    model, x, y = trained
    found = [
        int(APGD(norm="l1", eps=1.5, steps=40, wide_start=wide).run(model, x, y, seed=1).success.sum())
        for wide in (False, True)
    ]
    assert found[1] >= found[0]
    assert found[1] > 0


def test_each_class_is_tried_with_its_own_loss(net, pictures):
    model, x = net(1, 6).double(), pictures(5, 1, dtype=torch.float64)
    y = predict(model, x)
    with torch.no_grad():
        logits = model(x)
    others = likely_others(logits, y, 9)
    assert others.shape == (5, 5)
    for row in range(5):
        assert others[row].tolist() == [k for k in logits[row].argsort(descending=True).tolist() if k != y[row]]
    attack = APGD(eps=0.03, steps=15, objective="dlr", target_classes=1, stop_at_success=False)
    out = attack(model, x, y, seed=2)
    start = (x + norm("linf").random(Draws(row_seeds(x, 2)), x, 0.03, None)).clamp(0, 1)
    for i in range(5):

        def value_and_gradient(image, i=i):
            leaf = torch.from_numpy(image)[None].requires_grad_()
            z = model(leaf)[0]
            top = z.sort(descending=True).values
            value = -(z[y[i]] - z[others[i, 0]]) / (top[0] - (top[2] + top[3]) / 2)  # equation 7
            (gradient,) = torch.autograd.grad(value, leaf)
            return float(value.detach()), gradient[0].numpy()

        best, seen, _ = slow_apgd(value_and_gradient, x[i].numpy(), start[i].numpy(), "linf", 0.03, 15)
        fooled = [pair for pair in seen if predict(model, torch.from_numpy(pair[0])[None]) != y[i]]
        expected = max(fooled, key=lambda pair: pair[1])[0] if fooled else best
        np.testing.assert_allclose(out[i].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("target_classes", [None, 9])
@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_with_few_classes(classes, target_classes, targeted, net, pictures):
    model, x = net(1, classes).double(), pictures(8, 1, dtype=torch.float64)
    y = predict(model, x)
    targets = (y + 1) % classes if targeted else None
    attack = APGD(eps=0.06, steps=10, objective="dlr", target_classes=target_classes)
    result = attack.run(model, x, y, targets=targets, seed=1)
    best = APGD(eps=0.06, steps=10, objective="margin").run(model, x, y, targets=targets, seed=1)
    assert int(result.success.sum()) >= int(best.success.sum()) - 1
    assert int(result.success.sum()) > 0
    tried = 1 if targeted or target_classes is None else classes - 1
    assert int(result.forwards.max()) <= tried * 11 + 1


def test_the_gradient_is_averaged_over_the_randomness(net, pictures):
    class Noisy(nn.Module):
        """Adds a number that alternates; its mean is the model."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x + 0.05 * (-1) ** self.calls * (torch.arange(8.0) - 3.5))

    class Mean(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            shift = 0.05 * (torch.arange(8.0) - 3.5)
            return (self.inner(x + shift) + self.inner(x - shift)) / 2

    inner, x = net(3, 2).double(), pictures(4, dtype=torch.float64)
    y = predict(inner, x)
    attack = APGD(eps=0.03, steps=8, objective="margin", eot_iter=2, stop_at_success=False)
    result = attack.run(Noisy(inner), x, y, seed=1)
    assert result.forwards.tolist() == [18] * 4
    assert result.backwards.tolist() == [16] * 4
    plain = APGD(eps=0.03, steps=8, objective="margin", stop_at_success=False)
    torch.testing.assert_close(result.images, plain(Mean(inner), x, y, seed=1), atol=1e-9, rtol=0)
    assert not torch.equal(result.images, plain(Noisy(inner), x, y, seed=1))


def test_momentum_and_rho(net, pictures):
    model, x = net().double(), pictures(3, dtype=torch.float64)
    y = predict(model, x)
    # no momentum, never halved: PGD with steps of 2 eps that keeps its best point
    attack = APGD(eps=0.03, steps=2, momentum=0, rho=0, objective="margin", stop_at_success=False)
    pgd = PGD(eps=0.03, step_size=0.06, steps=2, objective="margin")
    candidates = [pgd, PGD(eps=0.03, step_size=0.06, steps=1, objective="margin")]
    losses = torch.stack([adversary_loss(model, each(model, x, y, seed=1), y, "margin") for each in candidates])
    ours = adversary_loss(model, attack(model, x, y, seed=1), y, "margin")
    assert bool((ours <= losses.amin(0) + 1e-12).all())
    torch.testing.assert_close(ours, torch.minimum(ours, losses.amin(0)), atol=1e-12, rtol=0)
    plain, heavy = (
        APGD(norm="l2", eps=0.1, steps=6, momentum=momentum, stop_at_success=False)(model, x, y, seed=1)
        for momentum in (0, 0.25)
    )
    assert not torch.equal(plain, heavy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": 8}, r"APGD: eps must be in \[0, 1\] for linf, got 8"),
        ({"norm": "l0"}, "APGD: norm must be one of linf, l2, l1, got 'l0'"),
        ({"objective": "f6"}, "APGD: objective must be one of ce, dlr, margin, got 'f6'"),
        ({"steps": 0}, "APGD: steps must be at least 1, got 0"),
        ({"restarts": 0}, "APGD: restarts must be at least 1, got 0"),
        ({"eot_iter": 0}, "APGD: eot_iter must be at least 1, got 0"),
        ({"target_classes": 0}, "APGD: target_classes must be at least 1, got 0"),
        ({"rho": 1.5}, r"APGD: rho must be in \[0, 1\], got 1.5"),
        ({"momentum": 1}, r"APGD: momentum must be in \[0, 1\), got 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        APGD(**fields)
