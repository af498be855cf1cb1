"""DeepFool against closed forms on linear models and a loop over single images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import DeepFool, Mask

quick = settings(max_examples=15)
seeds = st.integers(0, 10**6)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def distances(model, x, y, order):
    """To every other class's boundary in the norm whose dual is ``order``, ``(B, K)``, infinite at the label."""
    with torch.no_grad():
        logits = model(x)
        gaps = (logits - logits.gather(1, y[:, None])).abs()
        slopes = torch.linalg.vector_norm(model.weight[None] - model.weight[y][:, None], ord=order, dim=2)
        return (gaps / slopes).scatter(1, y[:, None], math.inf)


@quick
@given(seed=seeds, overshoot=st.sampled_from([0.0, 0.02, 0.5]))
def test_two_classes_take_one_step_of_known_length(linear, seed, overshoot):
    model, x, y = linear(seed)
    w = model.weight[1] - model.weight[0]
    f = x.flatten(1) @ w + model.bias[1] - model.bias[0]
    result = DeepFool(steps=1, overshoot=overshoot).run(model, x, y)
    r = -(f / w.square().sum())[:, None] * w
    expected = x + (1 + overshoot) * r.view_as(x)
    if overshoot:
        torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-12)
        assert bool(result.success.all())
    assert bool((result.iterations == 1).all())


@quick
@given(seed=seeds)
def test_linf_takes_one_step_of_known_length(linear, seed):
    model, x, y = linear(seed)
    w = model.weight[1] - model.weight[0]
    f = x.flatten(1) @ w + model.bias[1] - model.bias[0]
    result = DeepFool(norm="linf", steps=1).run(model, x, y)
    r = -(f / w.abs().sum())[:, None] * w.sign()
    torch.testing.assert_close(result.images, x + 1.02 * r.view_as(x), rtol=0, atol=1e-12)
    assert bool(result.success.all())


@quick
@given(seed=seeds, classes=st.integers(3, 12), norm=st.sampled_from(["l2", "linf"]))
def test_distance_to_the_nearest_of_several_classes(linear, seed, classes, norm):
    model, x, y = linear(seed, classes=classes)
    nearest = distances(model, x, y, 2 if norm == "l2" else 1).amin(1)
    result = DeepFool(norm=norm, candidates=None).run(model, x, y)
    assert bool(result.success.all())
    assert bool((result.iterations == 1).all())
    torch.testing.assert_close(result.norms[norm], 1.02 * nearest, rtol=1e-9, atol=1e-15)


def slow_deepfool(model, image, label, *, norm, steps, overshoot, candidates, target=None):
    """Algorithm 2, one image, float64, a backward pass for every class."""
    clean = image[None]
    total = torch.zeros_like(clean)
    order = None
    now = clean
    for step in range(steps + 1):
        leaf = now.clone().requires_grad_()
        logits = model(leaf)[0]
        if order is None:
            order = [int(k) for k in logits.argsort(descending=True) if int(k) != label][: candidates - 1]
        if (logits.argmax() != label) if target is None else (logits.argmax() == target):
            return now[0], step
        if step == steps:
            return image, step
        best = None
        if target is None:
            pairs = [(logits[k] - logits[label]) for k in order]
        else:
            pairs = [logits[target] - max(value for k, value in enumerate(logits) if k != target)]
        for f in pairs:
            (w,) = torch.autograd.grad(f, leaf, retain_graph=True)
            length = w.norm() if norm == "l2" else w.abs().sum()
            distance = abs(f.item()) / length.item()
            if best is None or distance < best[0]:
                best = distance, (w / length if norm == "l2" else w.sign())
        size = float(total.norm() if norm == "l2" else total.abs().max())
        total = total + max(best[0], 1e-3 * size) * best[1]
        now = (clean + (1 + overshoot) * total).clamp(0, 1)
    raise AssertionError


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("low", [0.3, 0.0], ids=["inside", "box"])
def test_agrees_with_a_loop_over_single_images(norm, targeted, low, net, pictures):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 5)).double()
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.data = 0.4 * torch.randn(p.shape, dtype=torch.float64, generator=generator)
    x = pictures(6, low=low, high=1 - low, dtype=torch.float64)
    y = predict(model, x)
    targets = (y + 2) % 5 if targeted else None
    result = DeepFool(norm=norm, steps=15, candidates=4).run(model, x, y, targets=targets)
    for i in range(6):
        image, steps = slow_deepfool(
            model,
            x[i],
            int(y[i]),
            norm=norm,
            steps=15,
            overshoot=0.02,
            candidates=4,
            target=int(targets[i]) if targeted else None,
        )
        torch.testing.assert_close(result.images[i], image, rtol=0, atol=1e-6)
        assert int(result.iterations[i]) == steps
    assert int(result.success.sum()) >= 5
    assert int(result.iterations.max()) > 1


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_clipped_pixels_do_not_keep_it_from_crossing(norm, linear):
    """Half of the pixels cannot move, so that every step covers half of the way and never more."""
    model, x, y = linear(5, count=6, height=8, width=8, margin=1.0)
    w = model.weight.detach()
    outward = (w[1 - y] - w[y]).sign().view_as(x) > 0
    half = torch.arange(64).view(8, 8) % 2 == 0
    x = torch.where(half & outward, 1.0, torch.where(half, 0.0, x))
    with torch.no_grad():
        model.bias.add_(-model(x).mean(0))
    y = predict(model, x)
    result = DeepFool(norm=norm, steps=50).run(model, x, y)
    assert bool(result.success.all())
    assert int(result.iterations.max()) <= 25


