"""Noise of a given size: how large it is, how it is distributed, how it compares with the worst direction."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from torch import nn

from lit_adv.attacks import FGM, PGD, Mask, RandomNoise, SemiRandomNoise
from lit_adv.attacks.noise import _stretch
from lit_adv.attacks.norms import norm

quick = settings(max_examples=25)
seeds = st.integers(0, 10**6)
BLIND = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))  # never called


def noise(x, seed=0, region=None, **fields):
    labels = torch.zeros(len(x), dtype=torch.int64)
    return RandomNoise(**fields)(BLIND, x, labels, seed=torch.arange(len(x)) + seed, region=region) - x


def predict(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


@quick
@given(
    seed=seeds,
    budget=st.sampled_from(
        [("linf", 0.03), ("linf", 0.4), ("l2", 0.2), ("l2", 3.0), ("l1", 0.5), ("l1", 20.0), ("l0", 5)]
    ),
    masked=st.booleans(),
)
def test_noise_has_exactly_its_norm_although_it_is_clipped(pictures, seed, budget, masked):
    name, eps = budget
    x = (2 * pictures(5, seed=seed, dtype=torch.float64) - 0.5).clamp(0, 1)  # half of the pixels are at an end
    region = Mask(torch.arange(64).view(8, 8) % 3 > 0) if masked else None
    delta = noise(x, seed, region, norm=name, eps=eps)
    torch.testing.assert_close(norm(name).size(delta), torch.full((5,), float(eps), dtype=x.dtype), rtol=1e-9, atol=0)
    assert float((x + delta).min()) >= 0
    assert float((x + delta).max()) <= 1
    if masked:
        assert not bool(delta[:, :, torch.arange(64).view(8, 8) % 3 == 0].any())


@pytest.mark.parametrize(("name", "eps"), [("l2", 1e3), ("l1", 1e4), ("linf", 0.9)])
def test_noise_that_the_box_has_no_room_for_fills_it(name, eps, pictures):
    x = pictures(4, low=0.3, high=0.7, dtype=torch.float64)
    out = x + noise(x, norm=name, eps=eps)
    assert bool(((out < 1e-12) | (out > 1 - 1e-12)).all())


@quick
@given(seed=seeds, order=st.sampled_from([1, 2, math.inf]), eps=st.floats(1e-3, 20), gaps=st.booleans())
def test_scale_agrees_with_bisection(seed, order, eps, gaps):
    generator = np.random.default_rng(seed)
    length, room = generator.random((4, 30)), generator.random((4, 30)) * generator.integers(0, 2, (4, 30))
    if gaps:
        length[:, ::3] = 0
    scales = _stretch(torch.from_numpy(length), torch.from_numpy(room), eps, order)
    for scale, a, b in zip(scales.tolist(), length, room, strict=True):
        most = np.linalg.norm(b * (a > 0), order)
        found = np.linalg.norm(np.minimum(scale * a, b), order)
        assert found == pytest.approx(min(eps, most), rel=1e-9)
        if eps < most:  # and no smaller one has that size
            assert np.linalg.norm(np.minimum(scale * (1 - 1e-6) * a, b), order) < found


def test_l2_noise_is_uniform_on_the_sphere():
    x = torch.full((3000, 1, 2, 3), 0.5, dtype=torch.float64)
    direction = noise(x, norm="l2", eps=0.3).flatten(1) / 0.3
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(3000, dtype=x.dtype))
    assert float(direction.mean(0).abs().max()) < 5 / math.sqrt(6 * 3000)
    for column in direction.T:  # the square of a coordinate is Beta(1/2, (d - 1) / 2)
        assert kstest(column.square().numpy(), beta(0.5, 2.5).cdf).pvalue > 1e-3
    correlation = torch.corrcoef(direction.T) - torch.eye(6)
    assert float(correlation.abs().max()) < 5 / math.sqrt(3000)


def test_linf_noise_is_uniform_on_the_cube():
    delta = noise(torch.full((3000, 1, 2, 3), 0.5, dtype=torch.float64), norm="linf", eps=0.2).flatten(1) / 0.2
    largest = delta.abs().argmax(1)
    assert bool(((largest.bincount(minlength=6) - 500).abs() < 5 * math.sqrt(500)).all())
    rest = delta.scatter(1, largest[:, None], math.nan).flatten()
    assert kstest((rest[~rest.isnan()] / 2 + 0.5).numpy(), "uniform").pvalue > 0.01


def test_noise_calls_no_model(pictures):
    class Uncalled(nn.Module):
        def forward(self, x):
            raise AssertionError

    RandomNoise()(Uncalled(), pictures(3), torch.zeros(3, dtype=torch.int64))


# semi-random noise


@pytest.mark.parametrize("dimension", [192, 10**6])
def test_all_dimensions_give_the_gradient_s_direction(dimension, net, pictures):
    model, x = net().double(), pictures(4, low=0.4, high=0.6, dtype=torch.float64)
    y = predict(model, x)
    one = SemiRandomNoise(eps=0.2, dimension=dimension, steps=1)(model, x, y, seed=1)
    torch.testing.assert_close(one, FGM(eps=0.2)(model, x, y), rtol=0, atol=1e-12)
    several = SemiRandomNoise(eps=0.4, dimension=dimension, steps=5, step_size=0.15)(model, x, y, seed=1)
    pgd = PGD(norm="l2", eps=0.4, step_size=0.15, steps=5, random_start=False)(model, x, y)
    torch.testing.assert_close(several, pgd, rtol=0, atol=1e-12)


@quick
@given(seed=seeds, dimension=st.integers(1, 12), eps=st.floats(0.01, 0.2))
def test_all_targets_of_a_seed_share_one_subspace_of_that_dimension(linear, seed, dimension, eps):
    model, x, y = linear(seed, classes=15, count=1)
    x, targets = x.expand(15, -1, -1, -1).clone(), torch.arange(15)
    attack = SemiRandomNoise(eps=eps, dimension=dimension, steps=1)
    same = torch.full((15,), seed)
    delta = (attack(model, x, y.expand(15), targets=targets, seed=same) - x).flatten(1)
    torch.testing.assert_close(delta.norm(dim=1), torch.full((15,), eps, dtype=x.dtype), rtol=1e-9, atol=0)
    singular = torch.linalg.svdvals(delta)
    assert bool((singular[dimension:] < 1e-9).all())
    if dimension <= 6:
        assert float(singular[dimension - 1]) > 1e-6


def test_its_share_of_the_slope_is_that_of_a_random_subspace(linear):
    """cos^2 of the angle between w and a random subspace of dimension m is Beta(m / 2, (d - m) / 2)."""
    model, x, y = linear(3, count=1, channels=1, height=4, width=5)
    count = 1500
    w = (model.weight[1] - model.weight[0]).detach() * (1 - 2 * float(y))
    x, y = x.expand(count, -1, -1, -1).clone(), y.expand(count).clone()
    for dimension in (1, 4):
        out = SemiRandomNoise(eps=0.1, dimension=dimension, steps=2)(model, x, y, seed=torch.arange(count))
        cosine = ((out - x).flatten(1) @ w) / (0.1 * w.norm())
        assert float(cosine.min()) >= 0
        law = beta(dimension / 2, (20 - dimension) / 2)
        assert kstest(cosine.square().numpy(), law.cdf).pvalue > 0.01


def test_the_subspace_lies_in_the_region(net, pictures):
    model, x = net().double(), pictures(6, low=0.4, high=0.6, dtype=torch.float64)
    y = predict(model, x)
    few = torch.zeros(8, 8)
    few[2, 2:4] = 1  # six elements, fewer than the subspace has dimensions
    for mask in (few, (torch.arange(64).view(8, 8) % 2).float()):
        out = SemiRandomNoise(eps=0.2, dimension=20, steps=1)(model, x, y, region=Mask(mask), seed=1)
        torch.testing.assert_close((out - x).flatten(1).norm(dim=1), torch.full((6,), 0.2, dtype=x.dtype))
    torch.testing.assert_close(
        SemiRandomNoise(eps=0.2, dimension=20, steps=1)(model, x, y, region=Mask(few), seed=1),
        FGM(eps=0.2)(model, x, y, region=Mask(few)),
        rtol=0,
        atol=1e-9,
    )


def test_between_random_noise_and_the_gradient(net, pictures):
    model, x = net(), pictures(60)
    y = predict(model, x)

    def fooled(attack):
        return int(attack.run(model, x, y, seed=1).success.sum())

    counts = [fooled(RandomNoise(norm="l2", eps=1.0))]
    counts += [fooled(SemiRandomNoise(eps=1.0, dimension=dimension)) for dimension in (10, 192)]
    assert counts == sorted(counts)
    assert len(set(counts)) == 3
    result = SemiRandomNoise(steps=7).run(model, x, y)
    assert result.forwards.tolist() == result.backwards.tolist() == result.iterations.tolist() == [7] * 60


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomNoise(eps=8), r"RandomNoise: eps must be in \[0, 1\] for linf, got 8"),
        (lambda: RandomNoise(norm="l3"), "RandomNoise: norm must be one of linf, l2, l1, l0, got 'l3'"),
        (lambda: RandomNoise(norm="l0", eps=-1), "RandomNoise: eps must be at least 0"),
        (lambda: SemiRandomNoise(eps=-1), "SemiRandomNoise: eps must be"),
        (lambda: SemiRandomNoise(dimension=0), "SemiRandomNoise: dimension must be at least 1, got 0"),
        (lambda: SemiRandomNoise(steps=0), "SemiRandomNoise: steps must be at least 1, got 0"),
        (lambda: SemiRandomNoise(step_size=-1), "SemiRandomNoise: step_size must be at least 0"),
        (lambda: SemiRandomNoise(objective="cw"), "SemiRandomNoise: objective must be one of"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
