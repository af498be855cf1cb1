"""FGSM, BIM, MI-FGSM, PGD and their like against closed forms on linear models and slow loops."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn

from lit_adv.attacks import BIM, FGM, FGSM, FGVM, ILLC, MIFGSM, PGD, Mask, RandFGSM, RandomPixels
from lit_adv.attacks.gradient import iteration_rule

quick = settings(max_examples=15)
seeds = st.integers(0, 10**6)


def two_class(model):
    return model.weight[1] - model.weight[0], model.bias[1] - model.bias[0]


def margin(model, x, y):
    """Logit of the label minus the other one, two classes."""
    with torch.no_grad():
        logits = model(x)
    return logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


@quick
@given(seed=seeds, eps=st.floats(1e-4, 0.3), objective=st.sampled_from(["ce", "margin", "f6", "f7", "f3"]))
def test_fgsm_moves_the_margin_by_eps_times_l1(linear, seed, eps, objective):
    model, x, y = linear(seed)
    w, _ = two_class(model)
    out = FGSM(eps=eps, objective=objective)(model, x, y)
    change = margin(model, x, y) - margin(model, out, y)
    torch.testing.assert_close(change, (eps * w.abs().sum()).expand(4), rtol=1e-9, atol=1e-12)


@quick
@given(seed=seeds, eps=st.floats(1e-4, 0.3))
def test_fgm_moves_the_margin_by_eps_times_l2(linear, seed, eps):
    model, x, y = linear(seed)
    w, _ = two_class(model)
    out = FGM(eps=eps)(model, x, y)
    torch.testing.assert_close(
        margin(model, x, y) - margin(model, out, y), (eps * w.norm()).expand(4), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close((out - x).flatten(1).norm(dim=1), torch.full((4,), eps, dtype=x.dtype))


@quick
@given(seed=seeds, eps=st.floats(1e-3, 0.3), steps=st.integers(1, 12), spare=st.floats(1, 2))
def test_bim_that_can_reach_the_border_equals_fgsm(linear, seed, eps, steps, spare):
    model, x, y = linear(seed)
    bim = BIM(eps=eps, step_size=spare * eps / steps, steps=steps)
    torch.testing.assert_close(bim(model, x, y), FGSM(eps=eps)(model, x, y), rtol=0, atol=1e-12)


@quick
@given(seed=seeds, eps=st.floats(0.01, 0.3))
def test_pgd_l2_converges_to_fgm(linear, seed, eps):
    model, x, y = linear(seed)
    # the direction across the gradient shrinks by eps / (eps + step) a step
    out = PGD(norm="l2", eps=eps, step_size=eps, steps=40)(model, x, y, seed=seed)
    torch.testing.assert_close(out, FGM(eps=eps)(model, x, y), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("levels", "steps"), [(1, 2), (2, 3), (4, 5), (8, 10), (12, 15), (16, 20), (24, 28), (32, 36), (0, 1)]
)
def test_bim_iteration_rule(levels, steps, net, pictures):
    assert iteration_rule(levels / 255) == steps
    if levels:
        model, x = net(), pictures(2)
        result = BIM(eps=levels / 255).run(model, x, predict(model, x))
        assert result.iterations.tolist() == result.forwards.tolist() == result.backwards.tolist() == [steps] * 2


def test_pgd_of_one_step_without_random_start_is_fgsm(net, pictures):
    model, x = net(), pictures(6)
    y = predict(model, x)
    one = PGD(eps=0.05, step_size=0.05, steps=1, random_start=False)
    assert torch.equal(one(model, x, y), FGSM(eps=0.05)(model, x, y))
    one = PGD(norm="l2", eps=0.5, step_size=0.5, steps=1, random_start=False)
    assert torch.equal(one(model, x, y), FGM(eps=0.5)(model, x, y))
    several = PGD(eps=0.05, step_size=1 / 255, steps=16, random_start=False)
    assert torch.equal(several(model, x, y), BIM(eps=0.05, steps=16)(model, x, y))


@pytest.mark.parametrize("attack", [FGSM(eps=0.05), FGM(eps=0.5), BIM(eps=0.004, step_size=0.004, steps=1)], ids=repr)
def test_targeted_is_untargeted_with_the_sign_reversed(attack, net, pictures):
    model, x = net().double(), pictures(6, low=0.3, high=0.7, dtype=torch.float64)
    t = (predict(model, x) + 1) % 4
    targeted = attack(model, x, t, targets=t) - x
    torch.testing.assert_close(targeted, -(attack(model, x, t) - x), rtol=0, atol=1e-15)
    assert float(targeted.abs().max()) > 1e-3


def slow_pgd(model, x, y, *, norm, eps, step_size, steps, mask=None):
    """One image at a time, numpy and float64, as it is defined."""
    rows = []
    for image, label in zip(x, y, strict=True):
        clean = image.numpy()
        now = clean.copy()
        for _ in range(steps):
            leaf = torch.from_numpy(now)[None].requires_grad_()
            nn.functional.cross_entropy(model(leaf), label[None], reduction="sum").backward()
            g = leaf.grad[0].numpy() * (1 if mask is None else mask)
            if norm == "linf":
                now = now + step_size * np.sign(g)
                now = np.minimum(1, np.minimum(clean + eps, np.maximum(0, np.maximum(clean - eps, now))))
            else:
                now = now + step_size * g / np.sqrt((g**2).sum())
                delta = now - clean
                delta = delta * min(1.0, eps / np.sqrt((delta**2).sum()))
                now = np.clip(clean + delta, 0, 1)
        rows.append(torch.from_numpy(now))
    return torch.stack(rows)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("masked", [False, True])
def test_pgd_agrees_with_a_slow_loop(norm, masked, net, pictures):
    model, x = net().double(), pictures(4, dtype=torch.float64)
    y = predict(model, x)
    fields = {"norm": norm, "eps": 0.06 if norm == "linf" else 0.7, "step_size": 0.02 if norm == "linf" else 0.25}
    mask = (torch.arange(64).view(8, 8) % 3 > 0).double()
    out = PGD(**fields, steps=7, random_start=False)(model, x, y, region=Mask(mask) if masked else None)
    slow = slow_pgd(model, x, y, **fields, steps=7, mask=mask.numpy() if masked else None)
    torch.testing.assert_close(out, slow, rtol=0, atol=1e-12)
    assert float((out - x).abs().max()) > 0.01


def test_restarts_only_help(net, pictures):
    model, x = net(), pictures(40)
    y = predict(model, x)
    fields = {"eps": 0.02, "step_size": 0.01, "steps": 2}
    one = PGD(**fields).run(model, x, y, seed=1)
    several = PGD(**fields, restarts=6).run(model, x, y, seed=1)
    assert bool((several.success | ~one.success).all())
    assert int(several.success.sum()) >= int(one.success.sum())
    with torch.no_grad():
        loss = [nn.functional.cross_entropy(model(r.images), y, reduction="none") for r in (one, several)]
    failed = ~several.success
    assert bool((loss[1] >= loss[0])[failed].all())
    assert bool((loss[1] > loss[0])[failed].any())
    assert several.forwards[failed].tolist() == [6 * 3] * int(failed.sum())


def test_an_image_that_is_fooled_takes_no_further_restart(net, pictures):
    model, x = net().double(), pictures(60, dtype=torch.float64)
    y = predict(model, x)
    attack = PGD(eps=0.02, step_size=0.002, steps=2, restarts=6)
    result = attack.run(model, x, y, seed=1)
    assert torch.equal(result.backwards, result.iterations)
    assert torch.equal(3 * result.backwards, 2 * result.forwards)
    restarts = result.forwards // 3
    assert len(restarts[result.success].unique()) >= 3
    for count in (1, 2, 3, 4):
        fewer = dataclasses.replace(attack, restarts=count).run(model, x, y, seed=1)
        # the restart that fooled it is the first that does, and what comes back is its image
        assert torch.equal(fewer.success, result.success & (restarts <= count))
        torch.testing.assert_close(fewer.images[fewer.success], result.images[fewer.success], rtol=0, atol=1e-12)


def test_a_restart_that_succeeds_is_kept(net, pictures):
    """Even for one that has not, at a lower loss."""
    model, x = net(3, 7), pictures(150)
    y = predict(model, x)
    success = torch.zeros(150, dtype=torch.bool)
    for restarts in range(1, 7):
        attack = PGD(eps=0.03, step_size=0.0, steps=1, restarts=restarts)
        before, success = success, attack.run(model, x, y, seed=1).success
        assert bool((success | ~before).all())
    assert 5 < int(success.sum()) < 145


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stop_at_success_returns_the_first_iterate_that_succeeds(norm, net, pictures):
    model, x = net().double(), pictures(24, dtype=torch.float64)
    y = predict(model, x)
    y[5] = (y[5] + 1) % 4
    fields = {"norm": norm, "eps": 0.02 if norm == "linf" else 0.25, "step_size": 0.003 if norm == "linf" else 0.04}
    stopping = PGD(**fields, steps=8, stop_at_success=True, random_start=False).run(model, x, y)
    expected, steps = x.clone(), torch.zeros_like(y)
    done = predict(model, x) != y
    for step in range(1, 9):
        iterate = PGD(**fields, steps=step, random_start=False)(model, x, y)
        expected = torch.where(done.view(-1, 1, 1, 1), expected, iterate)
        steps += ~done
        done |= predict(model, iterate) != y
    torch.testing.assert_close(stopping.images, expected, rtol=0, atol=1e-12)
    assert torch.equal(stopping.success, done)
    assert torch.equal(stopping.iterations, steps)
    assert torch.equal(stopping.backwards, torch.where(steps < 8, steps + 1, 8))
    assert 0 < int(done.sum()) < 24
    assert len(set(steps.tolist())) > 2


def test_pass_counts(net, pictures):
    model, x = net(), pictures(3)
    y = predict(model, x)
    for attack, passes in ((FGSM(), 1), (FGM(), 1), (PGD(steps=7), 7), (PGD(steps=4, norm="l2"), 4), (BIM(steps=3), 3)):
        result = attack.run(model, x, y)
        for counts in (result.iterations, result.forwards, result.backwards):
            assert counts.tolist() == [passes] * 3


# FGVM and RAND-FGSM


@quick
@given(seed=seeds, eps=st.floats(1e-4, 0.3))
def test_fgvm_follows_the_values_of_the_gradient(linear, seed, eps):
    model, x, y = linear(seed)
    w, _ = two_class(model)
    down = (w.view(1, 1, 4, 3) * (1 - 2 * y.view(-1, 1, 1, 1))).to(x)
    out = FGVM(norm="linf", eps=eps, objective="margin")(model, x, y)
    torch.testing.assert_close(out - x, eps * down / w.abs().max(), rtol=0, atol=1e-12)
    assert (((out - x).abs() > eps * (1 - 1e-9)).flatten(1).sum(1)).tolist() == [1] * 4
    torch.testing.assert_close(FGVM(norm="l2", eps=eps)(model, x, y), FGM(eps=eps)(model, x, y), rtol=0, atol=1e-15)
    raw = FGVM(norm="raw", eps=0.1 * eps, objective="margin")(model, x, y)
    torch.testing.assert_close(raw - x, 0.1 * eps * down, rtol=0, atol=1e-12)


def test_fgvm_raw_is_the_gradient_itself_and_has_no_budget(net, pictures):
    model, x = net().double(), pictures(6, dtype=torch.float64)
    y = predict(model, x)
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), y, reduction="sum").backward()
    for eps in (0, 0.01, 1, 300):
        out = FGVM(norm="raw", eps=eps)(model, x, y)
        torch.testing.assert_close(out, (x + eps * leaf.grad).clamp(0, 1), rtol=0, atol=1e-12)
    assert float((out - x).abs().max()) > 0.5
    targeted = FGVM(norm="raw", eps=1)(model, x, y, targets=y)
    torch.testing.assert_close(targeted, (x - leaf.grad).clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf", "raw"])
@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_fgvm_with_gradients_of_any_size(norm, factor, pictures):
    x = pictures(3, 1, 2, 2, low=0.4, high=0.6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data.mul_(factor)
    out = FGVM(norm=norm, eps=0.1, objective="margin")(model, x, torch.tensor([0, 1, 0]))
    assert bool(torch.isfinite(out).all())
    assert torch.equal(out, x) == (factor == 0 or (norm == "raw" and factor < 1))
    assert FGVM(norm=norm, eps=0.1).run(model, x, torch.tensor([0, 1, 0])).forwards.tolist() == [1] * 3


def test_rand_fgsm_without_a_random_step_is_fgsm(net, pictures):
    model, x = net(), pictures(6)
    y = predict(model, x)
    assert torch.equal(RandFGSM(eps=0.05, alpha=0)(model, x, y), FGSM(eps=0.05)(model, x, y))


@pytest.mark.parametrize("targeted", [False, True])
def test_rand_fgsm_is_a_random_step_and_then_fgsm(targeted, net, pictures):
    model, x = net().double(), pictures(6, dtype=torch.float64)
    y = predict(model, x)
    targets = (y + 1) % 4 if targeted else None
    started = RandFGSM(eps=0.03, alpha=0.03)(model, x, y, seed=torch.arange(6))
    moved = started - x
    free = (x > 0.03) & (x < 0.97)
    torch.testing.assert_close(moved[free].abs(), torch.full_like(moved[free], 0.03))
    assert 0.4 < float((moved[free] > 0).double().mean()) < 0.6
    result = RandFGSM(eps=0.08, alpha=0.03).run(model, x, y, targets=targets, seed=torch.arange(6))
    expected = FGSM(eps=0.05)(model, started, y, targets=targets)
    torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-12)
    assert float(result.norms["linf"].max()) <= 0.08 + 1e-12
    assert result.forwards.tolist() == result.backwards.tolist() == [1] * 6
    half = RandFGSM(eps=0.08)(model, x, y, seed=1)
    assert torch.equal(half, RandFGSM(eps=0.08, alpha=0.04)(model, x, y, seed=1))


# MI-FGSM and momentum


def slow_momentum(model, x, y, *, norm, eps, step_size, steps, momentum):
    """One image at a time, numpy and float64, as it is defined."""
    rows = []
    for image, label in zip(x, y, strict=True):
        clean = image.numpy()
        now, m = clean.copy(), np.zeros_like(clean)
        for _ in range(steps):
            leaf = torch.from_numpy(now)[None].requires_grad_()
            nn.functional.cross_entropy(model(leaf), label[None], reduction="sum").backward()
            g = leaf.grad[0].numpy()
            m = momentum * m + g / np.abs(g).sum()
            if norm == "linf":
                now = np.clip(np.clip(now + step_size * np.sign(m), clean - eps, clean + eps), 0, 1)
            else:
                delta = now + step_size * m / np.sqrt((m**2).sum()) - clean
                now = np.clip(clean + delta * min(1.0, eps / np.sqrt((delta**2).sum())), 0, 1)
        rows.append(torch.from_numpy(now))
    return torch.stack(rows)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.9)])
@pytest.mark.parametrize("momentum", [1.0, 0.5])
def test_mi_fgsm_agrees_with_a_slow_loop(norm, eps, momentum, net, pictures):
    model, x = net().double(), pictures(4, dtype=torch.float64)
    y = predict(model, x)
    out = MIFGSM(norm=norm, eps=eps, steps=8, momentum=momentum)(model, x, y)
    slow = slow_momentum(model, x, y, norm=norm, eps=eps, step_size=eps / 8, steps=8, momentum=momentum)
    torch.testing.assert_close(out, slow, rtol=0, atol=1e-12)
    assert not torch.allclose(out, MIFGSM(norm=norm, eps=eps, steps=8, momentum=0)(model, x, y), atol=1e-3)


def test_mi_fgsm_without_momentum_is_bim(net, pictures):
    model, x = net(), pictures(6)
    y = predict(model, x)
    out = MIFGSM(eps=0.05, momentum=0, steps=7)(model, x, y)
    assert torch.equal(out, BIM(eps=0.05, step_size=0.05 / 7, steps=7)(model, x, y))
    assert torch.equal(MIFGSM(eps=0.05, steps=1)(model, x, y), FGSM(eps=0.05)(model, x, y))
    pgd = PGD(eps=0.05, step_size=0.02, steps=6, random_start=False, momentum=0.7)
    assert torch.equal(pgd(model, x, y), MIFGSM(eps=0.05, step_size=0.02, steps=6, momentum=0.7)(model, x, y))
    result = MIFGSM().run(model, x, y)
    assert result.forwards.tolist() == result.backwards.tolist() == [10] * 6


def test_momentum_of_rows_that_stay_is_kept_when_others_leave(net, pictures):
    model, x = net().double(), pictures(24, dtype=torch.float64)
    y = predict(model, x)
    fields = {"eps": 0.03, "step_size": 0.004, "random_start": False, "momentum": 0.9}
    stopping = PGD(**fields, steps=8, stop_at_success=True).run(model, x, y)
    expected, done = x.clone(), torch.zeros(24, dtype=torch.bool)
    for step in range(1, 9):
        iterate = PGD(**fields, steps=step)(model, x, y)
        expected = torch.where(done.view(-1, 1, 1, 1), expected, iterate)
        done |= predict(model, iterate) != y
    torch.testing.assert_close(stopping.images, expected, rtol=0, atol=1e-12)
    assert len(set(stopping.iterations.tolist())) > 2


# ILLC


def test_illc_descends_to_the_class_least_likely_at_first(net, pictures):
    model, x = net().double(), pictures(8, dtype=torch.float64)
    y = predict(model, x)
    with torch.no_grad():
        unlikely = model(x).argmin(1)
    result = ILLC(eps=12 / 255).run(model, x, y)
    targeted = BIM(eps=12 / 255).run(model, x, y, targets=unlikely)
    torch.testing.assert_close(result.images, targeted.images, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert not torch.equal(model(result.images).argmin(1), unlikely)  # asked again, it would be another class
    assert result.iterations.tolist() == result.backwards.tolist() == [15] * 8
    assert result.forwards.tolist() == [16] * 8
    assert torch.equal(result.success, predict(model, result.images) != y)
    given = ILLC(eps=12 / 255).run(model, x, y, targets=(y + 1) % 4)
    assert torch.equal(given.images, BIM(eps=12 / 255)(model, x, y, targets=(y + 1) % 4))
    assert given.forwards.tolist() == [15] * 8


@quick
@given(seed=seeds, classes=st.integers(2, 5))
def test_illc_lowers_its_loss_with_every_step_on_a_linear_model(linear, seed, classes):
    model, x, y = linear(seed, classes)
    with torch.no_grad():
        unlikely = model(x).argmin(1)
    before = nn.functional.cross_entropy(model(x), unlikely, reduction="none")
    for steps in range(1, 6):
        out = ILLC(eps=0.1, step_size=1e-3, steps=steps)(model, x, y)
        now = nn.functional.cross_entropy(model(out), unlikely, reduction="none")
        assert bool((now < before).all())
        before = now


# PGD in the l1 and l0 balls, against the best points of ball and box on a linear model


def best_l1(x, slope, eps):
    """The largest slope first, each element to the end of the box, until the budget is spent."""
    rows = []
    for clean, w in zip(x.flatten(1), slope.flatten(1), strict=True):
        point, left = clean.clone(), eps
        for element in w.abs().argsort(descending=True).tolist():
            room = float(clean[element] if w[element] > 0 else 1 - clean[element])
            step = min(room, left)
            point[element] -= step * float(w[element].sign())
            left -= step
        rows.append(point)
    return torch.stack(rows).view_as(x)


def best_l0(x, slope, count):
    """Whole pixels, to the end of the box, where that gives most."""
    ends = torch.where(slope > 0, 0.0, 1.0)
    gain = ((x - ends) * slope).sum(1).flatten(1)
    chosen = torch.zeros_like(gain).scatter(1, gain.topk(count, dim=1).indices, 1).view(len(x), 1, *x.shape[2:])
    return torch.where(chosen > 0, ends, x)


@pytest.mark.parametrize(
    # a step of l1 goes to three elements, here, however small the ball is
    ("norm", "eps", "step_size", "share"),
    [("l1", 5.0, 1.0, 0.97), ("l1", 0.6, 0.2, 0.9), ("l0", 7, 300.0, 0.93)],
)
@pytest.mark.parametrize("random_start", [False, True])
def test_sparse_pgd_finds_the_best_point_on_a_linear_model(norm, eps, step_size, share, random_start, linear):
    model, x, y = linear(2, channels=3, height=10, width=10, count=16)
    x = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)).clamp(0, 1)
    slope = two_class(model)[0].detach().view(1, 3, 10, 10) * (2 * y - 1).view(-1, 1, 1, 1)  # of the label's margin
    best = best_l1(x, slope, eps) if norm == "l1" else best_l0(x, slope, eps)
    attack = PGD(norm=norm, eps=eps, step_size=step_size, steps=60, random_start=random_start)
    out = attack(model, x, y, seed=3)
    gained = (margin(model, x, y) - margin(model, out, y)) / (margin(model, x, y) - margin(model, best, y))
    assert float(gained.max()) <= 1 + 1e-9
    assert float(gained.min()) > share
    size = (out - x).abs().sum((1, 2, 3)) if norm == "l1" else (out != x).any(1).sum((1, 2)).to(x)
    assert float(size.max()) <= eps * (1 + 1e-12)
    assert float(size.min()) > 0.99 * eps


@pytest.mark.parametrize(("norm", "eps", "step_size"), [("l1", 8.0, 2.0), ("l0", 10, 100.0)])
@pytest.mark.parametrize("targeted", [False, True])
def test_sparse_pgd_fools(norm, eps, step_size, targeted, net, pictures):
    model, x = net(), pictures(40)
    y = predict(model, x)
    targets = (y + 1) % 4 if targeted else None
    shares = []
    for share in (0, 0.2, 1):
        attack = PGD(norm=norm, eps=round(share * eps), step_size=step_size, steps=20)
        shares.append(float(attack.run(model, x, y, targets=targets, seed=1).success.double().mean()))
    assert shares[0] == 0
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > (0.6 if targeted else 0.9)
    region = Mask((torch.arange(64).view(8, 8) % 2).float())
    result = PGD(norm=norm, eps=eps, step_size=step_size, steps=20).run(model, x, y, region=region, seed=1)
    assert float(result.norms[norm].max()) <= eps * (1 + 1e-6)
    assert float(result.success.double().mean()) > 0.5


def start(norm, eps, seed, count=400, mask=None, size=(3, 4, 4)):
    """Random starts around grey images, of which no step leads away."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(size), 2))
    x = torch.full((count, *size), 0.5)
    attack = PGD(norm=norm, eps=eps, steps=1, step_size=0.0)
    region = None if mask is None else Mask(mask)
    return attack(model, x, torch.zeros(count, dtype=torch.int64), seed=torch.arange(count) + seed, region=region) - x


