"""What the metrics share: two processes must give what one gives."""

import pytest
import torch

from lit_adv.metrics import (
    FoolingRate,
)
from lit_adv.metrics.checks import check_indices


def test_any_integer_dtype_passes() -> None:
    columns = {"a": torch.tensor([0, 4], dtype=torch.uint8), "b": torch.tensor([0, 1], dtype=torch.int32)}
    check_indices("Owner", columns, {"a": (5, "remedy"), "b": (2, "remedy")})
    with pytest.raises(ValueError, match=r"Owner: a must be in \[0, 4\), got 4 \(remedy\)"):
        check_indices("Owner", columns, {"a": (4, "remedy")})


def test_reset_under_inference_mode_then_counted_outside() -> None:
    """Lightning resets in a validation loop, under inference mode, what a training loop may count on."""
    metric = FoolingRate()
    with torch.inference_mode():
        metric.reset()
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert metric.compute() == 0.5
