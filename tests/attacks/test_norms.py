"""Norms: projections against a solver, directions against their duals, random points."""

import math

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.attacks.norms import norm
from lit_adv.attacks.randomness import Draws

quick = settings(max_examples=40, deadline=None, derandomize=True)
names = st.sampled_from(["linf", "l2"])
seeds = st.integers(0, 10**6)
radii = st.floats(1e-3, 2)
ORDER = {"linf": math.inf, "l2": 2}


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["linf", "l2"])
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
@given(name=names, seed=seeds, eps=radii)
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


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_no_gradient_no_direction(name):
    zero = torch.zeros(2, 1, 2, 2)
    assert torch.equal(norm(name).steepest(zero), zero)
    assert torch.equal(norm(name).project(zero, 0.5), zero)
    assert torch.equal(norm(name).project(torch.ones(2, 1, 2, 2), 0.0), zero)


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_size(name):
    delta = draw(3, 5, 3, 4, 2)
    expected = [np.linalg.norm(row.flatten().numpy(), ORDER[name]) for row in delta]
    np.testing.assert_allclose(norm(name).size(delta).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_a_mask_of_ones_draws_the_same_points(name):
    for sides in ((1, 2, 2), (3, 5, 4), (3, 32, 32)):
        like = torch.zeros(50, *sides)
        seeds = torch.arange(50)
        free = norm(name).random(Draws(seeds), like, 0.5, None)
        assert torch.equal(norm(name).random(Draws(seeds), like, 0.5, torch.ones(50, 1, *sides[1:])), free)
        assert bool((norm(name).size(free) <= 0.5 + 1e-6).all())
        none = norm(name).random(Draws(seeds), like, 0.5, torch.zeros(50, 1, *sides[1:]))
        assert torch.equal(none, like)


def test_unknown_norm():
    with pytest.raises(ValueError, match="PGD: norm must be one of linf, l2, l1, l0, got 'l3'"):
        norm("l3", "PGD")
