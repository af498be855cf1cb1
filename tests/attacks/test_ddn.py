"""DDN against a loop over single images and the known distance on linear models."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.attacks import DDN, Mask

few = settings(max_examples=6)
seeds = st.integers(0, 10**6)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


@few
@given(seed=seeds)
def test_finds_the_nearest_image_and_nothing_nearer(linear, seed):
    model, x, y = linear(seed, margin=0.6)
    w = model.weight[1] - model.weight[0]
    known = ((x.flatten(1) @ w + model.bias[1] - model.bias[0]).abs() / w.norm()).detach()
    result = DDN(steps=200).run(model, x, y)
    assert bool(result.success.all())
    assert bool((result.norms["l2"] >= known - 1e-12).all())
    assert bool((result.norms["l2"] <= 1.02 * known + 1e-4).all()), (result.norms["l2"] / known).tolist()


def slow(model, image, label, *, steps, start, gamma, step_size, target):
    """Algorithm 1 for one image."""
    x, length, best, nearest = image.clone(), start, None, math.inf
    for k in range(steps):
        leaf = x.clone().requires_grad_()
        logits = model(leaf[None])[0]
        hit = int(logits.argmax()) != label if target is None else int(logits.argmax()) == target
        size = float((x - image).norm())
        if hit and size < nearest:
            best, nearest = x, size
        loss = logits.log_softmax(0)[label] if target is None else -logits.log_softmax(0)[target]
        (g,) = torch.autograd.grad(loss, leaf)
        alpha = step_size * (0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2)
        moved = x - image - alpha * g / g.norm()
        length *= 1 - gamma if hit else 1 + gamma
        x = (image + length * moved / moved.norm()).clamp(0, 1)
    return image if best is None else best


@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_a_loop_over_single_images(targeted, smooth, pictures):
    x = pictures(4, 1, 6, 6, dtype=torch.float64, seed=2)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    y = predict(smooth, x)
    targets = (y + 1) % 4 if targeted else None
    fields = {"steps": 30, "start": 0.7, "gamma": 0.1, "step_size": 0.8}
    result = DDN(**fields).run(smooth, x, y, targets=targets)
    assert int(result.success.sum()) >= 3
    for i in range(4):
        expected = slow(smooth, x[i], int(y[i]), **fields, target=int(targets[i]) if targeted else None)
        torch.testing.assert_close(result.images[i], expected, rtol=0, atol=1e-9)


def test_passes_and_failures(smooth, pictures):
    x = pictures(3, 1, 6, 6, dtype=torch.float64)
    y = predict(smooth, x)
    result = DDN(steps=20).run(smooth, x, y)
    assert result.forwards.tolist() == [20] * 3
    assert result.backwards.tolist() == result.iterations.tolist() == [19] * 3
    mask = torch.zeros(6, 6)
    mask[0, 0] = 1
    held = DDN(steps=5).run(smooth, x, y, region=Mask(mask))
    assert not bool(held.success.any())
    assert torch.equal(held.images, x)


def test_two_steps_look_at_the_image_and_at_one_step_from_it(linear):
    """The step has the length ``start (1 + gamma)`` along the gradient, whatever the step size is."""
    model, x, y = linear(3)
    w = (model.weight[1] - model.weight[0]).detach()
    toward = torch.where(y == 0, 1.0, -1.0)[:, None] * w / w.norm()
    known = ((x.flatten(1) @ w + model.bias[1] - model.bias[0]).abs() / w.norm()).detach()
    start = float(known.max())
    for step_size in (0.3, 3.0):
        result = DDN(steps=2, start=start, gamma=0.05, step_size=step_size).run(model, x, y)
        expected = (x.flatten(1) + 1.05 * start * toward).view_as(x)
        torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-12)


def test_black_and_white_pixels_move(smooth):
    x = (torch.arange(4 * 36).view(4, 1, 6, 6) * 7 % 11 > 4).double()
    result = DDN(steps=60).run(smooth, x, predict(smooth, x))
    assert bool(result.success.all())
    assert bool(((result.images - x).abs() > 1 / 512).flatten(1).any(1).all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 1}, "DDN: steps must be at least 2"),
        ({"gamma": 0}, "DDN: gamma must be between 0 and 1"),
        ({"gamma": 1}, "DDN: gamma must be"),
        ({"start": 0}, "DDN: start must be greater than 0"),
        ({"step_size": math.inf}, "DDN: step_size must be"),
        ({"objective": "f9"}, "DDN: objective must be one of"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DDN(**fields)
