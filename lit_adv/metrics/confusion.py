"""The count of recognised against true attack classes, which all recognition scores are read from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_indices, check_names


class ConfusionCounts(Metric):
    """Counts images by true and recognised attack class; what is computed of them a subclass says.

    Args:
        classes: Names of the A attack classes, in the order of their indices.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Attributes:
        confusion: (A, A) int64, row: true class, column: recognised class.

    Raises:
        ValueError: If `classes` repeats a name.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    confusion: Tensor

    def __init__(self, classes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = check_names(type(self).__name__, "classes", classes)
        size = len(self.classes)
        self.add_state("confusion", torch.zeros(size, size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, attack: Tensor) -> None:
        """Count a batch; an empty one is fine.

        Args:
            prediction: (B,) integers in [0, A), the recognised attack class.
            attack: (B,) integers in [0, A), the attack class that made the image.

        Raises:
            TypeError: If an argument is not a tensor of integers.
            ValueError: If an argument is not a vector, the lengths differ or an index is out of range.
        """
        size = len(self.classes)
        remedy = f"indices into the classes {', '.join(self.classes)}"
        columns = {"prediction": prediction, "attack": attack}
        check_indices(type(self).__name__, columns, dict.fromkeys(columns, (size, remedy)))
        cells = attack.long() * size + prediction.long()
        self.confusion = self.confusion + torch.bincount(cells, minlength=size * size).view(size, size)
