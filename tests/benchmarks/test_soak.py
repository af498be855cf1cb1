"""The soak: a short run, and that its verdict notices what grows."""

import dataclasses

import pytest

from benchmarks import soak

STEADY = soak.Sample(seconds=0, rss=500 * 2**20, files=10, threads=4, tensors=99, cache=1000, step=0.01)


@pytest.mark.long
def test_four_rounds_are_run_and_judged(tmp_path, capsys):
    samples = soak.soak(0, 0.001, tmp_path, images=64)
    assert len(samples) == 4
    assert len({each.cache for each in samples}) == 1
    assert samples[0].cache > 64 * 256
    assert "RSS" in capsys.readouterr().out
    # a thread or a file that comes late is the machine's, a tensor is ours
    assert not any("tensors" in word or "cache" in word for word in soak.verdict(samples))


def test_a_steady_run_is_said_to_be_one():
    assert soak.verdict([STEADY] * 8) == []


@pytest.mark.parametrize(
    ("field", "step"),
    [("rss", 20 * 2**20), ("files", 1), ("threads", 1), ("tensors", 1), ("cache", 1), ("step", 0.003)],
)
def test_what_grows_from_round_to_round_is_named(field, step):
    samples = [dataclasses.replace(STEADY, **{field: getattr(STEADY, field) + step * n}) for n in range(8)]
    (word,) = soak.verdict(samples)
    assert "grew" in word or "took" in word
