"""Accuracy under attack, and what the attacks took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_names


class RobustAccuracy(Metric):
    """Accuracy on clean images, under each of several attacks and under the worst of them for each image.

    An image counts as robust under an attack if it is classified rightly and the attack has found nothing; the worst
    case counts the images that are robust under all. Sizes of perturbations are means over the images fooled (rightly
    classified ones that the attack has changed), costs are means over the images attacked (the rightly classified
    ones). All states are sums, so that several processes give the numbers of one.

    Args:
        attacks: The attacks' names.
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    SIZES = ("l0", "l1", "l2", "linf", "ssim")
    COSTS = ("iterations", "forwards", "backwards", "queries", "seconds")

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    images: Tensor
    right: Tensor
    robust: Tensor
    survivors: Tensor
    sizes: Tensor
    costs: Tensor

    def __init__(self, attacks: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attacks = check_names("RobustAccuracy", "attacks", attacks)
        for name in ("images", "right", "survivors"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("robust", torch.zeros(len(attacks), dtype=torch.long), dist_reduce_fx="sum")
        for name, fields in (("sizes", self.SIZES), ("costs", self.COSTS)):
            self.add_state(name, torch.zeros(len(attacks), len(fields), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, right: Tensor, fooled: Mapping[str, Tensor], measures: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Count a batch of B images, R of which the model classifies rightly; only those are attacked.

        Args:
            right: ``(B,)`` bool, which images the model classifies rightly without an attack.
            fooled: For every attack, ``(R,)`` bool: on which of the rightly classified images it succeeds.
            measures: For every attack, ``(R,)`` numbers by the names in `SIZES` and `COSTS`; a missing one is NaN.

        Raises:
            ValueError: An attack is missing or unknown, or a length differs.
        """
        if set(fooled) != set(self.attacks):
            raise ValueError(
                f"RobustAccuracy: fooled must be of the attacks {', '.join(self.attacks)}, got {', '.join(fooled)}"
            )
        attacked = int(right.sum())
        standing = torch.ones(attacked, dtype=torch.bool, device=right.device)
        for number, name in enumerate(self.attacks):
            hit = fooled[name]
            if hit.shape != standing.shape or hit.dtype != torch.bool:
                raise ValueError(
                    f"RobustAccuracy: fooled[{name!r}] must be bool of shape ({attacked},), one for each image that is"
                    f" classified rightly, got {hit.dtype} of shape {tuple(hit.shape)}"
                )
            standing &= ~hit
            self.robust[number] += attacked - hit.sum()
            unknown = torch.full_like(hit, torch.nan, dtype=torch.float64)
            given = measures.get(name, {})
            for column, field in enumerate(self.SIZES):
                self.sizes[number, column] += given.get(field, unknown)[hit].double().sum()
            for column, field in enumerate(self.COSTS):
                self.costs[number, column] += given.get(field, unknown).double().sum()
        self.images += len(right)
        self.right += attacked
        self.survivors += standing.sum()

    def compute(self) -> dict[str, Any]:
        """The table as a dictionary of plain numbers.

        Returns:
            ``images``, ``clean_accuracy``, ``worst_case_accuracy``, and ``attacks``: for each the ``robust_accuracy``,
            the ``fooling_rate`` (share of the rightly classified images), the mean `SIZES` and the mean `COSTS`; None
            where there is nothing to take a mean of.
        """
        images, right = int(self.images), int(self.right)
        attacks = {}
        for number, name in enumerate(self.attacks):
            robust = int(self.robust[number])
            sizes = [_ratio(float(value), right - robust) for value in self.sizes[number]]
            costs = [_ratio(float(value), right) for value in self.costs[number]]
            attacks[name] = {
                "robust_accuracy": _ratio(robust, images),
                "fooling_rate": _ratio(right - robust, right),
                **dict(zip(self.SIZES, sizes, strict=True)),
                **dict(zip(self.COSTS, costs, strict=True)),
            }
        return {
            "images": images,
            "clean_accuracy": _ratio(right, images),
            "worst_case_accuracy": _ratio(int(self.survivors), images),
            "attacks": attacks,
        }


def _ratio(total: float, count: int) -> float | None:
    value = total / count if count else float("nan")
    return None if value != value else value
