"""PGAP and FPGAP: what each step keeps, where the loop stops, and the loop as the paper writes it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import FPGAP, PGAP, Center, Mask
from lit_adv.attacks.ssim_ball import similarities

few = settings(max_examples=6)
seeds = st.integers(0, 10**6)
both = pytest.mark.parametrize("attack", [PGAP, FPGAP])


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def structure(x, y):
    """``1 - S2`` of whole images."""
    return 1 - similarities(x.flatten(1), y.flatten(1))[1]


@pytest.fixture(scope="module")
def smooth(make_smooth):
    return make_smooth(2, 0.5)


@pytest.fixture
def case(smooth, pictures):
    x = pictures(5, 2, 6, 6, dtype=torch.float64, seed=3)
    x[0, :, 0], x[1, :, 1] = 0, 1
    return smooth, x, predict(smooth, x)


def paper(model, image, label, *, eps2, steps, relaxed, target=None):
    """Algorithms 1 and 2 for one image, problem (9) and equation (10), with the constants put right."""
    x = image.clone()
    for taken in range(steps + 1):
        leaf = x.clone().requires_grad_()
        logits = model(leaf[None])[0]
        goal = label if target is None else target
        margin = logits[goal] - torch.cat([logits[:goal], logits[goal + 1 :]]).max()
        if (margin < 0) if target is None else (margin > 0):
            break
        if taken == steps:
            break
        (g,) = torch.autograd.grad(-margin if target is None else margin, leaf)
        mu, n, eta = x.mean(), x.numel(), 1 / (1 - eps2**2)
        b = x - mu
        k21 = (eta**2 - 1) * b.square().sum() + (n - 1) * 0.03**2 * eta * eps2**2
        along = g if relaxed else g - g.mean()
        x = (mu + eta * b + math.sqrt(k21) * along / along.norm()).clamp(0, 1)
    return x, taken


@both
@pytest.mark.parametrize("targeted", [False, True])
def test_is_the_paper_s_loop_without_the_box(attack, targeted, case):
    model, x, y = case
    targets = (y + 1) % 4 if targeted else None
    result = attack(eps2=0.04, steps=8, box=False).run(model, x, y, targets=targets)
    for row in range(5):
        known, taken = paper(
            model,
            x[row],
            int(y[row]),
            eps2=0.04,
            steps=8,
            relaxed=attack is FPGAP,
            target=int(targets[row]) if targeted else None,
        )
        torch.testing.assert_close(result.images[row], known, atol=1e-10, rtol=0)
        assert int(result.iterations[row]) == taken


@both
def test_a_row_stops_with_its_first_success(attack, case):
    model, x, y = case
    result = attack(eps2=0.03, steps=50).run(model, x, y)
    assert bool(result.success.all())
    assert len(set(result.iterations.tolist())) > 1
    assert torch.equal(result.success, predict(model, result.images) != y)
    # the pass that sees the success is the last
    assert torch.equal(result.forwards, result.iterations + 1)
    for steps in range(1, int(result.iterations.max())):
        earlier = attack(eps2=0.03, steps=steps).run(model, x, y)
        assert torch.equal(earlier.success, result.iterations <= steps)
    wrong = attack(eps2=0.03).run(model, x, (y + 1) % 4)
    assert torch.equal(wrong.images, x)
    assert wrong.iterations.tolist() == [0] * 5


@both
def test_a_forward_and_a_backward_pass_a_step(attack, case):
    model, x, y = case
    result = attack(eps2=0.03, steps=7, stop_at_success=False).run(model, x, y)
    assert result.forwards.tolist() == result.backwards.tolist() == result.iterations.tolist() == [7] * 5


@pytest.mark.parametrize("eps1", [0.0, 0.05])
@pytest.mark.parametrize("steps", [1, 6])
def test_anchored_images_stay_in_the_ball_of_the_clean_ones(eps1, steps, case):
    model, x, y = case
    fields = {"eps1": eps1, "eps2": 0.1, "steps": steps, "reference": "anchored", "stop_at_success": False}
    out = PGAP(**fields)(model, x, y)
    s1, s2 = similarities(x.flatten(1), out.flatten(1))
    assert float(s2.min()) >= 1 - 0.1**2 - 1e-12
    assert float(s1.min()) >= 1 - eps1**2 - 1e-12
    assert bool((out != x).flatten(1).any(1).all())
    if eps1 == 0:
        torch.testing.assert_close(out.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-12, rtol=0)


@few
@given(seed=seeds, steps=st.integers(1, 8), box=st.booleans())
def test_a_moving_reference_drifts_by_eps2_a_step(smooth, pictures, seed, steps, box):
    x = pictures(3, 2, 6, 6, low=0.0 if box else 0.3, high=1.0 if box else 0.7, dtype=torch.float64, seed=seed)
    out = PGAP(eps2=0.02, steps=steps, box=box, stop_at_success=False)(smooth, x, predict(smooth, x))
    assert float(structure(x, out).max()) <= (steps * 0.02) ** 2 + 1e-12
    if steps == 1:
        assert float((structure(x, out) - 0.02**2).abs().max()) < 1e-12


def test_the_box_goes_farther_than_clipping(linear):
    model, x, _ = linear(0, count=8)
    x = (12 * x - 5.5).clamp(0, 1)
    y = predict(model, x)
    fields = {"eps2": 0.1, "steps": 1, "stop_at_success": False, "kappa": 1e6}
    boxed, clipped = (PGAP(box=box, **fields)(model, x, y) for box in (True, False))
    torch.testing.assert_close(boxed.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-12, rtol=0)
    assert not torch.allclose(clipped.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-6)
    weight = model.weight.detach()
    along = weight[1 - y] - weight[y]
    moved = ((boxed - x).flatten(1) * along).sum(1)
    assert bool((moved > 0).all())
    assert float(structure(x, boxed).max()) <= 0.1**2 + 1e-12


@both
def test_each_channel_by_itself(attack, case):
    model, x, y = case
    out = attack(eps2=0.1, steps=1, per_channel=True)(model, x, y)
    for channel in range(2):
        found = structure(x[:, channel], out[:, channel])
        assert bool((found > 0).all())
        assert float(found.max()) <= 0.1**2 + 1e-12
        if attack is PGAP:
            assert float((found - 0.1**2).abs().max()) < 1e-12
            torch.testing.assert_close(out[:, channel].mean((1, 2)), x[:, channel].mean((1, 2)), atol=1e-12, rtol=0)


def test_a_region_is_a_picture_of_its_own(case):
    model, x, y = case
    region = Center(4)
    out = PGAP(eps2=0.2, steps=1)(model, x, y, region=region)
    assert float((structure(x[:, :, 1:5, 1:5], out[:, :, 1:5, 1:5]) - 0.2**2).abs().max()) < 1e-12
    # the whole image is then nearer still
    assert float(structure(x, out).max()) < 0.04
    inside = torch.zeros(6, 6)
    inside[1:5, 1:5] = 1
    assert torch.equal(out, PGAP(eps2=0.2, steps=1)(model, x, y, region=Mask(inside)))


@both
@pytest.mark.parametrize("box", [False, True])
def test_cvxpy_takes_the_same_steps(attack, box, case):
    pytest.importorskip("cvxpy")
    model, x, y = case
    fields = {"eps1": 0.03, "eps2": 0.1, "steps": 2, "box": box, "stop_at_success": False}
    region = Mask(torch.arange(36).view(6, 6) % 4 > 0)
    for place in (None, region):
        ours, theirs = (attack(solver=solver, **fields)(model, x, y, region=place) for solver in ("exact", "cvxpy"))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert not torch.equal(ours, x)


@both
@pytest.mark.parametrize(("reference", "eps2"), [("moving", 0.05), ("anchored", 0.4)])
def test_kappa_ends_the_ascent(attack, reference, eps2, case):
    model, x, y = case
    fields = {"eps2": eps2, "reference": reference, "stop_at_success": False}
    held = attack(steps=40, kappa=0.0, **fields)(model, x, y)
    assert bool((predict(model, held) != y).all())
    assert torch.equal(held, attack(steps=40, **fields | {"stop_at_success": True})(model, x, y))
    assert not torch.equal(held, attack(steps=40, **fields)(model, x, y))


# bad input


class Flat(nn.Module):
    """A gradient of 0, or the same for every pixel."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        total = self.slope * x.sum((1, 2, 3))
        return torch.stack([1000 + 0 * total, total], 1)


