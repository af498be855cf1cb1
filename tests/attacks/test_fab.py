"""FAB against closed forms on linear models, cvxpy and a slow loop over single images."""

import math

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import FAB, DeepFool, Mask
from lit_adv.attacks.fab import to_plane
from lit_adv.attacks.norms import norm

quick = settings(max_examples=8)
seeds = st.integers(0, 10**6)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
every_norm = pytest.mark.parametrize("name", DUAL)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def planes(seed, count=3, size=14):
    """Points, some elements of them at 0 or 1, normals with zeros, and gaps from easy to impossible."""
    generator = np.random.default_rng(seed)
    points = np.clip(generator.uniform(-0.2, 1.2, (2, count, size)), 0, 1)
    normal = generator.normal(size=(count, size)) * generator.integers(0, 4, (count, size))
    gaps = generator.normal(size=(2, count)) * generator.choice([0.01, 1, 5, 20], (2, count))
    return points, normal, gaps


# the projection


@quick
@given(seed=seeds, name=st.sampled_from(list(DUAL)))
def test_projections_are_the_nearest_points_of_plane_and_box(seed, name):
    points, normal, gaps = planes(seed)
    moves = to_plane(name, *(torch.from_numpy(each) for each in (points, normal, gaps))).numpy()
    assert (points + moves).min() >= -1e-15
    assert (points + moves).max() <= 1 + 1e-15
    for n in range(2):
        for b in range(3):
            move, z = moves[n, b], cvxpy.Variable(points.shape[2])
            lowest, highest = (
                gaps[n, b] + np.where(sign * normal[b] > 0, 1 - points[n, b], -points[n, b]) @ normal[b]
                for sign in (-1, 1)
            )
            if not lowest < 0 < highest:
                # out of reach: the corner that comes nearest
                nearest = lowest if gaps[n, b] > 0 else highest
                assert gaps[n, b] + move @ normal[b] == pytest.approx(nearest, abs=1e-9)
                continue
            assert gaps[n, b] + move @ normal[b] == pytest.approx(0, abs=1e-9 * abs(normal[b]).sum())
            inside = [points[n, b] + z >= 0, points[n, b] + z <= 1, gaps[n, b] + normal[b] @ z == 0]
            best = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(z, ORDER[name])), inside).solve(solver="CLARABEL")
            assert np.linalg.norm(move, ORDER[name]) == pytest.approx(best, rel=1e-4, abs=1e-6)


@every_norm
def test_projections_at_the_edges(name):
    points = torch.tensor([[[0.5, 0.0, 1.0, 0.3]] * 4], dtype=torch.float64)
    normal = torch.tensor([[0, 0, 0, 0], [1, -2, 3, 0], [1, 1, -1, 0], [1e-300, 0, 0, 0]], dtype=torch.float64)
    # nothing to do; nowhere to go; already there; all but a vanishing slope
    gaps = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    moves = to_plane(name, points, normal, gaps)
    assert bool(torch.isfinite(moves).all())
    assert not bool(moves[:, :3].any())
    torch.testing.assert_close(moves[0, 3], torch.tensor([-0.5, 0, 0, 0], dtype=torch.float64))


@every_norm
def test_projections_in_float32_are_close_to_those_in_float64(name, pictures):
    points = pictures(4, 1, 48, 64, dtype=torch.float64).flatten(1)[None]
    normal = pictures(4, 1, 48, 64, dtype=torch.float64, seed=1).flatten(1) ** 9 - 0.05
    gaps = torch.tensor([[1.0, 10.0, 60.0, 1e-4]], dtype=torch.float64)
    exact = to_plane(name, points, normal, gaps)
    rounded = to_plane(name, points.float(), normal.float(), gaps.float())
    torch.testing.assert_close(rounded.double(), exact, atol=2e-4, rtol=1e-3)


# linear models, where the smallest perturbation is known


@quick
@given(seed=seeds, name=st.sampled_from(list(DUAL)))
def test_nearest_of_several_boundaries(linear, seed, name):
    model, x, y = linear(seed, classes=5)
    weight, bias = model.weight.detach(), model.bias.detach()
    result = FAB(norm=name, steps=25).run(model, x, y)
    for i in range(len(x)):
        gaps = [
            float((weight[k] - weight[y[i]]) @ x[i].flatten() + bias[k] - bias[y[i]]) for k in range(5) if k != y[i]
        ]
        slopes = [float(norm(name).dual((weight[k] - weight[y[i]])[None])) for k in range(5) if k != y[i]]
        distance = min(-gap / slope for gap, slope in zip(gaps, slopes, strict=True))
        ratio = float(result.norms[name][i]) / distance
        if distance < 0.4:  # inside the box, where the quotient is the distance
            assert bool(result.success[i])
            assert 1 - 1e-6 <= ratio <= 1.01


