"""Newcombe's interval: published examples, a plain formula, and what must hold for every table."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from lit_adv.metrics import median_interval, paired_difference


def plain(a, b, c, d, confidence=0.95, factor=1.0):
    """Method 10 of Newcombe 1998, written out from the paper for one table; the factor as in MOVER."""
    n, z = a + b + c + d, NormalDist().inv_cdf((1 + confidence) / 2)

    def wilson(k):
        root = z * math.sqrt(z * z + 4 * k * (1 - k / n))
        return (2 * k + z * z - root) / (2 * (n + z * z)), (2 * k + z * z + root) / (2 * (n + z * z))

    p, q = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = wilson(a + b), wilson(a + c)
    under = (a + b) * (c + d) * (a + c) * (b + d)
    over = a * d - b * c
    over = over if over <= 0 else over - n / 2 if over > n / 2 else 0
    phi = over / under**0.5 if under else 0
    below, above = (p - l1, factor * (u2 - q)), (u1 - p, factor * (q - l2))
    sides = [math.sqrt(max(0, s * s - 2 * phi * s * t + t * t)) for s, t in (below, above)]
    return p - factor * q - sides[0], p - factor * q + sides[1]


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # the 21 children of Bentur et al. 2009, the example of R's contingencytables
        ((1, 1, 7, 12), -0.507, -0.026),
        # Altman et al. 2000, Statistics with Confidence, table 6.2
        ((14, 5, 0, 22), 0.011, 0.226),
    ],
)
def test_published_examples(table, low, high):
    a, b, c, d = table
    found = paired_difference(a, a + b, a + c, a + b + c + d)
    assert found.value == pytest.approx((b - c) / sum(table))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)


tables = st.tuples(*[st.integers(0, 400)] * 4).filter(lambda table: sum(table) > 0)


@given(tables, st.floats(0.5, 0.999), st.floats(0, 2))
def test_any_table(table, confidence, factor):
    a, b, c, d = table
    n = sum(table)
    found = paired_difference(a, a + b, a + c, n, confidence, factor)
    low, high = plain(a, b, c, d, confidence, factor)
    # the square root of what is left of a cancellation
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-7)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx((a + b) / n - factor * (a + c) / n)
    turned = paired_difference(a, a + c, a + b, n, confidence)
    straight = paired_difference(a, a + b, a + c, n, confidence)
    assert (turned.low, turned.high) == pytest.approx((-straight.high, -straight.low), abs=1e-9)
    assert straight.low >= -1 - 1e-9
    assert straight.high <= 1 + 1e-9


def test_it_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.3, 0.12, 0.05, 0.53])
    inside = 0
    for _ in range(1500):
        drawn = torch.multinomial(shares, 60, replacement=True, generator=generator)
        a, b, c, _ = drawn.bincount(minlength=4).tolist()
        found = paired_difference(a, a + b, a + c, 60)
        inside += found.low <= 0.07 <= found.high
    assert 0.93 < inside / 1500 < 0.985


def test_the_median_lies_between_order_statistics():
    values = torch.tensor([5.0, 1.0, 4.0, 2.0])
    assert median_interval(values) == (3.0, 1.0, 5.0)
    many = torch.randperm(1001, generator=torch.Generator().manual_seed(0)).double()
    median, low, high = median_interval(many)
    assert median == 500
    # what the binomial distribution says of the ranks
    assert binom.cdf(high - 1, 1001, 0.5) - binom.cdf(low, 1001, 0.5) >= 0.95
    assert binom.cdf(high - 5, 1001, 0.5) - binom.cdf(low + 4, 1001, 0.5) < 0.95
    assert median_interval(torch.tensor([2.5])) == (2.5, 2.5, 2.5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="paired_difference: both, first, second and images must be counts of one"):
        paired_difference(5, 4, 6, 10)
    with pytest.raises(ValueError, match="paired_difference: both, first, second and images"):
        paired_difference(0, 0, 0, 0)
    with pytest.raises(ValueError, match="median_interval: values must hold at least one number"):
        median_interval(torch.zeros(0))
