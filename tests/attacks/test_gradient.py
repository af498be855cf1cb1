"""FGSM, FGM, BIM and PGD against closed forms on linear models and a slow loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn

from lit_adv.attacks import BIM, FGM, FGSM, PGD, Mask, RandomPixels
from lit_adv.attacks.gradient import iteration_rule

quick = settings(max_examples=15, deadline=None, derandomize=True)
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
    """One image at a time, numpy and float64, as in the card."""
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
    assert several.forwards.tolist() == [6 * 3] * 40
    assert several.backwards.tolist() == several.iterations.tolist() == [6 * 2] * 40


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
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
