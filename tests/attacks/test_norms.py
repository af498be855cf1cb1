"""Norms: projections against a solver, directions against their duals, random points."""

import itertools
import math

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from lit_adv.attacks.norms import norm, over_l1
from lit_adv.attacks.randomness import Draws

quick = settings(max_examples=40)
names = st.sampled_from(["linf", "l2"])
seeds = st.integers(0, 10**6)
radii = st.floats(1e-3, 2)
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
ball_names = st.sampled_from(list(ORDER))


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", list(ORDER))
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_projection_is_the_nearest_point(name, scale):
    delta = scale * draw(0, 3, 1, 2, 3)
    projected = norm(name).project(delta, 0.7)
    for row, ours in zip(delta, projected, strict=True):
        point = cvxpy.Variable(6)
        nearest = cvxpy.Minimize(cvxpy.sum_squares(point - row.flatten().numpy()))
        cvxpy.Problem(nearest, [cvxpy.norm(point, ORDER[name]) <= 0.7]).solve(solver=cvxpy.CLARABEL)
        np.testing.assert_allclose(ours.flatten().numpy(), point.value, atol=1e-5)


@quick
@given(name=ball_names, seed=seeds, eps=radii)
def test_projection(name, seed, eps):
    ball, delta = norm(name), draw(seed, 4, 2, 3, 2)
    projected = ball.project(delta, eps)
    assert bool((ball.size(projected) <= eps * (1 + 1e-12)).all())
    inside = ball.size(delta) <= eps
    assert torch.equal(projected[inside], delta[inside])
    torch.testing.assert_close(ball.project(projected, eps), projected, rtol=1e-12, atol=0)
    # the obtuse angle that makes it the nearest point
    other = ball.project(draw(seed + 1, 4, 2, 3, 2), eps)
    assert bool((((delta - projected) * (other - projected)).flatten(1).sum(1) <= 1e-9).all())