@quick
@given(seed=seeds, name=st.sampled_from(list(DUAL)))
def test_smallest_perturbation_inside_the_box(linear, pictures, seed, name):
    model, _, _ = linear(seed)
    x = pictures(4, 1, 4, 3, dtype=torch.float64, seed=seed)
    x[x < 0.25], x[x > 0.75] = 0, 1
    y = predict(model, x)
    normal = torch.stack([model.weight[1 - k] - model.weight[k] for k in y]).detach()
    with torch.no_grad():
        logits = model(x)
    gaps = (logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])).T
    best = to_plane(name, x.flatten(1)[None], normal, gaps)[0]
    reachable = (gaps[0] + (best * normal).sum(1)).abs() < 1e-9
    result = FAB(norm=name, steps=30).run(model, x, y)
    assert bool(result.success[reachable].all())
    assert not bool(result.success[~reachable].any())
    assert torch.equal(result.images[~reachable], x[~reachable])
    ratio = result.norms[name] / norm(name).size(best)
    assert bool((ratio[reachable] >= 1 - 1e-6).all())
    # overshooting by a twentieth cannot do better in an image that is all at the ends of the box
    assert bool((ratio[reachable] <= 1.05).all())
    assert float(ratio[reachable].median()) < 1.01


# the algorithm, one image at a time


def slow_projection(name, point, normal, gap):
    """Bisection for linf and l2, the steepest elements first for l1."""
    sign = -np.sign(gap) * np.sign(normal)
    room = np.where(sign > 0, 1 - point, point) * (normal != 0)
    slope = np.abs(normal)
    if slope @ room <= abs(gap):
        return sign * room
    if name == "l1":
        move, left = np.zeros_like(point), abs(gap)
        for i in np.argsort(-slope):
            move[i] = min(room[i], left / slope[i]) if slope[i] > 0 else 0
            left -= move[i] * slope[i]
        return sign * move
    low, high = 0.0, 1.0 if name == "linf" else 1 / slope[slope > 0].min()
    for _ in range(200):
        middle = (low + high) / 2
        move = np.minimum(middle * (1 if name == "linf" else slope), room)
        low, high = (middle, high) if slope @ move < abs(gap) else (low, middle)
    return sign * np.minimum(high * (1 if name == "linf" else slope), room)


def slow_fab(model, image, label, name, steps, goal=None):
    """Croce & Hein 2020, algorithm 1, first restart, written after the paper with a Jacobian and a loop."""
    shape, original = image.shape, image.numpy().ravel()
    x, best, size = original.copy(), original, math.inf
    for _ in range(steps):
        leaf = torch.from_numpy(x).view(1, *shape)
        jacobian = torch.autograd.functional.jacobian(model, leaf)[0, :, 0].flatten(1).numpy()
        with torch.no_grad():
            logits = model(leaf)[0].numpy()
        classes = [k for k in range(len(logits)) if k != label] if goal is None else [goal]
        distances = [
            abs(logits[k] - logits[label]) / np.linalg.norm(jacobian[k] - jacobian[label], DUAL[name]) for k in classes
        ]
        s = classes[int(np.argmin(distances))]
        normal, gap = jacobian[s] - jacobian[label], logits[s] - logits[label]
        delta = slow_projection(name, x, normal, gap)
        delta_original = slow_projection(name, original, normal, gap + normal @ (original - x))
        sizes = [np.linalg.norm(each, ORDER[name]) for each in (delta, delta_original)]
        alpha = min(sizes[0] / (sizes[0] + sizes[1]), 0.1)
        x = np.clip((1 - alpha) * (x + 1.05 * delta) + alpha * (original + 1.05 * delta_original), 0, 1)
        if int(predict(model, torch.from_numpy(x).view(1, *shape))) != label:
            if np.linalg.norm(x - original, ORDER[name]) < size:
                best, size = x.copy(), np.linalg.norm(x - original, ORDER[name])
            x = 0.1 * original + 0.9 * x
    return best, size


@pytest.mark.parametrize("target_classes", [None, 1])
@every_norm
def test_a_slow_loop_after_the_paper_gives_the_same(name, target_classes, net, pictures):
    model, x = net(1).double(), pictures(5, 1, dtype=torch.float64)
    y = predict(model, x)
    result = FAB(norm=name, steps=12, target_classes=target_classes).run(model, x, y)
    with torch.no_grad():
        others = model(x).scatter(1, y[:, None], -math.inf).argmax(1)
    found = []
    for i in range(5):
        goal = None if target_classes is None else int(others[i])
        best, size = slow_fab(model, x[i], int(y[i]), name, 12, goal)
        found.append(size < math.inf)
        assert bool(result.success[i]) == found[-1]
        np.testing.assert_allclose(result.images[i].numpy().ravel(), best, atol=1e-8)
    assert sum(found) >= 3


# what it promises


@every_norm
def test_no_larger_than_deepfool(name, net, pictures):
    model, x = net(), pictures(12)
    y = predict(model, x)
    ours = FAB(norm=name, steps=20).run(model, x, y)
    theirs = DeepFool(norm="l2" if name == "l1" else name).run(model, x, y)
    assert int(ours.success.sum()) >= int(theirs.success.sum()) > 6
    both = ours.success & theirs.success
    assert float(ours.norms[name][both].mean()) < float(theirs.norms[name][both].mean())


