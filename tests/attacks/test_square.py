"""Square attack: its proposals exactly, its search against random signs and gradient attacks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import PGD, Center, Frame, Mask, RandomPatch, Square, square
from lit_adv.attacks.attack import Problem
from lit_adv.attacks.randomness import Draws

quick = settings(max_examples=15)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


class Confident(nn.Module):
    """Never leaves class 0, and keeps what it sees."""

    def __init__(self, inner, flat=False):
        super().__init__()
        self.inner, self.flat, self.seen = inner, flat, []

    def forward(self, x):
        self.seen.append(x)
        logits = 0 * self.inner(x) if self.flat else self.inner(x)
        return logits + torch.tensor([1e3, 0, 0, 0], dtype=x.dtype)


def tried(attack, model, x, **keywords):
    """The images that went through the model, ``(queries, B, C, H, W)``."""
    attack(model, x, torch.zeros(len(x), dtype=torch.int64), seed=1, **keywords)
    return torch.stack(model.seen)


def test_linf_starts_at_stripes_and_moves_squares(net, pictures):
    x, eps = pictures(4, height=12, width=9, low=0.2, high=0.8, dtype=torch.float64), 0.1
    seen = tried(Square(eps=eps, queries=300, p_init=0.3, rescale=False), Confident(net().double()), x)
    signs = ((seen - x) / eps).round()
    torch.testing.assert_close(x + eps * signs, seen, rtol=0, atol=1e-12)
    assert bool((signs.abs() == 1).all())
    assert bool((signs[0] == signs[0][:, :, :1]).all())
    assert not bool((signs[0] == signs[0][:, :, :, :1]).all())
    # the best so far, from the logits: every proposal differs from it within one square of the schedule's side
    model = net().double()
    best, accepted = seen[0], 0
    with torch.no_grad():
        margins = [m[:, 0] - m[:, 1:].amax(1) for m in (model(images) for images in seen)]
    lowest = margins[0]
    for query in range(1, 300):
        step = query - 1
        side = math.sqrt(0.3 / 2 ** sum(step > k for k in (10, 50, 200)) * 108)
        changed = (seen[query] != best).any(1)
        for row in range(4):
            places = changed[row].nonzero()
            assert len(places)
            extent = places.amax(0) - places.amin(0) + 1
            assert int(extent.max()) <= round(side)
            inside = signs[query, row][:, changed[row]]
            assert bool((inside == inside[:, :1]).all())
        better = margins[query] < lowest
        accepted += int(better.sum())
        lowest = torch.where(better, margins[query], lowest)
        best = torch.where(better[:, None, None, None], seen[query], best)
    assert accepted > 20


def test_no_proposal_is_what_there_is_already(net, pictures):
    """One channel: every other square would have the colour that is there."""
    x = pictures(3, channels=1, low=0.2, high=0.8)
    seen = tried(Square(eps=0.1, queries=200, p_init=0.05, fold=False), Confident(net(1), flat=True), x)
    # nothing is ever better on a flat model, so that the start stays the best
    assert bool((seen[1:] != seen[0]).flatten(2).any(2).all())


def test_every_place_occurs_and_every_image_has_its_own(net, pictures):
    x = pictures(80, channels=1, height=6, width=9, low=0.2, high=0.8)
    seen = tried(Square(eps=0.1, queries=12, p_init=1 / 54, rescale=False), Confident(net(1), flat=True), x)
    changed = (seen[1:] != seen[0]).flatten(2)
    assert bool((changed.sum(2) == 1).all())
    assert bool(changed.any(0).any(0).all())
    assert all(len(query.nonzero()[:, 1].unique()) > 20 for query in changed)


@pytest.mark.parametrize("region", [Center(4), Frame(0.3), RandomPatch((3, 2)), Mask(torch.eye(8))])
@pytest.mark.parametrize(("norm", "share"), [("linf", 1), ("l2", 0.9)])
def test_squares_are_drawn_where_the_region_is(norm, share, region, net, pictures):
    x = pictures(6, low=0.2, high=0.8)
    attack = Square(norm=norm, eps=0.05, queries=60, fold=False)
    seen = tried(attack, Confident(net(), flat=True), x, region=region)
    moved = (seen[1:] != seen[0]).flatten(2).any(2)
    assert float(moved.double().mean()) >= share


@quick
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    shape=st.sampled_from([(3, 8, 8), (1, 3, 11), (2, 11, 3), (1, 1, 4), (1, 1, 1), (1, 2, 2)]),
    eps=st.sampled_from([0.01, 0.2, 1.0]),
    p_init=st.sampled_from([0.01, 0.5, 1.0]),
)
def test_budget_and_box(pictures, seed, norm, shape, eps, p_init):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, math.prod(shape), dtype=torch.float64, generator=generator)
    model = Confident(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4)).double())
    model.inner[1].weight.data = weight
    x = pictures(3, *shape, dtype=torch.float64, seed=seed % 100)
    seen = tried(Square(norm=norm, eps=eps, queries=25, p_init=p_init), model, x)
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 1
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    sizes = torch.linalg.vector_norm((seen - x).flatten(2), ord=order, dim=2)
    assert float(sizes.max()) <= eps * (1 + 1e-9)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_mass_is_moved_to_the_filled_square(norm, pictures):
    """Away from the box every proposal is at the radius, and only two squares have changed their shares."""
    x = torch.full((5, 3, 16, 16), 0.5, dtype=torch.float64)
    problem = Problem(None, x, torch.zeros(5, dtype=torch.int64), False, None, Draws(torch.arange(5)))
    search = square._BumpSearch(problem, 0.4, norm)
    order = 2 if norm == "l2" else 1
    best = search.start()
    for share in (0.3, 0.1, 0.04):
        torch.testing.assert_close(
            torch.linalg.vector_norm((best - x).flatten(1), ord=order, dim=1),
            torch.full((5,), 0.4, dtype=torch.float64),
        )
        side = round(math.sqrt(share * 256))
        new = search.step(best, share)
        before, after = (best - x).double(), (new - x).double()
        if norm == "l2":
            # outside of both squares all has been scaled by one number
            ratio = after / before
            for row in range(5):
                common = ratio[row][before[row] != 0].round(decimals=9).mode().values
                untouched = ((ratio[row] - common).abs() < 1e-6) | (before[row] == 0)
                assert int((~untouched).any(0).sum()) <= 2 * side**2
        # one square has been emptied, except where the two overlap
        emptied = (before != 0) & (after == 0)
        assert bool(emptied.flatten(1).any(1).any())
        best = new


def slow_eta(side):
    """The paper's bump, square by square."""
    bump = torch.zeros(side, side, dtype=torch.float64)
    for start, rows, sign in ((0, side // 2, 1), (side // 2, side - side // 2, -1)):
        for i in range(rows):
            for j in range(side):
                for k in range(max(rows // 2, side // 2) + 1):
                    if abs(i - rows // 2) <= k and abs(j - side // 2) <= k:
                        bump[start + i, j] += sign / (k + 1) ** 2
    return bump


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 9])
def test_bump_is_the_papers(side):
    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    problem = Problem(None, x, torch.zeros(1, dtype=torch.int64), False, None, Draws(torch.arange(1)))
    search = square._BumpSearch(problem, 1.0, "l2")
    long, places = torch.tensor([[[side]]]), torch.arange(side)
    for turned in (False, True):
        bump = search._bump(places[:, None], places, long, long, torch.tensor([[[turned]]]))
        expected = slow_eta(side)
        torch.testing.assert_close(bump[0], expected.T if turned else expected)


def slow_step(delta, numbers, side, eps):
    """Algorithm 3 for one image, ``delta`` (C, H, W), squares cut out; `numbers` as `_BumpSearch.step` draws them."""
    channels, height, width = delta.shape
    (r1, r2), (c1, c2) = (
        [int(numbers[place] * (length - side + 1)) for place in places]
        for places, length in (((0, 2), height), ((1, 3), width))
    )
    filled, both = torch.zeros(2, height, width, dtype=torch.bool)
    filled[r1 : r1 + side, c1 : c1 + side] = both[r1 : r1 + side, c1 : c1 + side] = True
    both[r2 : r2 + side, c2 : c2 + side] = True
    bump = slow_eta(side)
    bump = (bump.T if numbers[4] < 0.5 else bump) / bump.norm()
    unused = max(eps**2 - float(delta.square().sum()), 0) / channels
    new = torch.where(both, 0.0, delta)
    for channel in range(channels):
        window = delta[channel][filled].view(side, side)
        if window.norm() > 0:
            window = window / window.norm()
        window = window + (-1 if numbers[5 + channel] < 0.5 else 1) * bump
        window = window / window.norm() * (unused + float(delta[channel][both].square().sum())) ** 0.5
        new[channel][filled] = window.flatten()
    return new / new.norm() * eps


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_l2_step_is_the_papers(share):
    generator = torch.Generator().manual_seed(0)
    x = torch.full((20, 3, 8, 9), 0.5, dtype=torch.float64)
    delta = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    delta = 0.25 * delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    problem = Problem(None, x, torch.zeros(20, dtype=torch.int64), False, None, Draws(torch.arange(20)))
    search = square._BumpSearch(problem, 0.4, "l2")
    numbers = square._BumpSearch(problem.take(torch.arange(20)), 0.4, "l2")._draw()
    out = search.step(x + delta, share) - x
    for row in range(20):
        expected = slow_step(delta[row], numbers[row].tolist(), max(3, round(math.sqrt(share * 72))), 0.4)
        torch.testing.assert_close(out[row], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targeted", [False, True])
def test_margins_fall_towards_what_gradients_reach(norm, targeted, net, pictures):
    """On a linear model the best point of the ball is known."""
    generator = torch.Generator().manual_seed(2)
    x = pictures(6, low=0.4, high=0.6, dtype=torch.float64)
    smooth = nn.functional.interpolate(
        torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator), scale_factor=2
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double()
    model[1].weight.data = smooth.flatten(1)
    model[1].bias.data = torch.tensor([50.0, 0.0], dtype=torch.float64)  # nobody succeeds
    eps = {"linf": 0.05, "l2": 0.3, "l1": 0.3}[norm]
    weight = smooth[1] - smooth[0]
    best = eps * {"linf": weight.abs().sum(), "l2": weight.norm(), "l1": weight.abs().max()}[norm]
    y = torch.zeros(6, dtype=torch.int64)
    result = Square(norm=norm, eps=eps, queries=400).run(model, x, y, targets=y + 1 if targeted else None, seed=0)
    with torch.no_grad():
        clean, gained = model(x), result.logits
    gain = (gained[:, 1] - gained[:, 0]) - (clean[:, 1] - clean[:, 0])
    assert not bool(result.success.any())
    assert bool((gain <= best * (1 + 1e-9)).all())
    assert bool((gain > {"linf": 0.7, "l2": 0.4, "l1": 0.3}[norm] * best).all()), (gain / best).tolist()


def test_success_near_that_of_gradients(net, pictures):
    model, x = net().double(), pictures(24, dtype=torch.float64)
    y = predict(model, x)
    found = Square(eps=4 / 255, queries=400).run(model, x, y, seed=0).success
    bound = PGD(eps=4 / 255, step_size=1 / 255, steps=40).run(model, x, y, seed=0).success
    assert 4 <= int(bound.sum()) <= 23
    assert int(found.sum()) >= 0.7 * int(bound.sum())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_query_counts(norm, net, pictures):
    model, x = net().double(), pictures(12, dtype=torch.float64)
    y = predict(model, x)
    eps = {"linf": 5 / 255, "l2": 0.3, "l1": 1.5}[norm]
    attack = Square(norm=norm, eps=eps, queries=60)
    result = attack.run(model, x, y, seed=0)
    assert bool((result.queries[~result.success] == 60).all())
    assert bool(result.success.any())
    assert int(result.queries[result.success].min()) < 60
    assert torch.equal(result.iterations, result.queries)
    assert result.backwards.tolist() == [0] * 12
    # a limit that is no part of the schedule: what was found within it is found again
    for cut in (
        attack.run(model, x, y, seed=0, max_queries=20),
        Square(norm=norm, eps=eps, queries=60, max_queries=20).run(model, x, y, seed=0),
    ):
        assert int(cut.queries.max()) == 20
        early = result.success & (result.queries <= 20)
        assert torch.equal(cut.success, early)
        assert torch.equal(cut.images[early], result.images[early])


def test_one_query_is_the_start(net, pictures):
    model, x = net().double(), pictures(4, low=0.1, high=0.9, dtype=torch.float64)
    result = Square(eps=0.1, queries=1).run(model, x, predict(model, x), seed=0)
    delta = result.images - x
    assert result.queries.tolist() == [1] * 4
    torch.testing.assert_close(delta.abs(), torch.full_like(x, 0.1))
    torch.testing.assert_close(delta, delta[:, :, :1].expand_as(delta))


def test_schedule():
    attack = Square(queries=10000, p_init=0.8)
    starts = {0: 0.8, 10: 0.8, 11: 0.4, 50: 0.4, 51: 0.2, 201: 0.1, 501: 0.05, 1001: 0.025}
    starts |= {2001: 0.0125, 4001: 0.8 / 128, 6001: 0.8 / 256, 8001: 0.8 / 512, 9999: 0.8 / 512}
    for step, share in starts.items():
        assert attack._share(step) == share
        assert Square(queries=5000, p_init=0.8, rescale=False)._share(step) == share
        assert Square(queries=20000, p_init=0.8)._share(2 * step) == share


def test_a_squares_side_never_leaves_the_image(net, pictures):
    x = pictures(2, channels=1, height=3, width=12, low=0.2, high=0.8)
    seen = tried(Square(eps=0.1, queries=12, p_init=1.0, rescale=False), Confident(net(1), flat=True), x)
    widths = (seen[1:] != seen[0]).any(2).any(2).sum(2)
    assert int(widths.max()) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "l0"}, "Square: norm must be one of linf, l2, l1, got 'l0'"),
        ({"eps": 8}, r"Square: eps must be in \[0, 1\] for linf, got 8"),
        ({"queries": 0}, "Square: queries must be at least 1, got 0"),
        ({"p_init": 0.0}, r"Square: p_init must be in \(0, 1\], got 0"),
        ({"p_init": 80}, r"Square: p_init .*got 80"),
        ({"objective": "best"}, "Square: objective must be one of"),
        ({"max_queries": 0}, "Square: max_queries must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Square(**fields)
