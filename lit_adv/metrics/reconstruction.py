"""How much of a classifier's accuracy a reconstruction gives back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_indices, check_names


class ReconstructionAccuracy(Metric):
    """Correct predictions per victim and attack class, before and after reconstruction.

    Counts, not rates, so that they can be added in any way afterwards: Souri et al. 2021 (REDRL, arXiv:2106.11280,
    Table 4) show `counts[..., 0] / counts[..., 2]` and `counts[..., 1] / counts[..., 2]`. A cell never seen is 0, 0, 0.
    Clean images belong to no victim: whoever wants them in the table counts them once for each victim, with that
    victim's predictions.

    Args:
        victims: Names of the V victims, in the order of their indices.
        classes: Names of the A attack classes, in the order of their indices.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `victims` or `classes` repeats a name.
    """

    full_state_update = False
    is_differentiable = False
    counts: Tensor

    def __init__(self, victims: Sequence[str], classes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.victims = check_names("ReconstructionAccuracy", "victims", victims)
        self.classes = check_names("ReconstructionAccuracy", "classes", classes)
        zeros = torch.zeros(len(self.victims), len(self.classes), 3, dtype=torch.long)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, before: Tensor, after: Tensor, label: Tensor, attack: Tensor, victim: Tensor) -> None:
        """Count a batch; an empty one is fine.

        Args:
            before: (B,) integers, the class the victim predicts for the image.
            after: (B,) integers, the class the victim predicts for its reconstruction.
            label: (B,) integers, the true class.
            attack: (B,) integers in [0, A), the attack class that made the image.
            victim: (B,) integers in [0, V), the victim that predicted; -1 is refused.

        Raises:
            TypeError: If an argument is not a tensor of integers.
            ValueError: If an argument is not a vector, the lengths differ or an index is out of range.
        """
        columns = {"before": before, "after": after, "label": label, "attack": attack, "victim": victim}
        victims = (
            f"indices into the victims {', '.join(self.victims)}; count clean rows, victim -1, once for each victim"
        )
        ranges = {
            "attack": (len(self.classes), f"indices into the classes {', '.join(self.classes)}"),
            "victim": (len(self.victims), victims),
        }
        check_indices("ReconstructionAccuracy", columns, ranges)
        cells = victim.long() * len(self.classes) + attack.long()
        rows = torch.stack([before == label, after == label, torch.ones_like(label, dtype=torch.bool)], dim=1)
        self.counts = self.counts.view(-1, 3).index_add(0, cells, rows.long()).view_as(self.counts)

    def compute(self) -> Tensor:
        """Return (V, A, 3) int64 counts: correct before, correct after, images."""
        return self.counts.clone()
