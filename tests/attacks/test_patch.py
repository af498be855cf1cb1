"""Patches: where they lie, what they change, which iterate is kept, what is learned."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import nn

from lit_adv.attacks import AdversarialPatch, BoundedPatch, Center, LaVAN, Mask, RandomPixels


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


# LaVAN


@pytest.mark.parametrize("targeted", [False, True])
def test_lavan_agrees_with_a_slow_loop(targeted, net, pictures):
    model, x = net().double(), pictures(6, dtype=torch.float64)
    y = predict(model, x)
    t = (y + 1) % 4
    result = LaVAN(size=5, steps=9, step_size=0.07).run(model, x, y, targets=t if targeted else None, seed=2)
    for i in range(6):
        box = boxes((result.images[i : i + 1] != x[i : i + 1]).any(1))[0].tolist()
        mask = np.zeros((8, 8))
        mask[box[0] : box[0] + 5, box[1] : box[1] + 5] = 1
        now, best = x[i].numpy(), (math.inf, None)
        for step in range(10):
            leaf = torch.from_numpy(now)[None].requires_grad_()
            z = model(leaf)[0]
            loss = z[y[i]] - (z[t[i]] if targeted else max(z[k] for k in range(4) if k != y[i]))
            (g,) = torch.autograd.grad(loss, leaf)
            if loss.item() < best[0]:
                best = loss.item(), now
            if step < 9:
                now = np.clip(now - 0.07 * mask * np.sign(g[0].numpy()), 0, 1)
        torch.testing.assert_close(result.images[i], torch.from_numpy(best[1]), rtol=0, atol=1e-12)
    assert result.iterations.tolist() == result.backwards.tolist() == [9] * 6
    assert result.forwards.tolist() == [11 if targeted else 10] * 6


def test_lavan_still_works_for_a_target_that_is_predicted_already(net, pictures):
    model, x = net(), pictures(6)
    y = predict(model, x)
    out = LaVAN(size=5, steps=5)(model, x, y, targets=y, seed=2)
    with torch.no_grad():
        assert bool((model(out).log_softmax(1) > model(x).log_softmax(1)).gather(1, y[:, None]).all())


def test_lavan_has_no_bound(linear):
    model, x, y = linear(3, height=6, width=6)
    w = (model.weight[1] - model.weight[0]).detach().view(1, 1, 6, 6) * (1 - 2 * y.view(-1, 1, 1, 1))
    for random_start in (False, True):
        out = LaVAN(size=3, step_size=0.2, steps=6, random_start=random_start)(model, x, y, seed=1)
        changed = out != x
        assert changed.flatten(1).sum(1).tolist() == [9] * 4
        assert torch.equal(out[changed], (w > 0).to(x)[changed])
        assert bool((boxes(changed[:, 0])[:, 2:] - boxes(changed[:, 0])[:, :2] == 2).all())


def test_lavan_starts_from_random_pixels_of_the_patch_only():
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 2))
    x = torch.full((50, 1, 20, 20), 0.5)
    attack = LaVAN(size=8, steps=1, step_size=0.0, random_start=True)
    out = attack(model, x, torch.zeros(50, dtype=torch.int64), seed=torch.arange(50))
    assert int((out != x).flatten(1).sum(1).max()) <= 64
    assert kstest(out[out != x].numpy(), "uniform").pvalue > 0.01


def test_lavan_fools_with_a_small_square(net, pictures):
    model, x = net(), pictures(40)
    y = predict(model, x)
    shares = [float(LaVAN(size=n, steps=30).run(model, x, y, seed=1).success.double().mean()) for n in (1, 3)]
    assert shares[0] < shares[1]
    assert shares[1] > 0.9
    bounded = BoundedPatch(size=3, eps=8 / 255, steps=30).run(model, x, y, seed=1)
    assert float(bounded.success.double().mean()) < shares[1]


# the universal patch


class Given:
    """Draws that give what the test wants."""

    def __init__(self, *values):
        self.values = torch.tensor(values, dtype=torch.float64).view(-1, 4, 1, 1)

    def uniform(self, shape, dtype):
        assert shape == (4, 1, 1)
        return self.values.to(dtype)


class Posed:
    def __init__(self, x, *values):
        self.x, self.draws = x, Given(*values)


def test_unturned_it_is_the_picture_itself():
    """On whole pixels, as large as the picture."""
    x, patch = torch.rand(3, 2, 7, 9), torch.rand(2, 4, 4)
    attack = AdversarialPatch(patch=patch, min_scale=4 / 7, max_scale=4 / 7, rotation=0, shape="square")
    out = attack._paste(Posed(x, (0, 0, 0.0, 0.0), (0, 0, 1, 1), (0, 0, 0.4, 1 / 3)), patch)
    for row, (top, left) in enumerate([(0, 0), (3, 5), (1, 2)]):
        expected = x[row].clone()
        expected[:, top : top + 4, left : left + 4] = patch
        torch.testing.assert_close(out[row], expected)
        assert torch.equal(out[row] == x[row], expected == x[row])


def test_turned_by_right_angles():
    x, patch = torch.rand(2, 1, 8, 8).double(), torch.rand(1, 4, 4).double()
    attack = AdversarialPatch(patch=patch, min_scale=0.5, max_scale=0.5, rotation=90, shape="square")
    for angle, turns in ((0.0, 1), (1.0, -1)):  # -90 and 90 degrees
        out = attack._paste(Posed(x, (0, angle, 0.5, 0.5), (0, angle, 1, 0)), patch)
        torch.testing.assert_close(out[0, :, 2:6, 2:6], patch.rot90(turns, (1, 2)))
        torch.testing.assert_close(out[1, :, 0:4, 4:8], patch.rot90(turns, (1, 2)))


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_agrees_with_a_loop_over_pixels(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 2, 9, 11, dtype=torch.float64, generator=generator)
    patch = torch.rand(2, 6, 6, dtype=torch.float64, generator=generator)
    draws = torch.rand(5, 4, dtype=torch.float64, generator=generator)
    attack = AdversarialPatch(patch=patch, min_scale=0.3, max_scale=0.7, rotation=60, shape=shape)
    out = attack._paste(Posed(x, *draws.tolist()), patch)
    for row in range(5):
        scale, angle, across, down = draws[row].tolist()
        half = (0.3 + 0.4 * scale) * 9 / 2
        angle = math.radians(60) * (2 * angle - 1)
        reach = half if shape == "circle" else half * (abs(math.cos(angle)) + abs(math.sin(angle)))
        center = reach + across * (11 - 2 * reach), reach + down * (9 - 2 * reach)
        shown = 0
        for i in range(9):
            for j in range(11):
                u, v = j + 0.5 - center[0], i + 0.5 - center[1]
                p = (math.cos(angle) * u + math.sin(angle) * v) / half
                q = (-math.sin(angle) * u + math.cos(angle) * v) / half
                if (p**2 + q**2 if shape == "circle" else max(abs(p), abs(q))) > 1:
                    assert torch.equal(out[row, :, i, j], x[row, :, i, j])
                    continue
                shown += 1
                a, b = min(max((p + 1) * 3 - 0.5, 0), 5), min(max((q + 1) * 3 - 0.5, 0), 5)
                left, top = min(int(a), 4), min(int(b), 4)
                a, b = a - left, b - top
                expected = (1 - b) * ((1 - a) * patch[:, top, left] + a * patch[:, top, left + 1]) + b * (
                    (1 - a) * patch[:, top + 1, left] + a * patch[:, top + 1, left + 1]
                )
                torch.testing.assert_close(out[row, :, i, j], expected)
        assert shown > 3


def test_is_differentiable_in_the_patch():
    x = torch.rand(3, 1, 6, 6).double()
    attack = AdversarialPatch(min_scale=0.5, max_scale=0.9)
    posed = Posed(x, (0.1, 0.2, 0.3, 0.4), (0.9, 0.9, 0.1, 0.5), (0.5, 0.1, 0.8, 0.2))
    patch = torch.rand(1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: attack._paste(posed, p), patch)


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_lies_wholly_inside_the_image_at_every_place_and_size(shape):
    x = torch.full((3000, 1, 20, 24), 0.5)
    attack = AdversarialPatch(patch=torch.ones(1, 5, 5), min_scale=0.3, max_scale=0.6, rotation=45, shape=shape)
    shown = attack(nn.Identity(), x, torch.zeros(3000, dtype=torch.int64), seed=torch.arange(3000))[:, 0] == 1
    area = shown.flatten(1).sum(1).double()
    side = 20 * (0.3 + 0.3 * torch.rand(20000, generator=torch.Generator().manual_seed(0))).double()
    whole = side**2 * (math.pi / 4 if shape == "circle" else 1)
    assert abs(float(area.mean() / whole.mean()) - 1) < 0.03  # nothing is cut off
    assert abs(float(area.std() / whole.std()) - 1) < 0.1
    box = boxes(shown).double()
    assert box[:, :2].amin(0).tolist() == [0, 0]
    assert box[:, 2:].amax(0).tolist() == [19, 23]
    center = (box[:, :2] + box[:, 2:]) / 2 - torch.tensor([9.5, 11.5])
    assert float(center.mean(0).abs().max()) < 0.3
    assert float(shown.any(0).double().mean()) > 0.95  # no circle reaches the corners


def test_where_it_lies_does_not_depend_on_the_batch(pictures):
    x, y = pictures(8), torch.zeros(8, dtype=torch.int64)
    attack = AdversarialPatch.example()
    together = attack(nn.Identity(), x, y, seed=3)
    assert torch.equal(torch.cat([attack(nn.Identity(), x[i : i + 1], y[:1], seed=3) for i in range(8)]), together)
    assert not torch.equal(attack(nn.Identity(), x, y, seed=4), together)
    outside = attack(nn.Identity(), x, y, seed=3, region=RandomPixels(0.5))
    changed = (outside != x).any(1)
    assert bool(changed.any())
    assert torch.equal(outside[changed[:, None].expand_as(x)], together[changed[:, None].expand_as(x)])


def batches(x, y, size=16):
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("targeted", [False, True])
def test_fit_finds_a_patch_that_fools_images_it_has_not_seen(targeted, net, pictures):
    model, x = net(), pictures(96)
    y = predict(model, x)
    target = 2 if targeted else None
    start = AdversarialPatch(size=6, min_scale=0.6, max_scale=0.8, passes=8)
    fitted = start.fit(model, batches(x[:64], y[:64]), target=target, seed=1)
    assert fitted.patch.shape == (3, 6, 6)
    assert float(fitted.patch.min()) >= 0
    assert float(fitted.patch.max()) <= 1
    assert not fitted.patch.requires_grad

    def success(patch):
        attack = AdversarialPatch(patch=patch, min_scale=0.6, max_scale=0.8)
        targets = torch.full((32,), 2) if targeted else None
        result = attack.run(model, x[64:], y[64:], targets=targets, seed=5)
        assert result.forwards.tolist() == result.backwards.tolist() == [0] * 32
        return float(result.success.double().mean())

    noise = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert success(fitted.patch) > 0.1 + max(success(noise), success(torch.full((3, 6, 6), 0.5)))


def test_fit_follows_the_gradient_of_the_expected_loss(net, pictures):
    """A first step of Adam has the learning rate's length, against the sign of the gradient."""
    model, x = net().double(), pictures(6, dtype=torch.float64)
    y = predict(model, x)
    start = torch.rand(3, 4, 4, dtype=torch.float64) * 0.5 + 0.25
    attack = AdversarialPatch(patch=start, passes=1, learning_rate=0.01, min_scale=0.8, max_scale=0.8, shape="square")
    # scale and place are given, so that only the angle is random
    still = dataclasses.replace(attack, rotation=0, min_scale=1, max_scale=1)
    fitted = still.fit(model, [(x, y)], seed=0)
    leaf = start.clone().requires_grad_()
    shown = nn.functional.interpolate(leaf[None], (8, 8), mode="bilinear", align_corners=False)
    nn.functional.cross_entropy(model(shown.expand(6, -1, -1, -1)), y, reduction="sum").backward()
    torch.testing.assert_close(fitted.patch, start + 0.01 * leaf.grad.sign(), rtol=0, atol=1e-7)
    targeted = still.fit(model, [(x, y)], target=1, seed=0)
    leaf.grad = None
    shown = nn.functional.interpolate(leaf[None], (8, 8), mode="bilinear", align_corners=False)
    nn.functional.cross_entropy(model(shown), torch.tensor([1])).backward()
    torch.testing.assert_close(targeted.patch, start - 0.01 * leaf.grad.sign(), rtol=0, atol=1e-7)


