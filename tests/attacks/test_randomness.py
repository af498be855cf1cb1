"""The counter-based generator against SplitMix64 in plain Python, and as a source of uniform and normal numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from lit_adv.attacks.randomness import Draws, checksum, mix, mix_int, row_seeds

quick = settings(max_examples=50)
GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def finalise(word):
    word &= MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def signed(word):
    word &= MASK
    return word - (1 << 64) if word >> 63 else word


def test_published_outputs_of_splitmix64():
    """The first three for seed 0, as the reference implementation in C gives them."""
    states = torch.tensor([signed(GOLDEN * i) for i in (1, 2, 3)])
    assert mix(states).tolist() == [signed(w) for w in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)]


@quick
@given(words=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_mix_is_the_finaliser(words):
    assert mix(torch.tensor(words)).tolist() == [signed(finalise(word)) for word in words]


@quick
@given(seed=st.integers(-(2**63), 2**63 - 1), draw=st.integers(0, 5))
def test_uniform_numbers_are_hashes_of_seed_draw_and_element(seed, draw):
    stream = finalise(seed + GOLDEN * (draw + 1))
    expected = [(finalise(stream + GOLDEN * element) >> 40) / 2**24 for element in range(1, 7)]
    draws = Draws(torch.tensor([seed, seed ^ 1]), draw)
    assert draws.uniform((2, 3))[0].flatten().tolist() == expected
    assert draws.draw == draw + 1
    expected = [(finalise(stream + GOLDEN * element) >> 11) % 97 for element in range(1, 7)]
    assert Draws(torch.tensor([seed]), draw).integers((6,), 97)[0].tolist() == expected


def test_uniform():
    numbers = Draws(torch.arange(200)).uniform((500,), torch.float64).flatten()
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert kstest(numbers.numpy(), "uniform").pvalue > 0.01
    one = Draws(torch.tensor([123])).uniform((100_000,)).flatten()
    assert kstest(one.double().numpy(), "uniform").pvalue > 0.01


def test_normal():
    numbers = Draws(torch.arange(200)).normal((500,), torch.float64).flatten()
    assert bool(torch.isfinite(numbers).all())
    assert kstest(numbers.numpy(), "norm").pvalue > 0.01
    assert float((numbers.abs() > 4).double().mean()) > 0


def test_integers():
    numbers = Draws(torch.arange(100)).integers((300,), 7)
    assert numbers.dtype == torch.int64
    assert chisquare(np.bincount(numbers.flatten().numpy(), minlength=7)).pvalue > 0.01
    assert Draws(torch.arange(5)).integers((3,), 1).tolist() == [[0] * 3] * 5


def test_rows_draws_and_elements_are_not_correlated():
    draws = Draws(torch.arange(40))
    first, second = (draws.uniform((1000,), torch.float64) for _ in range(2))
    matrix = torch.corrcoef(torch.cat([first, second])) - torch.eye(80)
    assert float(matrix.abs().max()) < 5 / 1000**0.5
    shifted = torch.corrcoef(torch.stack([first[:, :-1].flatten(), first[:, 1:].flatten()]))[0, 1]
    assert abs(float(shifted)) < 4 / 40_000**0.5
    assert first.unique().numel() > 0.99 * first.numel()


def test_streams_do_not_depend_on_their_neighbours():
    seeds = torch.tensor([5, -1, 2**62, 0])
    whole = Draws(seeds)
    whole.uniform((3,))
    part = whole.take(torch.tensor([2, 0]))
    assert torch.equal(part.normal((2, 2)), whole.normal((2, 2))[[2, 0]])
    assert torch.equal(part.uniform((4,)), whole.uniform((4,))[[2, 0]])
    # a longer draw begins with the shorter one
    assert torch.equal(Draws(seeds).uniform((9,))[:, :4], Draws(seeds).uniform((4,)))


def test_row_seeds(pictures):
    x = pictures(5)
    assert row_seeds(x, 3).unique().numel() == 5
    assert torch.equal(row_seeds(x, 3), row_seeds(x.flip(0), 3).flip(0))
    assert torch.equal(row_seeds(x, 3), row_seeds(x.to(memory_format=torch.channels_last), 3))
    assert torch.equal(row_seeds(x, 3)[:2], row_seeds(x[:2], 3))
    assert torch.equal(row_seeds(x, 3), row_seeds(x.double(), 3))
    assert not (row_seeds(x, 3) == row_seeds(x, 4)).any()
    given_seeds = torch.tensor([1, 1, 2, -5, 0])
    assert torch.equal(row_seeds(x, given_seeds), row_seeds(x.flip(0), given_seeds))
    assert row_seeds(x, given_seeds).unique().numel() == 4
    assert row_seeds(x, None).unique().numel() == 5
    assert not (row_seeds(x, None) == row_seeds(x, None)).any()
    for seed in (-1, 0, 2**63, -(2**80), np.int64(7)):
        assert row_seeds(x, seed).dtype == torch.int64
    for bad in (torch.zeros(4, dtype=torch.int64), torch.zeros(5), torch.zeros(5, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="seed must be an int, None or a LongTensor of shape"):
            row_seeds(x, bad)


def test_checksum():
    x = torch.zeros(4, 1, 2, 2)
    x[1, 0, 0, 0] = x[2, 0, 0, 1] = 1e-8
    x[3] = -0.0
    sums = checksum(x)
    assert sums[:3].unique().numel() == 3
    assert sums[3] == sums[0]
    swapped = torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert checksum(swapped) != checksum(swapped.flip(3))
    bits = int(np.float32(0.25).view(np.int32))
    expected = sum(finalise(bits + GOLDEN * place) for place in range(1, 5))
    assert checksum(torch.full((1, 1, 2, 2), 0.25)).tolist() == [signed(expected)]


def test_mix_int():
    assert len({mix_int(1, 2), mix_int(2, 1), mix_int(1), mix_int(1, 2, 0), mix_int(), mix_int(2**64 + 1, 2)}) == 5
    word = finalise((0 ^ 1) + GOLDEN)
    assert mix_int(1, 2) == signed(finalise((word ^ 2) + GOLDEN))