def test_a_tie_is_crossed():
    class First(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2]

    x = torch.full((1, 1, 2, 2), 0.5)
    for norm in ("l2", "linf"):
        result = DeepFool(norm=norm).run(First(), x, torch.tensor([0]))
        assert bool(result.success.all())
        assert float(result.norms[norm]) < 1e-3


def test_bfloat16_model_and_images(pictures):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=generator)
    model = model.bfloat16()
    x = pictures(32, low=0.1, high=0.9, dtype=torch.bfloat16)
    assert float(DeepFool().run(model, x, predict(model, x)).success.double().mean()) > 0.9


def test_all_candidates_is_none(net, pictures):
    model, x = net(3, 6).double(), pictures(6, dtype=torch.float64)
    y = predict(model, x)
    every = DeepFool(candidates=None).run(model, x, y)
    assert torch.equal(every.images, DeepFool(candidates=6)(model, x, y))
    assert torch.equal(every.images, DeepFool(candidates=100)(model, x, y))
    two = DeepFool(candidates=2).run(model, x, y)
    assert bool((two.backwards == two.iterations).all())
    assert bool((every.backwards == 5 * every.iterations).all())
    # fewer boundaries to choose from, so no nearer one in the first step
    assert float(two.norms["l2"].mean()) >= float(every.norms["l2"].mean()) - 1e-3


def test_pass_counts(linear):
    model, x, y = linear(0, classes=4, count=5)
    result = DeepFool(steps=7).run(model, x, y)
    assert result.iterations.tolist() == [1] * 5
    assert result.forwards.tolist() == [3] * 5  # who is done is asked without a graph
    assert result.backwards.tolist() == [3] * 5
    y[0] = (y[0] + 1) % 4
    result = DeepFool(steps=7).run(model, x, y)
    assert int(result.iterations[0]) == int(result.backwards[0]) == 0
    assert int(result.forwards[0]) == 1
    assert result.forwards[1:].tolist() == [3] * 4


def test_failures_come_back_clean(net, pictures):
    model, x = net(), pictures(6)
    y = predict(model, x)
    result = DeepFool(steps=30).run(model, x, y, region=Mask(torch.eye(8)[:1].expand(8, 8) * 0))
    assert torch.equal(result.images, x)
    assert not bool(result.success.any())
    short = DeepFool(steps=1, overshoot=0).run(nn.Sequential(model, nn.Softplus()), x, y)
    assert not bool(short.success.all())
    assert torch.equal(short.images[~short.success], x[~short.success])


def test_stays_inside_a_region_and_still_succeeds(net, pictures):
    model, x = net(), pictures(6)
    y = predict(model, x)
    mask = (torch.arange(64).view(8, 8) % 2).float()
    result = DeepFool().run(model, x, y, region=Mask(mask))
    assert bool(result.success.all())
    assert not bool(((result.images != x).any(1) & (mask == 0)).any())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "l1"}, "DeepFool: norm must be"),
        ({"steps": 0}, "DeepFool: steps must be at least 1, got 0"),
        ({"overshoot": -0.1}, "DeepFool: overshoot must be at least 0"),
        ({"overshoot": np.inf}, "DeepFool: overshoot must be"),
        ({"candidates": 1}, "DeepFool: candidates must be at least 2"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DeepFool(**fields)