@every_norm
def test_passes(name, net, pictures):
    model, x = net(3, 10), pictures(12)
    y = predict(model, x)
    result = FAB(norm=name, steps=10, fold=False).run(model, x, y)
    assert int(result.forwards.max()) <= 20  # 11, and one for every step but the last at which an image succeeds
    assert result.backwards.tolist() == [90] * 12
    assert result.iterations.tolist() == [10] * 12
    result = FAB(norm=name, steps=10, target_classes=4, fold=False).run(model, x, y)
    assert int(result.forwards.max()) <= 1 + 4 * 20
    assert result.backwards.tolist() == [40] * 12
    y[:3] = (y[:3] + 1) % 10
    result = FAB(norm=name, steps=10, fold=False).run(model, x, y)
    assert result.forwards[:3].tolist() == [1] * 3
    assert result.backwards[:3].tolist() == [0] * 3
    forwards, backwards = (
        FAB(norm=name, steps=10, restarts=2, fold=False).run(model, x, y),
        FAB(steps=10, restarts=2)._passes(10),
    )
    assert int(forwards.forwards.max()) <= backwards[0]
    assert int(forwards.backwards.max()) == backwards[1] == 180


@every_norm
def test_only_what_lies_within_eps_counts(name, net, pictures):
    model, x = net().double(), pictures(12, dtype=torch.float64)
    y = predict(model, x)
    free = FAB(norm=name, steps=8).run(model, x, y, seed=1)
    eps = 1.001 * float(free.norms[name][free.success].median())
    bounded = FAB(norm=name, steps=8, eps=eps).run(model, x, y, seed=1)
    within = free.success & (free.norms[name] <= eps)
    assert 0 < int(within.sum()) < int(free.success.sum())
    assert torch.equal(bounded.success, within)
    assert torch.equal(bounded.images, torch.where(within.view(-1, 1, 1, 1), free.images, x))
    first = FAB(norm=name, steps=8, eps=eps, stop_at_success=True).run(model, x, y, seed=1)
    assert torch.equal(first.success, within)
    assert bool((first.norms[name][within] <= eps * (1 + 1e-6)).all())
    assert int(first.backwards[within].sum()) < int(bounded.backwards[within].sum())
    assert torch.equal(first.backwards[~within], bounded.backwards[~within])


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_restarts_only_improve(name, pictures):
    x = pictures(8, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.Tanh(), nn.Linear(24, 4)).double().eval()
        model[1].weight.data.mul_(8)
    y = predict(model, x)
    results = [FAB(norm=name, steps=12, restarts=restarts).run(model, x, y, seed=2) for restarts in (1, 2, 4)]
    sizes = [result.norms[name].masked_fill(~result.success, math.inf) for result in results]
    assert bool((sizes[1] <= sizes[0]).all())
    assert bool((sizes[2] <= sizes[1]).all())
    assert bool((sizes[2] < sizes[0]).any())
    assert torch.equal(results[2].images, FAB(norm=name, steps=12, restarts=4)(model, x, y, seed=2))
    assert not torch.equal(results[2].images, FAB(norm=name, steps=12, restarts=4)(model, x, y, seed=3))


@every_norm
def test_targets_and_regions(name, net, pictures):
    model, x = net(), pictures(12)
    y = predict(model, x)
    targets = (y + 1) % 4
    for target_classes in (None, 2):
        result = FAB(norm=name, steps=20, target_classes=target_classes).run(model, x, y, targets=targets)
        assert float(result.success.float().mean()) >= 0.75
        assert result.backwards.max() <= 20
    mask = (torch.arange(64) % 3 > 0).view(8, 8)
    inside = FAB(norm=name, steps=20).run(model, x, y, region=Mask(mask))
    assert not bool((inside.images != x)[:, :, ~mask].any())
    assert float(inside.success.float().mean()) >= 0.5
    free = FAB(norm=name, steps=20).run(model, x, y)
    both = inside.success & free.success
    assert float(inside.norms[name][both].mean()) > float(free.norms[name][both].mean())


def test_two_classes_and_more_targets_than_classes(net, pictures):
    model, x = net(1, 2), pictures(8, 1, 6, 9)
    y = predict(model, x)
    one = FAB(norm="l2", steps=10).run(model, x, y)
    other = FAB(norm="l2", steps=10, target_classes=9).run(model, x, y)
    assert bool(one.success.any())
    torch.testing.assert_close(other.images, one.images)
    assert torch.equal(other.backwards, one.backwards)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": 8}, r"FAB: eps must be in \[0, 1\] for linf, got 8"),
        ({"norm": "l0"}, "FAB: norm must be one of linf, l2, l1, got 'l0'"),
        ({"steps": 0}, "FAB: steps must be at least 1, got 0"),
        ({"restarts": 0}, "FAB: restarts must be at least 1, got 0"),
        ({"target_classes": 0}, "FAB: target_classes must be at least 1, got 0"),
        ({"alpha_max": 2}, r"FAB: alpha_max must be in \[0, 1\], got 2"),
        ({"beta": -1}, r"FAB: beta must be in \[0, 1\], got -1"),
        ({"overshoot": -0.1}, "FAB: overshoot must be at least 0, got -0.1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FAB(**fields)
