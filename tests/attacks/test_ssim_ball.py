"""The farthest point of an SSIM ball: its bounds, its optimality, cvxpy's answer, and what has nothing to follow."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.attacks import ssim_ball
from lit_adv.attacks.ssim_ball import SSIMBall, farthest, similarities
from lit_adv.attacks.ssim_cvxpy import farthest_by_cvxpy

few = settings(max_examples=8)
seeds = st.integers(0, 10**6)
bounds1 = st.sampled_from([0.0, 0.02, 0.05, 0.3])
bounds2 = st.sampled_from([0.005, 0.05, 0.11, 0.5])


def instances(seed, count=3, size=40, dtype=torch.float64):
    """Vectors with few, half and no elements at 0 and 1, and directions with outliers and a mean of their own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    kinds = [0.4 + 0.25 * normal(size), -0.9 + 1.1 * normal(size), 0.5 + 0.1 * normal(size)]
    x = torch.stack([kinds[row % 3].roll(row) for row in range(count)]).clamp(0, 1)
    x[:, 0] = 0.6  # none is black
    return x.to(dtype), (normal(count, size) * normal(count, size).exp() + 0.3 * normal(count, 1)).to(dtype)


def terms(x, y):
    """S1 and S2 as defined, from covariances."""
    a, b = x.mean(-1), y.mean(-1)
    s_xy = ((x - a[..., None]) * (y - b[..., None])).sum(-1) / (x.shape[-1] - 1)
    s_xx, s_yy = x.var(-1), y.var(-1)
    return (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4), (2 * s_xy + 9e-4) / (s_xx + s_yy + 9e-4)


def gain(x, y, g):
    return ((y - x) * g).sum(1) / g.norm(dim=1)


@few
@given(seed=seeds, size=st.integers(2, 60))
def test_similarities_are_ssim_s_terms(seed, size):
    x, _ = instances(seed, size=size)
    y = instances(seed + 1, size=size)[0]
    torch.testing.assert_close(torch.stack(similarities(x, y)), torch.stack(terms(x, y)), atol=1e-12, rtol=0)


# the closed form


@few
@given(seed=seeds, eps1=bounds1, eps2=bounds2, size=st.integers(2, 60))
def test_both_bounds_are_reached_without_the_box(seed, eps1, eps2, size):
    x, g = instances(seed, size=size)
    y = farthest(x, g, eps1=eps1, eps2=eps2)
    s1, s2 = terms(x, y)
    assert float((s2 - (1 - eps2**2)).abs().max()) < 1e-12
    assert float((s1 - (1 - eps1**2)).abs().max()) < 1e-12
    if eps1 == 0:
        torch.testing.assert_close(y.mean(1), x.mean(1), atol=1e-14, rtol=0)


@few
@given(seed=seeds, eps1=bounds1, eps2=bounds2, box=st.booleans())
def test_no_other_feasible_point_goes_farther(seed, eps1, eps2, box):
    x, g = instances(seed, size=12)
    best = gain(x, farthest(x, g, eps1=eps1, eps2=eps2, box=box), g)
    generator = torch.Generator().manual_seed(seed)
    tried = torch.randn(1000, *x.shape, dtype=torch.float64, generator=generator)
    ball = SSIMBall.around(x, eps1, eps2)
    m = ball.low + torch.rand(1000, 3, 1, dtype=torch.float64, generator=generator) * (ball.high - ball.low)
    tried = tried - tried.mean(2, keepdim=True)
    size = tried.norm(dim=2, keepdim=True)
    z = m + ball.centre + ball.radius * tried / size
    if box:  # towards x, which is feasible, until inside: the set is convex
        step = z - x
        room = torch.where(step > 0, 1 - x, x) / step.abs()
        z = x + step * room.amin(2, keepdim=True).clamp(max=1)
    s1, s2 = terms(x, z)
    assert float(s1.min()) >= 1 - eps1**2 - 1e-12
    assert float(s2.min()) >= 1 - eps2**2 - 1e-12
    assert bool((((z - x) * g).sum(2) / g.norm(dim=1) <= best + 1e-9).all())


