"""The bounded patch: where it lies, what it changes, which iterate it keeps."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from lit_adv.attacks import BoundedPatch, Center, Mask


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def boxes(changed):
    """First and last changed row and column of each image, ``(B, 4)``."""
    rows, columns = changed.any(2).int(), changed.any(1).int()
    first = torch.stack([rows.argmax(1), columns.argmax(1)], 1)
    last = torch.stack(
        [rows.shape[1] - 1 - rows.flip(1).argmax(1), columns.shape[1] - 1 - columns.flip(1).argmax(1)], 1
    )
    return torch.cat([first, last], 1)


def places(count, size, height, width, seed=0):
    """Top-left corners, seen on grey images where every pixel of the patch changes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 2))
    x = torch.full((count, 1, height, width), 0.5)
    attack = BoundedPatch(size=size, eps=0.2, steps=1, step_size=0.0)
    out = attack(model, x, torch.zeros(count, dtype=torch.int64), seed=torch.arange(count) + seed)
    return boxes((out != x)[:, 0])


@pytest.mark.parametrize("targeted", [False, True])
def test_changes_at_most_its_square(targeted, net, pictures):
    model, x = net(), pictures(20, height=12, width=9)
    y = predict(model, x)
    out = BoundedPatch(size=4, eps=0.1, steps=5)(model, x, y, targets=(y + 1) % 4 if targeted else None)
    changed = (out != x).any(1)
    assert int(changed.flatten(1).sum(1).max()) <= 16
    assert int(changed.flatten(1).sum(1).min()) > 8
    box = boxes(changed)
    assert int((box[:, 2:] - box[:, :2]).max()) == 3
    assert float((out - x).abs().max()) <= 0.1 + 1.2e-7


def test_every_place_is_equally_likely():
    box = places(4000, 3, 12, 9)
    assert bool((box[:, 2:] - box[:, :2] == 2).all())
    count = torch.zeros(10, 7)
    count.index_put_((box[:, 0], box[:, 1]), torch.ones(len(box)), accumulate=True)
    assert int(count.min()) > 0  # the last row and column too
    assert chisquare(count.flatten().numpy()).pvalue > 0.01


def test_place_does_not_depend_on_the_batch():
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 2))
    x = torch.rand(8, 1, 10, 10, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    y = torch.zeros(8, dtype=torch.int64)
    attack = BoundedPatch(size=3, eps=0.2, steps=1, step_size=0.0)
    together = attack(model, x, y, seed=3)
    assert torch.equal(torch.cat([attack(model, x[i : i + 1], y[:1], seed=3) for i in range(8)]), together)
    assert torch.equal(attack(model, x.flip(0), y, seed=3).flip(0), together)
    assert len({tuple(box) for box in boxes((together != x)[:, 0]).tolist()}) > 4


@pytest.mark.parametrize(("size", "side"), [(1, 1), (8, 8), (0.5, 4), (1.0, 8)])
def test_sizes(size, side):
    box = places(20, size, 8, 8)
    assert bool((box[:, 2:] - box[:, :2] + 1 == side).all())


def test_a_share_of_each_side():
    box = places(20, 0.5, 12, 8)
    assert (box[:, 2] - box[:, 0] + 1).unique().tolist() == [6]
    assert (box[:, 3] - box[:, 1] + 1).unique().tolist() == [4]


def test_reaches_the_border_of_the_ball_on_a_linear_model(linear):
    model, x, y = linear(3, height=6, width=6)
    w = (model.weight[1] - model.weight[0]).detach().view(1, 1, 6, 6)
    out = BoundedPatch(size=3, eps=0.1, step_size=0.05, steps=10)(model, x, y, seed=1)
    changed = out != x
    assert changed.flatten(1).sum(1).tolist() == [9] * 4
    expected = x + 0.1 * w.sign() * (1 - 2 * y.view(-1, 1, 1, 1))
    torch.testing.assert_close(out[changed], expected[changed], rtol=0, atol=1e-12)


def test_keeps_the_iterate_with_the_lowest_loss(net, pictures):
    """Steps much too long make the loss go up and down."""
    model, x = net().double(), pictures(30, dtype=torch.float64)
    y = predict(model, x)
    keywords = {"size": 5, "eps": 0.5, "step_size": 0.5}

    def losses(steps):
        attack = BoundedPatch(**keywords, steps=steps)
        with torch.no_grad():
            return nn.functional.cross_entropy(model(attack(model, x, y, seed=1)), y, reduction="none")

    kept = torch.stack([losses(steps) for steps in range(1, 8)])
    assert bool((kept[1:] >= kept[:-1] - 1e-12).all())
    assert bool((kept[1:] > kept[:-1]).any())
    assert bool((kept[1:] == kept[:-1]).any())


def test_agrees_with_a_slow_loop(net, pictures):
    model, x = net().double(), pictures(4, dtype=torch.float64)
    y = predict(model, x)
    result = BoundedPatch(size=4, eps=0.2, step_size=0.06, steps=9, random_start=False).run(model, x, y, seed=2)
    for i in range(4):
        box = boxes((result.images[i : i + 1] != x[i : i + 1]).any(1))[0].tolist()
        mask = np.zeros((8, 8))
        mask[box[0] : box[0] + 4, box[1] : box[1] + 4] = 1
        delta, best = np.zeros((3, 8, 8)), (-math.inf, None)
        for step in range(10):
            now = np.clip(x[i].numpy() + mask * delta, 0, 1)
            leaf = torch.from_numpy(now)[None].requires_grad_()
            loss = nn.functional.cross_entropy(model(leaf), y[i : i + 1])
            (g,) = torch.autograd.grad(loss, leaf)
            if loss.item() > best[0]:
                best = loss.item(), now
            if step < 9:
                delta = np.clip(now - x[i].numpy() + 0.06 * np.sign(g[0].numpy()), -0.2, 0.2)
        torch.testing.assert_close(result.images[i], torch.from_numpy(best[1]), rtol=0, atol=1e-12)
    assert result.iterations.tolist() == result.backwards.tolist() == [9] * 4
    assert result.forwards.tolist() == [10] * 4


def test_a_region_restricts_the_patch(net, pictures):
    model, x = net(), pictures(20)
    y = predict(model, x)
    attack = BoundedPatch(size=5, eps=0.2, steps=2)
    free = (attack(model, x, y, seed=1) != x).any(1)
    out = attack(model, x, y, seed=1, region=Center(4))
    changed = (out != x).any(1)
    inside = Center(4)(x)[0, 0] > 0
    assert not bool((changed & ~inside).any())
    assert not bool((changed & ~free).any())
    assert bool(changed.any())
    assert torch.equal(attack(model, x, y, seed=1, region=Mask(torch.zeros(8, 8))), x)


def test_bad_fields_are_refused(net, pictures):
    for size in (-1, 1.5, math.nan):
        with pytest.raises(ValueError, match="size must be"):
            BoundedPatch(size=size)
    with pytest.raises(ValueError, match="BoundedPatch: eps must be"):
        BoundedPatch(eps=4)
    with pytest.raises(ValueError, match="BoundedPatch: steps must be"):
        BoundedPatch(steps=0)
    model, x = net(), pictures(2)
    with pytest.raises(ValueError, match="size must be at most the image's 8 pixels, got 9"):
        BoundedPatch(size=9)(model, x, predict(model, x))
