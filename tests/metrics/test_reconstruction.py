"""ReconstructionAccuracy against a loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.metrics import ReconstructionAccuracy

ROW = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 3), st.integers(0, 1))


@given(st.lists(ROW, max_size=40), st.integers(1, 6))
@settings(max_examples=40)
def test_counts_equal_a_loop(rows: list[tuple[int, ...]], batch: int) -> None:
    expected = np.zeros((2, 4, 3), dtype=int)
    for before, after, label, attack, victim in rows:
        expected[victim, attack] += (before == label, after == label, 1)
    metric = ReconstructionAccuracy(["first", "second"], ["clean", "pgd", "cw", "patch"])
    columns = torch.tensor(rows, dtype=torch.long).view(-1, 5)
    for part in columns.split(batch):
        metric.update(*part.unbind(1))
    np.testing.assert_array_equal(metric.counts, expected)


def test_empty_update_merge_and_reset() -> None:
    first, second = (ReconstructionAccuracy(["v"], ["clean", "pgd"]) for _ in range(2))
    first.update(*torch.empty(5, 0, dtype=torch.long))
    assert first.compute().sum() == 0
    one = torch.tensor([1]), torch.tensor([2]), torch.tensor([2]), torch.tensor([1]), torch.tensor([0])
    first.update(*one)
    second.update(*one)
    first.merge_state(second)
    assert first.compute().tolist() == [[[0, 0, 0], [0, 2, 2]]]
    first.reset()
    first.update(*one)
    assert first.compute()[0, 1].tolist() == [0, 1, 1]


def test_clean_rows_need_a_victim() -> None:
    metric = ReconstructionAccuracy(["first", "second"], ["clean", "pgd"])
    zeros = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"victim must be in \[0, 2\), got -1 .*once for each victim"):
        metric.update(zeros, zeros, zeros, zeros, torch.tensor([0, -1]))
    with pytest.raises(ValueError, match=r"attack must be in \[0, 2\), got 2"):
        metric.update(zeros, zeros, zeros, zeros + 2, zeros)
    with pytest.raises(TypeError, match="after must be a tensor of integers"):
        metric.update(zeros, zeros.float(), zeros, zeros, zeros)
    assert metric.counts.sum() == 0


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="victims must be one or more different names"):
        ReconstructionAccuracy(["v", "v"], ["clean"])
