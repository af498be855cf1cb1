"""One-pixel attack: its bookkeeping exactly, its search against all pixels and colours of a small image."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_adv.attacks import Frame, Mask, OnePixel, RandomPatch, RandomPixels, onepixel
from lit_adv.attacks.randomness import Draws

quick = settings(max_examples=15)


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


class Confident(nn.Module):
    """Never leaves class 0."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + torch.tensor([1e3, 0, 0, 0], dtype=x.dtype)


@quick
@given(
    seed=st.integers(0, 10**6),
    pixels=st.integers(1, 4),
    shape=st.sampled_from([(3, 8, 8), (1, 5, 9), (2, 9, 4)]),
    region=st.sampled_from([None, Frame(0.3), RandomPatch(3), RandomPixels(0.2)]),
)
def test_at_most_so_many_pixels_differ(net, pictures, seed, pixels, shape, region):
    model, x = net(shape[0]), pictures(3, *shape)
    y = predict(model, x)
    result = OnePixel(pixels=pixels, population=6, generations=2).run(model, x, y, seed=seed, region=region)
    assert int(result.norms["l0"].max()) <= pixels
    assert int(result.norms["l0"].max()) >= 1


@pytest.mark.parametrize("targeted", [False, True])
def test_query_count(targeted, net, pictures):
    model, x = Confident(net()), pictures(4)
    y = torch.zeros(4, dtype=torch.int64)
    attack = OnePixel(population=7, generations=3)
    for fields, expected in (({}, 28), ({"generations": 0}, 7), ({"max_queries": 12}, 12), ({"max_queries": 3}, 3)):
        changed = dataclasses.replace(attack, **fields)
        result = changed.run(model, x, y, targets=y + 1 if targeted else None, seed=1)
        assert result.queries.tolist() == [expected] * 4
        assert result.backwards.tolist() == [0] * 4
        assert not bool(result.success.any())
    assert attack.run(model, x, y, seed=1, max_queries=9).queries.tolist() == [9] * 4
    assert attack.cost(model, x).forwards == 28


def test_rows_leave_with_their_first_success(net, pictures):
    model, x = net().double(), pictures(16, dtype=torch.float64)
    y = predict(model, x)
    result = OnePixel(population=10, generations=12).run(model, x, y, seed=3)
    assert bool((result.queries % 10 == 0).all())
    assert bool((result.queries[~result.success] == 130).all())
    assert len(set(result.queries[result.success].tolist())) > 1
    assert int(result.queries[result.success].min()) == 10
    # the limit cuts no success that was found within it
    cut = OnePixel(population=10, generations=12).run(model, x, y, seed=3, max_queries=40)
    early = result.success & (result.queries <= 40)
    assert torch.equal(cut.success, early)
    assert torch.equal(cut.images[early], result.images[early])


def test_the_authors_rule_goes_on_to_a_confident_success(net, pictures):
    model, x = net().double(), pictures(12, dtype=torch.float64)
    model.head.weight.data.mul_(4)  # which makes it sure of itself
    model.head.bias.data.mul_(4)
    y = predict(model, x)
    targets = (y + 1) % 4
    for goal in (None, targets):
        first = OnePixel(pixels=5, population=20, generations=10).run(model, x, y, targets=goal, seed=0)
        long = OnePixel(pixels=5, population=20, generations=10, stop_at_success=False).run(
            model, x, y, targets=goal, seed=0
        )
        assert bool((long.success >= first.success).all())
        assert bool((long.queries >= first.queries).all())
        assert int(long.queries.sum()) > int(first.queries.sum())
        probability = long.logits.softmax(1).gather(1, (y if goal is None else targets)[:, None])[:, 0]
        enough = probability < 0.05 if goal is None else probability > 0.9
        assert bool(enough[long.queries < 220].all())
        assert bool((long.queries < 220).any())
        assert bool((long.queries[~enough] == 220).all())


def test_a_child_replaces_its_own_parent_only_where_it_is_better(net, pictures, monkeypatch):
    seen = []
    judged = onepixel._judged
    monkeypatch.setattr(
        onepixel, "_judged", lambda part, genes, near: seen.append((genes, *judged(part, genes, near))) or seen[-1][1:]
    )
    mutants = OnePixel._mutants
    parents = []
    monkeypatch.setattr(
        OnePixel,
        "_mutants",
        lambda self, draws, genes, shape: parents.append(genes) or mutants(self, draws, genes, shape),
    )
    model, x = Confident(net().double()), pictures(3, dtype=torch.float64)
    attack = OnePixel(population=9, generations=6)
    out = attack(model, x, torch.zeros(3, dtype=torch.int64), seed=0)
    population, odds = seen[0][:2]
    replaced = 0
    for generation, (children, fitness, hit) in enumerate(seen[1:]):
        torch.testing.assert_close(parents[generation], population, rtol=0, atol=0)
        assert not bool(hit.any())
        for row in range(3):
            for k in range(9):
                if fitness[row, k] < odds[row, k]:
                    population[row, k], odds[row, k] = children[row, k], fitness[row, k]
                    replaced += 1
    assert 0 < replaced < 3 * 9 * 6
    for row in range(3):  # and the best of the last population comes back
        i, j, *colour = population[row, odds[row].argmin(), 0].tolist()
        expected = x[row].clone()
        expected[:, min(int(i), 7), min(int(j), 7)] = torch.tensor(colour, dtype=torch.float64)
        torch.testing.assert_close(out[row], expected, rtol=0, atol=0)