def test_fit_leaves_everything_as_it_was(net, pictures):
    model, x = net(), pictures(20)
    y = predict(model, x)
    model.train()
    model.bn.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags, random = [module.training for module in model.modules()], torch.get_rng_state()
    attack = AdversarialPatch(size=4, passes=2)
    with torch.inference_mode():
        fitted = attack.fit(model, iter(batches(x, y, 7)), seed=3)
    assert attack.patch is None
    assert not fitted.patch.is_inference()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert [p.grad is None for p in model.parameters()].count(False) == 1
    assert bool((model.head.weight.grad == 1).all())
    assert torch.equal(torch.get_rng_state(), random)
    # neither the train flags nor how the batches come matter
    again = attack.fit(model.eval(), batches(x, y, 7), seed=3)
    assert torch.equal(again.patch, fitted.patch)
    assert again.fingerprint() == fitted.fingerprint() != attack.fingerprint()
    assert not torch.equal(attack.fit(model, batches(x, y, 7), seed=4).patch, fitted.patch)
    more = dataclasses.replace(fitted, passes=1).fit(model, batches(x, y, 7))
    assert not torch.equal(more.patch, fitted.patch)


def test_fit_shows_an_image_at_another_place_in_every_pass(net, pictures):
    model, x = net(), pictures(5)
    seen = []
    model.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0] / 4 + 0.5))
    AdversarialPatch(size=4, passes=3).fit(model, [(x, torch.zeros(5, dtype=torch.int64))])
    places = [(shown - x).abs().amax(1) > 1e-3 for shown in seen]
    assert len(places) == 3
    assert all(bool((a != b).flatten(1).any(1).all()) for a, b in itertools.pairwise(places))


