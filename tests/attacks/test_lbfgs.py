"""L-BFGS against scipy's, image by image, and the known distance on linear models."""

import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from lit_adv.attacks import LBFGS, Mask

few = settings(max_examples=4, phases=[Phase.generate])
seeds = st.integers(0, 10**6)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


class Recording(nn.Module):
    """Keeps what went through the model: (logits, images) of every pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, x):
        logits = self.inner(x)
        self.seen.append((logits.detach(), x.detach()))
        return logits


def cost(logits, x, image, goal, c, targeted):
    chance = logits.softmax(1)
    chance = chance[:, goal] if targeted else chance.sum(1) - chance[:, goal]
    return (x - image).square().sum((1, 2, 3)) - c * chance.log()


def reference(model, image, goal, c, targeted, steps=100):
    """scipy's minimum from the clean image: value and point."""

    def value_and_slope(flat):
        x = torch.from_numpy(flat).view(1, *image.shape).requires_grad_()
        value = cost(model(x), x, image, goal, c, targeted).sum()
        (slope,) = torch.autograd.grad(value, x)
        return value.item(), slope.numpy().ravel()

    start = image.numpy().ravel()
    found = minimize(
        value_and_slope, start, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * start.size, options={"maxiter": steps}
    )
    return found.fun, torch.from_numpy(found.x).view(1, *image.shape)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("c", [0.05, 2.0])
def test_the_minimum_is_scipys(c, targeted, smooth, pictures):
    counts = []
    for i, image in enumerate(pictures(4, 1, 6, 6, dtype=torch.float64, seed=2)):
        if i == 0:
            image[0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
        goal = int(predict(smooth, image[None]))
        if targeted:
            goal = (goal + 1) % 4
        expected, _ = reference(smooth, image, goal, c, targeted)
        model = Recording(smooth)
        LBFGS(c=c, search_steps=0).run(
            model,
            image[None],
            torch.tensor([goal]),
            targets=torch.tensor([goal]) if targeted else None,
        )
        values = [float(cost(logits, x, image, goal, c, targeted)) for logits, x in model.seen[:-1]]
        assert min(values) <= expected * (1 + 1e-5)
        counts.append(len(values))
    assert max(counts) <= (10 if c < 1 else 20), counts  # a step an evaluation, nearly


def search(model, image, label, target):
    """Outer search with scipy inside: distance of the nearest minimum that succeeds."""
    low, high, c, nearest = 0.0, math.inf, 1e-2, math.inf
    goal = label if target is None else target
    for _ in range(9):
        _, x = reference(model, image, goal, c, target is not None)
        prediction = int(predict(model, x))
        if prediction != label if target is None else prediction == target:
            high, nearest = min(high, c), min(nearest, float((x - image).norm()))
        else:
            low = max(low, c)
        c = (low + high) / 2 if high < math.inf else c * 10
    return nearest


@pytest.mark.parametrize("targeted", [False, True])
def test_the_search_is_as_good_as_one_around_scipy(targeted, smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64, seed=3)
    y = predict(smooth, x)
    targets = (y + 1) % 4 if targeted else None
    result = LBFGS().run(smooth, x, y, targets=targets)
    for i in range(4):
        theirs = search(smooth, x[i], int(y[i]), int(targets[i]) if targeted else None)
        assert bool(result.success[i]) == (theirs < math.inf)
        if theirs < math.inf:
            assert float(result.norms["l2"][i]) <= 1.02 * theirs
    assert int(result.success.sum()) >= 3


@few
@given(seed=seeds)
def test_finds_the_nearest_image_and_nothing_nearer(linear, seed):
    model, x, y = linear(seed, margin=0.6)
    w = model.weight[1] - model.weight[0]
    known = ((x.flatten(1) @ w + model.bias[1] - model.bias[0]).abs() / w.norm()).detach()
    result = LBFGS(search_steps=20).run(model, x, y)
    assert bool(result.success.all())
    assert bool((result.norms["l2"] >= known - 1e-12).all())
    assert bool((result.norms["l2"] <= 1.02 * known + 1e-6).all()), (result.norms["l2"] / known).tolist()


def test_two_classes_untargeted_is_targeted_at_the_other(linear):
    model, x, y = linear(7)
    torch.testing.assert_close(LBFGS()(model, x, y), LBFGS()(model, x, y, targets=1 - y), rtol=0, atol=1e-9)


def test_each_image_has_its_own_search(smooth, pictures):
    x = pictures(5, 1, 6, 6, dtype=torch.float64, seed=5)
    y = predict(smooth, x)
    y[2] = (y[2] + 1) % 4
    together = LBFGS().run(smooth, x, y)
    for i in range(5):
        alone = LBFGS().run(smooth, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(alone.images, together.images[i : i + 1], rtol=0, atol=1e-9)
        assert int(alone.forwards) == int(together.forwards[i])
    assert len(set(together.iterations.tolist())) > 1
    # an evaluation is a forward and a backward pass, and the clean image is evaluated once
    assert torch.equal(together.forwards, together.backwards)
    assert torch.equal(together.forwards, together.iterations + 1)


def test_passes_are_limited(smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64, seed=5)
    result = LBFGS(steps=3, search_steps=4).run(smooth, x, predict(smooth, x))
    assert int(result.forwards.max()) <= 13


def test_failures_come_back_clean(smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64)
    y = predict(smooth, x)
    mask = torch.zeros(6, 6)
    mask[0, 0] = 1
    result = LBFGS(search_steps=5).run(smooth, x, y, region=Mask(mask))
    assert not bool(result.success.any())
    assert torch.equal(result.images, x)


def test_black_and_white_pixels_move_and_those_that_cannot_stay(smooth):
    x = (torch.arange(4 * 36).view(4, 1, 6, 6) * 7 % 11 > 4).double()
    result = LBFGS().run(smooth, x, predict(smooth, x))
    assert bool(result.success.all())
    moved = (result.images - x).abs()
    assert bool((moved > 1 / 512).flatten(1).any(1).all())
    assert bool((moved == 0).flatten(1).any(1).all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"c": 0}, "LBFGS: c must be greater than 0"),
        ({"c": np.nan}, "LBFGS: c must be"),
        ({"steps": 0}, "LBFGS: steps must be at least 1"),
        ({"search_steps": -1}, "LBFGS: search_steps must be"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LBFGS(**fields)