def test_mutants_are_one_plus_half_the_difference_of_two_others():
    genes = torch.rand(2, 11, 1, 5, dtype=torch.float64) * 0.2 + 0.4
    one, two, three = onepixel._three_others(Draws(torch.tensor([4, 5])), 11)
    mutants = OnePixel()._mutants(Draws(torch.tensor([4, 5])), genes, torch.Size((2, 3, 8, 8)))
    for row in range(2):
        for k in range(11):
            a, b, c = (int(other[row, k]) for other in (one, two, three))
            assert len({k, a, b, c}) == 4
            torch.testing.assert_close(mutants[row, k], genes[row, a] + 0.5 * (genes[row, b] - genes[row, c]))


def test_all_triples_of_others_occur():
    one, two, three = onepixel._three_others(Draws(torch.arange(4000)), 5)
    triples = set(zip(one[:, 0].tolist(), two[:, 0].tolist(), three[:, 0].tolist(), strict=True))
    assert len(triples) == 4 * 3 * 2
    assert max(torch.bincount(one[:, 0])[1:].tolist()) < 1200


def test_the_first_generation_is_spread_over_the_allowed_pixels(net, pictures):
    model, x = net(), pictures(1)
    mask = torch.zeros(8, 8)
    mask[1, 2:5] = mask[6, 7] = 1
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    OnePixel(population=800, generations=0, fold=False)(
        model, x, torch.tensor([0]), targets=predict(model, x), seed=0, region=Mask(mask)
    )
    changed = (torch.cat(seen)[-800:] != x).any(1).flatten(1).double().mean(0).view(8, 8)
    assert bool((changed[mask == 0] == 0).all())
    assert bool(((changed[mask == 1] - 0.25).abs() < 0.06).all())


class Shifted(nn.Module):
    """Two classes, the first ahead by ``shift``."""

    def __init__(self, weight, shift):
        super().__init__()
        self.weight, self.shift = weight, shift

    def forward(self, x):
        margin = (x * self.weight).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(margin), margin - self.shift], 1)


@pytest.mark.parametrize(("share", "least", "most"), [(0.8, 7, 8), (1.0001, 0, 0)])
def test_finds_what_all_pixels_and_colours_offer(share, least, most, pictures):
    """On a linear model the best change of a pixel is known: every channel at 0 or 1."""
    x = pictures(8, height=6, width=6, dtype=torch.float64)
    weight = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    margin = (x * weight).sum((1, 2, 3))
    best = torch.maximum(weight * (1 - x), -weight * x).sum(1).flatten(1).amax(1)
    attack, found = OnePixel(population=100, generations=40), 0
    for i in range(8):
        model = Shifted(weight, margin[i] + share * best[i])
        found += int(attack.run(model, x[i : i + 1], torch.tensor([0]), seed=torch.tensor([i])).success)
    assert least <= found <= most


def test_a_success_that_is_no_improvement_counts(pictures):
    """Another class may win although the label's probability rises."""

    class Three(nn.Module):
        def forward(self, x):
            value = x.flatten(1).amax(1)
            odd = torch.tensor([[0.36, 0.34, 0.30]]).expand(len(x), -1)
            won = torch.tensor([[0.45, 0.55, 0.0001]]).expand(len(x), -1)
            return torch.where((value > 0.9)[:, None], won, odd).log()

    x = pictures(4, high=0.2)
    result = OnePixel(population=20, generations=3).run(Three(), x, torch.zeros(4, dtype=torch.int64), seed=0)
    assert bool(result.success.all())


def test_odds_are_ordered_as_the_probability_and_do_not_saturate():
    logits = torch.tensor([[50.0, 0, 1], [60.0, 0, 1], [0.0, 0, 1], [-50.0, 0, 1], [-60.0, 0, 1]])
    zeros = torch.zeros(5, dtype=torch.int64)
    odds = onepixel._odds(logits, zeros, False)
    assert odds.argsort().tolist() == [4, 3, 2, 0, 1]
    assert torch.equal(onepixel._odds(logits, zeros, True), -odds)
    probability = logits[2].softmax(0)[0]
    torch.testing.assert_close(odds[2], (probability / (1 - probability)).log())
    assert onepixel._odds(torch.full((1, 3), torch.nan), zeros[:1], False).tolist() == [float("inf")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixels": 0}, "OnePixel: pixels must be at least 1, got 0"),
        ({"population": 3}, "OnePixel: population must be at least 4 .*got 3"),
        ({"generations": -1}, "OnePixel: generations must be at least 0, got -1"),
        ({"max_queries": 0}, "OnePixel: max_queries must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OnePixel(**fields)
