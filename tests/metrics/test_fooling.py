"""FoolingRate against counting by hand."""

import pytest
import torch

from lit_adv.metrics import FoolingRate


def test_share_of_changed_predictions_over_batches() -> None:
    metric = FoolingRate()
    metric.update(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]))
    metric.update(torch.tensor([5, 5, 5, 5]), torch.tensor([1, 1, 5, 1]))
    assert metric.compute().item() == 4 / 7


def test_nothing_seen_is_nan_and_reset_forgets() -> None:
    metric = FoolingRate()
    empty = torch.empty(0, dtype=torch.long)
    metric.update(empty, empty)
    assert metric.compute().isnan()
    metric.update(torch.tensor([1]), torch.tensor([0]))
    assert metric.compute() == 1
    metric.reset()
    metric.update(torch.tensor([1]), torch.tensor([1]))
    assert metric.compute() == 0


def test_bad_input_is_named() -> None:
    metric = FoolingRate()
    with pytest.raises(TypeError, match=r"FoolingRate: before_pred must be a tensor of integers, got torch.float32"):
        metric.update(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"after_pred must be as long as before_pred, got 1 and 2"):
        metric.update(torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"before_pred must have shape \(B,\), got \(1, 2\)"):
        metric.update(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
