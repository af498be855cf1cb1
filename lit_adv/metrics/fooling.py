"""How often an attack changes a prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_indices, ratio_dtype


class FoolingRate(Metric):
    """Share of images whose predicted class an attack changed (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401).

    The true label plays no part: an image that was classified wrongly before counts as soon as its prediction changes.
    Nothing seen yet gives nan.

    Args:
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    changed: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("changed", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, before_pred: Tensor, after_pred: Tensor) -> None:
        """Count a batch; an empty one is fine.

        Args:
            before_pred: (B,) integers, predicted class of the clean images.
            after_pred: (B,) integers, predicted class of the same images after the attack.

        Raises:
            TypeError: If an argument is not a tensor of integers.
            ValueError: If an argument is not a vector or the lengths differ.
        """
        check_indices("FoolingRate", {"before_pred": before_pred, "after_pred": after_pred}, {})
        self.changed = self.changed + (before_pred != after_pred).sum()
        self.total = self.total + len(before_pred)

    def compute(self) -> Tensor:
        """Return the fooling rate, a scalar in [0, 1]."""
        dtype = ratio_dtype(self.total.device)
        return self.changed.to(dtype) / self.total.to(dtype)