@quick
@given(name=names, seed=seeds, eps=radii)
def test_enforce(name, seed, eps):
    ball, x = norm(name), torch.rand(4, 1, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    moved = x + draw(seed, 4, 1, 3, 2)
    kept = ball.enforce(x, moved, eps)
    torch.testing.assert_close(kept - x, ball.project(moved - x, eps), rtol=0, atol=1e-12)
    inside = ball.size(moved - x) < eps
    assert torch.equal(kept[inside], moved[inside])
    assert torch.equal(ball.enforce(x, x, eps), x)
    # the box last keeps the ball, since clipping only goes back towards x
    assert bool((ball.size(kept.clamp(0, 1) - x) <= eps * (1 + 1e-12)).all())


@quick
@given(name=names, seed=seeds, exponent=st.integers(-36, 30))
def test_steepest_direction_has_unit_norm_and_the_dual_slope(name, seed, exponent):
    ball = norm(name)
    gradient = (draw(seed, 3, 2, 2, 2) * 10.0**exponent).float()
    direction = ball.steepest(gradient)
    torch.testing.assert_close(ball.size(direction), torch.ones(3), rtol=1e-5, atol=0)
    if -15 < exponent < 15:
        slope = (gradient * direction).flatten(1).sum(1)
        torch.testing.assert_close(slope, ball.dual(gradient), rtol=1e-5, atol=0)
        dual = torch.linalg.vector_norm(gradient.flatten(1), ord=1 if name == "linf" else 2, dim=1)
        torch.testing.assert_close(slope, dual, rtol=1e-5, atol=0)
        other = ball.steepest(draw(seed + 1, 3, 2, 2, 2).float())
        assert bool(((gradient * other).flatten(1).sum(1) <= slope * (1 + 1e-5)).all())


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l0"])
def test_no_gradient_no_direction(name):
    zero = torch.zeros(2, 1, 2, 2)
    assert torch.equal(norm(name).steepest(zero), zero)
    assert torch.equal(norm(name).project(zero, 0.5), zero)
    assert torch.equal(norm(name).project(torch.ones(2, 1, 2, 2), 0.0), zero)


@pytest.mark.parametrize("name", list(ORDER))
def test_size(name):
    delta = draw(3, 5, 3, 4, 2)
    expected = [np.linalg.norm(row.flatten().numpy(), ORDER[name]) for row in delta]
    np.testing.assert_allclose(norm(name).size(delta).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l0"])
def test_a_mask_of_ones_draws_the_same_points(name):
    for sides in ((1, 2, 2), (3, 5, 4), (3, 32, 32)):
        like = torch.zeros(50, *sides)
        seeds = torch.arange(50)
        free = norm(name).random(Draws(seeds), like, 0.5, None)
        assert torch.equal(norm(name).random(Draws(seeds), like, 0.5, torch.ones(50, 1, *sides[1:])), free)
        assert bool((norm(name).size(free) <= 0.5 + 1e-6).all())
        none = norm(name).random(Draws(seeds), like, 0.5, torch.zeros(50, 1, *sides[1:]))
        assert torch.equal(none, like)


# l1 and l0, whose balls must be taken together with the box


def images(seed, *shape):
    """Some of the pixels are at an end of the box."""
    return (2 * draw(seed, *shape).sigmoid() - 0.5).clamp(0, 1)


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("eps", [0.2, 1.0, 2.5])
def test_l1_enforce_is_the_nearest_point_of_ball_and_box(scale, eps):
    x = images(1, 3, 1, 2, 4)
    moved = x + scale * draw(2, 3, 1, 2, 4)
    kept = norm("l1").enforce(x, moved, eps).clamp(0, 1)
    for row, clean, ours in zip(moved, x, kept, strict=True):
        point, center = cvxpy.Variable(8), clean.flatten().numpy()
        nearest = cvxpy.Minimize(cvxpy.sum_squares(point - row.flatten().numpy()))
        inside = [cvxpy.norm(point - center, 1) <= eps, point >= 0, point <= 1]
        cvxpy.Problem(nearest, inside).solve(solver=cvxpy.CLARABEL)
        np.testing.assert_allclose(ours.flatten().numpy(), point.value, atol=2e-5)


def slow_shrink(long, room, eps):
    """By bisection, in float64, one row."""

    def kept(level):
        return np.minimum(np.maximum(long - level, 0), room)

    if kept(0.0).sum() <= eps:
        return kept(0.0)
    low, high = 0.0, long.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle).sum() > eps else (low, middle)
    return kept(high)


@quick
@given(
    seed=seeds,
    eps=st.floats(1e-3, 40),
    exponent=st.integers(-3, 2),
    boxed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_l1_agrees_with_bisection(seed, eps, exponent, boxed, dtype):
    """Also where many elements are equal, or 0, or have no room."""
    ball, x = norm("l1"), images(seed, 3, 3, 16, 16).to(dtype)
    delta = draw(seed + 1, 3, 3, 16, 16).mul(10.0**exponent).to(dtype)
    delta[0, 0] = delta[0, 0].sign() * 10.0**exponent
    delta[1, 1] = 0
    moved = x + delta
    delta = moved - x
    room = torch.where(delta > 0, 1 - x, x) if boxed else torch.full_like(x, math.inf)
    ours = ball.enforce(x, moved, eps).clamp(0, 1) - x if boxed else ball.project(delta, eps)
    slack = 1e-5 if dtype == torch.float32 else 1e-12
    assert bool((ball.size(ours.double()) <= eps * (1 + slack) + 768 * slack * 0.1).all())
    for row, wide, mine in zip(delta.double(), room.double(), ours.double(), strict=True):
        expected = slow_shrink(row.abs().flatten().numpy(), wide.flatten().numpy(), eps)
        np.testing.assert_allclose(
            mine.flatten().numpy(), expected * np.sign(row.flatten().numpy()), atol=10.0 ** max(exponent, 0) * slack
        )


def test_l1_steepest_shares_its_step_among_the_largest_hundredth():
    gradient = draw(5, 2, 3, 10, 10)
    direction = norm("l1").steepest(gradient)
    for row, g in zip(direction.flatten(1), gradient.flatten(1), strict=True):
        largest = g.abs().argsort(descending=True)[:3]
        expected = torch.zeros(300, dtype=torch.float64).index_copy(0, largest, g[largest].sign() / 3)
        torch.testing.assert_close(row, expected)
    few = torch.zeros(1, 3, 10, 10)
    few[0, 1, 2, 3] = -2.0
    torch.testing.assert_close(norm("l1").steepest(few), few / 2)


@pytest.mark.parametrize("masked", [False, True])
def test_l1_random_points_are_uniform_in_the_ball(masked):
    mask = torch.zeros(2000, 1, 3, 3)
    mask[:, :, 0] = 1
    points = norm("l1").random(
        Draws(torch.arange(2000)), torch.zeros(2000, 2, 3, 3, dtype=torch.float64), 0.7, mask if masked else None
    )
    free = points.flatten(1)[:, (mask[0].expand(2, 3, 3).flatten() > 0) | (not masked)]
    dimensions = 6 if masked else 18
    assert free.shape[1] == dimensions
    assert int((points != 0).sum()) == int((free != 0).sum())
    size = free.abs().sum(1) / 0.7
    assert kstest(size.pow(dimensions).numpy(), "uniform").pvalue > 0.01
    # an element's share of the size is Beta(1, d - 1)
    for column in range(dimensions):
        share = (free[:, column].abs() / (0.7 * size)).numpy()
        assert kstest(1 - (1 - share) ** (dimensions - 1), "uniform").pvalue > 1e-3
    assert float(free.sign().mean(0).abs().max()) < 5 / math.sqrt(2000)


def nearest_sparse(x, moved, count, *, boxed):
    """Brute force over all sets of pixels."""
    best, least = x, math.inf
    for chosen in itertools.combinations(range(x[0].numel()), count):
        mask = torch.zeros(x[0].numel(), dtype=torch.bool)
        mask[list(chosen)] = True
        point = torch.where(mask.view(x.shape[1:]), moved.clamp(0, 1) if boxed else moved, x)
        distance = float((point - moved).square().sum())
        if distance < least:
            best, least = point, distance
    return best


@quick
@given(seed=seeds, count=st.integers(0, 6), scale=st.floats(0.05, 3))
def test_l0_projections_agree_with_brute_force(seed, count, scale):
    ball, x = norm("l0"), images(seed, 2, 2, 2, 3)
    moved = x + scale * draw(seed + 1, 2, 2, 2, 3)
    kept = ball.enforce(x, moved, count).clamp(0, 1)
    delta = ball.project(moved - x, count)
    assert bool((ball.size(delta) <= count).all())
    assert bool((ball.size(kept - x) <= count).all())
    for row in range(2):
        boxed = nearest_sparse(x[row], moved[row], count, boxed=True)
        torch.testing.assert_close(kept[row], boxed, rtol=0, atol=1e-15)
        free = nearest_sparse(x[row], moved[row], count, boxed=False)
        torch.testing.assert_close(x[row] + delta[row], free, rtol=0, atol=1e-12)
    assert torch.equal(ball.enforce(x, x, count), x)


@quick
@given(seed=seeds, exponent=st.integers(-36, 36))
def test_l0_steepest_is_the_gradient_over_its_l1_norm(seed, exponent):
    gradient = (draw(seed, 3, 2, 2, 2) * 10.0**exponent).float()
    direction = norm("l0").steepest(gradient)
    torch.testing.assert_close(direction.flatten(1).abs().sum(1), torch.ones(3))
    torch.testing.assert_close(direction, over_l1(gradient))
    expected = gradient.double() / gradient.double().flatten(1).abs().sum(1).view(3, 1, 1, 1)
    torch.testing.assert_close(direction.double(), expected, rtol=1e-5, atol=1e-9)


def test_l0_random_points_change_every_set_of_pixels():
    like, mask = torch.zeros(3000, 2, 2, 3), torch.zeros(3000, 1, 2, 3)
    mask[:, :, 0] = 1
    points = norm("l0").random(Draws(torch.arange(3000)), like, 2, None)
    assert norm("l0").size(points).tolist() == [2.0] * 3000
    sets = (points != 0).any(1).flatten(1).float() @ 2.0 ** torch.arange(6)
    values, counts = sets.unique(return_counts=True)
    assert len(values) == 15
    assert bool(((counts - 200).abs() < 5 * math.sqrt(200)).all())
    changed = points[(points != 0).any(1, keepdim=True).expand_as(points)]
    assert kstest((changed / 2 + 0.5).numpy(), "uniform").pvalue > 0.01
    inside = norm("l0").random(Draws(torch.arange(3000)), like, 2, mask)
    assert norm("l0").size(inside).tolist() == [2.0] * 3000
    assert not bool(inside[:, :, 1].any())
    assert norm("l0").size(norm("l0").random(Draws(torch.arange(3000)), like, 5, mask)).tolist() == [3.0] * 3000


def test_unknown_norm():
    with pytest.raises(ValueError, match="PGD: norm must be one of linf, l2, l1, l0, got 'l3'"):
        norm("l3", "PGD")