def test_random_start_is_uniform_in_the_linf_ball():
    delta = start("linf", 0.25, 0).double()
    assert float(delta.abs().max()) <= 0.25
    assert kstest(delta.flatten().numpy() / 0.5 + 0.5, "uniform").pvalue > 0.01
    assert float(delta.mean().abs()) < 4 * 0.25 / math.sqrt(3 * delta.numel())
    corners = delta.flatten(1)
    correlation = torch.corrcoef(corners.T) - torch.eye(corners.shape[1])
    assert float(correlation.abs().max()) < 5 / math.sqrt(len(delta))


@pytest.mark.parametrize("masked", [False, True])
def test_random_start_is_uniform_in_the_l2_ball(masked):
    mask = torch.zeros(4, 4)
    mask[0, :2] = 1
    delta = start("l2", 0.4, 7, mask=mask if masked else None).double().flatten(1)
    dimensions = 6 if masked else 48
    radius = delta.norm(dim=1)
    assert float(radius.max()) <= 0.4 + 1e-6
    assert kstest((radius / 0.4).pow(dimensions).numpy(), "uniform").pvalue > 0.01
    assert int((delta != 0).any(0).sum()) == dimensions
    direction = delta[:, (delta != 0).any(0)] / radius[:, None]
    assert float(direction.mean(0).abs().max()) < 5 / math.sqrt(dimensions * len(delta))
    torch.testing.assert_close(
        direction.square().mean(0), torch.full((dimensions,), 1 / dimensions, dtype=torch.float64), rtol=0.5, atol=0
    )