@few
@given(seed=seeds, eps2=bounds2)
def test_along_g_itself(seed, eps2):
    x, g = instances(seed)
    exact, fast = farthest(x, g, eps2=eps2), farthest(x, g, eps2=eps2, relaxed=True)
    b, eta = x - x.mean(1, keepdim=True), 1 / (1 - eps2**2)
    k21 = (eta**2 - 1) * b.square().sum(1) + 39 * 9e-4 * eta * eps2**2
    expected = x.mean(1, keepdim=True) + eta * b + (k21.sqrt() / g.norm(dim=1))[:, None] * g
    torch.testing.assert_close(fast, expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(fast.mean(1) - x.mean(1), k21.sqrt() * g.mean(1) / g.norm(dim=1), atol=1e-14, rtol=0)
    assert float((terms(x, fast)[1] - (1 - eps2**2)).min()) >= -1e-13
    centred = g - g.mean(1, keepdim=True)
    torch.testing.assert_close(farthest(x, centred, eps2=eps2, relaxed=True), exact, atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("box", [False, True])
def test_scale_and_constant_of_the_direction(relaxed, box):
    x, g = instances(1)
    fields = {"eps2": 0.05, "box": box, "relaxed": relaxed}
    y = farthest(x, g, **fields)
    for scale in (1e-200, 1e-30, 7.0, 1e200):
        torch.testing.assert_close(farthest(x, scale * g, **fields), y, atol=1e-12, rtol=0)
    if not relaxed:
        torch.testing.assert_close(farthest(x, g + 3, **fields), y, atol=1e-12, rtol=0)
    sizes = [float((farthest(x, g, **fields | {"eps2": eps}) - x).abs().max()) for eps in (1e-1, 1e-3, 1e-5, 1e-7)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-6


# with the box


@few
@given(seed=seeds, eps2=bounds2, size=st.integers(8, 200))
def test_the_box_and_both_equations_hold(seed, eps2, size):
    x, g = instances(seed, size=size)
    y = farthest(x, g, eps2=eps2, box=True)
    ball = SSIMBall.around(x, 0, eps2)
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    assert size < 100 or bool((y == 0).any())
    torch.testing.assert_close(y.mean(1), x.mean(1), atol=1e-12, rtol=0)
    distance = (y - ball.mean - ball.centre).norm(dim=1, keepdim=True)
    assert bool(((distance - ball.radius).abs() <= 1e-10 * ball.radius).all())


@few
@given(seed=seeds, eps1=st.sampled_from([0.0, 0.02]), relaxed=st.booleans())
def test_the_box_changes_nothing_where_no_pixel_meets_it(seed, eps1, relaxed):
    x, g = instances(seed)
    x, fields = 0.4 + 0.2 * x, {"eps1": eps1, "eps2": 0.02, "relaxed": relaxed}
    torch.testing.assert_close(farthest(x, g, box=True, **fields), farthest(x, g, **fields), atol=1e-12, rtol=0)


@few
@given(seed=seeds, eps1=bounds1, eps2=bounds2, relaxed=st.booleans())
def test_bisection_agrees_with_active_sets(seed, eps1, eps2, relaxed):
    x, g = instances(seed)
    fields = {"eps1": eps1, "eps2": eps2, "box": True, "relaxed": relaxed}
    quick = farthest(x, g, **fields)
    sets = ssim_ball._Clipped._solved
    with pytest.MonkeyPatch.context() as patch:
        # nothing is taken for solved, except after a bisection
        patch.setattr(ssim_ball._Clipped, "_solved", lambda self, t, shift: torch.zeros_like(t, dtype=torch.bool))
        slow = farthest(x, g, **fields)
    assert ssim_ball._Clipped._solved is sets
    torch.testing.assert_close(slow, quick, atol=1e-8, rtol=0)


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_sphere_larger_than_the_box(relaxed):
    x, noise = instances(2, count=6)
    g = x - 0.5 + 0.05 * noise
    y = farthest(x, g, eps2=0.999, box=True, relaxed=relaxed)
    if relaxed:
        assert torch.equal(y, (g > 0).double())
    else:
        for row in range(6):
            total = float(x[row].sum())
            order = g[row].argsort(descending=True)
            known = torch.zeros(40, dtype=torch.float64)
            known[order[: int(total)]] = 1
            known[order[int(total)]] = total % 1
            torch.testing.assert_close(y[row], known, atol=1e-10, rtol=0)


@few
@given(seed=seeds)
def test_rows_do_not_know_of_each_other(seed):
    x, g = instances(seed, count=7)
    together = farthest(x, g, eps1=0.05, eps2=0.1, box=True)
    alone = torch.cat([farthest(x[i : i + 1], g[i : i + 1], eps1=0.05, eps2=0.1, box=True) for i in range(7)])
    torch.testing.assert_close(together, alone, atol=1e-13, rtol=0)
    many = farthest(x.repeat(1, 5000)[:, :150_000], g.repeat(1, 5000)[:, :150_000], eps2=0.01, box=True)
    assert bool(torch.isfinite(many).all())


@pytest.mark.parametrize("eps1", [0.0, 0.05])
def test_float32_is_enough(eps1):
    x, g = instances(3, size=20_000)
    exact = farthest(x, g, eps1=eps1, eps2=0.02, box=True)
    rounded = farthest(x.float(), g.float(), eps1=eps1, eps2=0.02, box=True)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, atol=2e-6, rtol=0)


@few
@given(seed=seeds, eps1=bounds1, box=st.booleans(), relaxed=st.booleans())
def test_coordinates_inside_are_a_vector_of_their_own(seed, eps1, box, relaxed):
    x, g = instances(seed)
    generator = torch.Generator().manual_seed(seed)
    inside = (torch.rand(3, 40, dtype=torch.float64, generator=generator) < 0.6).double()
    fields = {"eps1": eps1, "eps2": 0.1, "box": box, "relaxed": relaxed}
    y = farthest(x, g, inside=inside, **fields)
    assert torch.equal(y[inside == 0], x[inside == 0])
    for row in range(3):
        kept = inside[row] > 0
        alone = farthest(x[row, kept][None], g[row, kept][None], **fields)[0]
        torch.testing.assert_close(y[row, kept], alone, atol=1e-12, rtol=0)
    assert torch.equal(farthest(x, g, inside=torch.ones_like(x), **fields), farthest(x, g, **fields))


# cvxpy


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("eps1", [0.0, 0.05])
def test_cvxpy_agrees(eps1, box, relaxed):
    pytest.importorskip("cvxpy")
    for number, eps2 in enumerate((0.005, 0.05, 0.11, 0.3, 0.6)):
        x, g = instances(10 * number + box, count=6, size=20 + 7 * number)
        fields = {"eps1": eps1, "eps2": eps2, "box": box, "relaxed": relaxed}
        torch.testing.assert_close(
            farthest(x, g, **fields), farthest_by_cvxpy(x, g, **fields), atol=1e-5 if box else 1e-7, rtol=0
        )


def test_cvxpy_agrees_where_coordinates_are_left_out():
    pytest.importorskip("cvxpy")
    x, g = instances(5)
    inside = (torch.arange(40) % 3 > 0).double().expand(3, -1).clone()
    inside[2] = 0
    fields = {"eps1": 0.05, "eps2": 0.1, "box": True, "inside": inside, "stay": 1 - x}
    ours, theirs = farthest(x, g, **fields), farthest_by_cvxpy(x, g, **fields)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert torch.equal(theirs[2], 1 - x[2])


def test_without_cvxpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    x, g = instances(0)
    with pytest.raises(ImportError, match=r'solver="cvxpy".*pip install cvxpy'):
        farthest_by_cvxpy(x, g, eps2=0.1)


# nothing to follow


@pytest.mark.parametrize("solve", [farthest, farthest_by_cvxpy])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("eps1", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_has_nothing_to_follow_stays(solve, box, eps1, dtype):
    x, g = instances(4, dtype=dtype)
    fields = {"eps1": eps1, "eps2": 0.1, "box": box}
    for flat in (torch.zeros_like(g), torch.full_like(g, 0.1), torch.full_like(g, -1e-30)):
        assert torch.equal(solve(x, flat, **fields), x)
        assert torch.equal(solve(x, flat, stay=1 - x, **fields), 1 - x)
    assert torch.equal(solve(x[:, :1], g[:, :1], **fields), x[:, :1])
    if box:
        for full in (torch.zeros_like(x), torch.ones_like(x)):
            assert torch.equal(solve(full, g, **fields), full)
    assert torch.equal(solve(x, torch.zeros_like(g), relaxed=True, **fields), x)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_images_of_one_colour(value):
    x, g = instances(4)
    x = torch.full_like(x, value)
    for fields in ({"eps1": 0.0}, {"eps1": 0.05}, {"eps1": 0.0, "relaxed": True}):
        for box in (False, True):
            y = farthest(x, g, eps2=0.1, box=box, **fields)
            assert bool(torch.isfinite(y).all())
            assert torch.equal(y, x) == (box and value in (0.0, 1.0))
    y = farthest(x, g, eps2=0.1)
    eta = 1 / (1 - 0.1**2)
    torch.testing.assert_close((y - x).norm(dim=1), torch.full((3,), (39 * 9e-4 * eta * 0.01) ** 0.5).double())


def test_ties_in_the_direction():
    x, _ = instances(6, count=6)
    g = (torch.arange(40) % 2).double().expand(6, -1)
    for eps2 in (0.05, 0.9, 0.999):
        y = farthest(x, g, eps2=eps2, box=True)
        torch.testing.assert_close(y.mean(1), x.mean(1), atol=1e-7, rtol=0)
        assert float(terms(x, y)[1].min()) >= 1 - eps2**2 - 1e-7
        assert bool((gain(x, y, g) > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_that_the_whole_mass_goes_to(dtype):
    """Dark images: all that there is moves to the elements of the largest g, which leave it open where among them."""
    generator = torch.Generator().manual_seed(0)
    x = 0.02 * torch.rand(4, 800, dtype=torch.float64, generator=generator)
    x = (x * (torch.rand(4, 800, dtype=torch.float64, generator=generator) < 0.05)).to(dtype)
    g = torch.randn(4, 800, dtype=torch.float64, generator=generator).sign().to(dtype)
    y = farthest(x, g, eps2=0.3, box=True)
    close = {"atol": 1e-7 if dtype == torch.float32 else 1e-14, "rtol": 0}
    torch.testing.assert_close(y.mean(1), x.mean(1), **close)
    assert not y[g < 0].any()
    # the nearest of all such: moved by one number from the centre, where that is above 0
    moved = torch.where((g > 0) & (y > 0), y - SSIMBall.around(x, 0, 0.3).centre, torch.nan)
    for row in moved:
        known = row[~row.isnan()]
        assert float(known.max() - known.min()) < 1e-6


def test_elements_without_a_direction_stay_at_the_centre():
    x, g = instances(7, count=6)
    dead = torch.arange(40) % 3 == 0
    g[:, dead] = 0
    y = farthest(x, g, eps2=0.99, box=True, relaxed=True)
    ball = SSIMBall.around(x, 0, 0.99)
    torch.testing.assert_close(y[:, dead], (ball.mean + ball.centre).clamp(0, 1)[:, dead], atol=1e-12, rtol=0)
    assert torch.equal(y[:, ~dead], (g[:, ~dead] > 0).double())