def test_fit_in_a_region(net, pictures):
    model, x = net(), pictures(10)
    y = predict(model, x)
    attack = AdversarialPatch(size=4, passes=1)
    nowhere = attack.fit(model, [(x, y)], region=Mask(torch.zeros(8, 8)))
    assert torch.equal(nowhere.patch, torch.full((3, 4, 4), 0.5))
    assert not torch.equal(attack.fit(model, [(x, y)], region=Center(4)).patch, nowhere.patch)


def test_what_fit_and_the_patch_refuse(net, pictures):
    model, x = net(), pictures(4)
    y = predict(model, x)
    attack = AdversarialPatch(size=4, passes=1)
    with pytest.raises(ValueError, match="AdversarialPatch: batches must hold at least one image, got none"):
        attack.fit(model, [])
    with pytest.raises(ValueError, match="AdversarialPatch: images must be in"):
        attack.fit(model, [(x * 255, y)])
    with pytest.raises(ValueError, match="AdversarialPatch: labels and targets must be classes 0 to 3"):
        attack.fit(model, [(x, y)], target=4)
    with pytest.raises(ValueError, match="AdversarialPatch: labels must be an int64 tensor"):
        attack.fit(model, [(x, y.float())])
    with pytest.raises(ValueError, match="AdversarialPatch: patch must be fitted first, got None"):
        attack(model, x, y)
    with pytest.raises(ValueError, match="patch must have the images' 3 channels or one, got 2"):
        AdversarialPatch(patch=torch.rand(2, 4, 4))(model, x, y)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": torch.rand(4, 4)}, "patch must be a floating-point tensor"),
        ({"patch": torch.ones(1, 4, 4, dtype=torch.int64)}, "patch must be a floating-point tensor.*int64"),
        ({"patch": [0.5]}, "patch must be a floating-point tensor"),
        ({"patch": torch.rand(3, 4, 5)}, "patch must be square"),
        ({"patch": torch.full((3, 4, 4), 2.0)}, r"patch must be in \[0, 1\]"),
        ({"patch": torch.full((3, 4, 4), math.nan)}, r"patch must be in \[0, 1\]"),
        ({"min_scale": 0.0}, "min_scale and max_scale must be"),
        ({"min_scale": 0.5, "max_scale": 0.4}, "min_scale and max_scale must be"),
        ({"max_scale": 1.5}, "min_scale and max_scale must be"),
        ({"rotation": 270}, "rotation must be"),
        ({"shape": "star"}, "shape must be circle or square, got 'star'"),
        ({"objective": "cw"}, "objective must be one of"),
        ({"size": 0}, "size must be at least 1"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"learning_rate": 0}, "learning_rate must be greater than 0"),
    ],
)
def test_bad_fields_of_the_universal_patch_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"AdversarialPatch: {message}"):
        AdversarialPatch(**fields)


def test_bad_fields_of_lavan_are_refused():
    for field, value in {"size": 1.5, "steps": 0, "step_size": -1}.items():
        with pytest.raises(ValueError, match=f"{field} must be"):
            LaVAN(**{field: value})