def test_fgsm_leaves_pixels_without_a_gradient(pictures):
    class Half(nn.Module):
        def forward(self, x):
            return x[:, :, :4].flatten(1)[:, :3]

    x = pictures(2, 1, low=0.2, high=0.8)
    out = FGSM(eps=0.1)(Half(), x, torch.tensor([0, 1]))
    changed = (out != x).flatten(1)
    assert changed[:, :3].all()
    assert not changed[:, 3:].any()


def test_a_region_gets_the_whole_l2_budget(net, pictures):
    model, x = net().double(), pictures(4, low=0.3, high=0.7, dtype=torch.float64)
    y = predict(model, x)
    out = FGM(eps=0.2)(model, x, y, region=RandomPixels(0.3), seed=1)
    torch.testing.assert_close((out - x).flatten(1).norm(dim=1), torch.full((4,), 0.2, dtype=torch.float64))


def test_objectives_that_need_more_classes_say_so(net, pictures):
    model, x = net(3, 2), pictures(2)
    with pytest.raises(ValueError, match="dlr needs at least 3 classes, the model has 2"):
        PGD(objective="dlr")(model, x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="dlr needs at least 4 classes"):
        PGD(objective="dlr")(net(3, 3), x, torch.tensor([0, 1]), targets=torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(eps=8), r"PGD: eps must be in \[0, 1\] for linf, got 8.*did you mean 8/255"),
        (lambda: PGD(eps=-0.1), "PGD: eps must be"),
        (lambda: PGD(eps=math.nan), "PGD: eps must be"),
        (lambda: PGD(eps="8/255"), "PGD: eps must be a number.*Radius"),
        (lambda: PGD(norm="l2", eps=-1), "PGD: eps must be at least 0"),
        (lambda: PGD(norm="l2", eps=math.inf), "PGD: eps must be at least 0 and finite"),
        (lambda: PGD(norm="l7"), "PGD: norm must be one of linf, l2, l1, l0, got 'l7'"),
        (lambda: PGD(steps=0), "PGD: steps must be at least 1, got 0"),
        (lambda: PGD(step_size=-1), "PGD: step_size must be"),
        (lambda: PGD(step_size=math.nan), "PGD: step_size must be"),
        (lambda: PGD(restarts=0), "PGD: restarts must be at least 1"),
        (lambda: PGD(objective="cw"), "PGD: objective must be one of ce, .*got 'cw'"),
        (lambda: FGSM(eps=2), "FGSM: eps must be"),
        (lambda: FGM(eps=-2), "FGM: eps must be"),
        (lambda: BIM(eps=4), "BIM: eps must be"),
        (lambda: BIM(steps=0), "BIM: steps must be"),
        (lambda: PGD(momentum=-1), "PGD: momentum must be at least 0, got -1"),
        (lambda: PGD(norm="l0", eps=-1), "PGD: eps must be at least 0"),
        (lambda: FGVM(norm="l1"), "FGVM: norm must be one of l2, linf, raw, got 'l1'"),
        (lambda: FGVM(norm="linf", eps=2), r"FGVM: eps must be in \[0, 1\] for linf"),
        (lambda: FGVM(norm="raw", eps=-2), "FGVM: eps must be at least 0"),
        (lambda: FGVM(objective="cw"), "FGVM: objective must be one of"),
        (lambda: RandFGSM(eps=0.1, alpha=0.2), r"RandFGSM: alpha must be in \[0, eps\] = \[0, 0.1\], got 0.2"),
        (lambda: RandFGSM(alpha=-0.1), "RandFGSM: alpha must be in"),
        (lambda: RandFGSM(eps=4), "RandFGSM: eps must be"),
        (lambda: MIFGSM(norm="l1"), "MIFGSM: norm must be one of linf, l2, got 'l1'"),
        (lambda: MIFGSM(steps=0), "MIFGSM: steps must be at least 1"),
        (lambda: MIFGSM(momentum=math.nan), "MIFGSM: momentum must be"),
        (lambda: ILLC(steps=0), "ILLC: steps must be"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