@both
@pytest.mark.parametrize("fields", [{}, {"eps1": 0.05}, {"reference": "anchored"}, {"per_channel": True}])
def test_images_that_cannot_move_come_back(attack, fields, net, pictures):
    x, y = pictures(3), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(attack(**fields)(Flat(0.0), x, y), x)
    assert torch.equal(PGAP(**fields)(Flat(0.1), x, y), x)
    assert bool(torch.isfinite(attack(**fields)(Flat(0.1), x, y)).all())
    model = net()
    for value in (0.0, 1.0):
        flat = torch.full_like(x, value)
        assert torch.equal(attack(steps=3, **fields)(model, flat, predict(model, flat)), flat)
    small = torch.rand(2, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    pixel = nn.Sequential(nn.Flatten(), nn.Linear(1, 3))
    assert torch.equal(PGAP(**fields)(pixel, small, predict(pixel, small)), small)
    out = FPGAP(**fields)(pixel, small, predict(pixel, small))
    assert bool(torch.isfinite(out).all())


@both
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps2": 0}, r"eps2 must be in \(0, 1\), got 0"),
        ({"eps2": 1}, r"eps2 must be in \(0, 1\), got 1"),
        ({"eps2": math.nan}, r"eps2 must be in \(0, 1\)"),
        ({"eps1": 1}, r"eps1 must be in \[0, 1\)"),
        ({"eps1": -0.1}, r"eps1 must be in \[0, 1\)"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"reference": "clean"}, "reference must be one of moving, anchored"),
        ({"solver": "ecos"}, "solver must be one of exact, cvxpy"),
        ({"kappa": -1}, "kappa must be at least 0"),
        ({"kappa": math.inf}, "kappa must be at least 0 and finite"),
    ],
)
def test_bad_fields_are_refused(attack, fields, message):
    with pytest.raises(ValueError, match=f"^{attack.__name__}: {message}"):
        attack(**fields)
