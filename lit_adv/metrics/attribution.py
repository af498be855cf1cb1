"""How well the victim of an attack and its budget are recognised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_indices, check_names, check_tensors, ratio_dtype


class VictimAccuracy(Metric):
    """How often the network that an image was made against is named, overall and per attack class.

    Images of a victim that cannot be named, since it was held out of training, have no right answer: they are left out
    of every accuracy, and `confusion` tells what they were taken for. So are clean images, which have no victim.

    Args:
        classes: Names of the A attack classes, in the order of their indices.
        victims: Names of the V victims, in the order of their indices.
        named: Names of the N victims that a prediction can be, in the order of its indices; None takes `victims`.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If a list repeats a name, or `named` has one that `victims` has not.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(
        self, classes: Sequence[str], victims: Sequence[str], named: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.classes = check_names("VictimAccuracy", "classes", classes)
        self.victims = check_names("VictimAccuracy", "victims", victims)
        self.named = check_names("VictimAccuracy", "named", victims if named is None else named)
        if not set(self.named) <= set(self.victims):
            raise ValueError(
                f"VictimAccuracy: named must be some of the victims {', '.join(self.victims)}, got "
                f"{', '.join(self.named)}"
            )
        shape = (len(self.classes), len(self.victims), len(self.named))
        self.add_state("counts", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, attack: Tensor, victim: Tensor) -> None:
        """Count a batch; rows without a victim (-1) are passed over.

        Args:
            prediction: (B,) integers in [0, N), index into `named`.
            attack: (B,) integers in [0, A), the attack class that made the image.
            victim: (B,) integers in [-1, V), index into `victims`.

        Raises:
            TypeError: If an argument is not a tensor of integers.
            ValueError: If an argument is not a vector, the lengths differ or an index is out of range.
        """
        columns = {"prediction": prediction, "attack": attack, "victim": victim}
        check_indices("VictimAccuracy", columns, {})
        rows = victim != -1
        kept = {name: column[rows].long() for name, column in columns.items()}
        names = {"prediction": self.named, "attack": self.classes, "victim": self.victims}
        ranges = {name: (len(known), f"indices into {', '.join(known)}") for name, known in names.items()}
        check_indices("VictimAccuracy", kept, ranges)
        _, victims, named = self.counts.shape
        cells = (kept["attack"] * victims + kept["victim"]) * named + kept["prediction"]
        self.counts = self.counts + torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Return the accuracies over the images of victims that can be named; nan where there are none.

        Returns:
            accuracy: scalar, share of those images whose victim was named.
            macro: scalar, mean of `per_attack` over the attack classes seen.
            per_attack: (A,) in [0, 1].
            images: (A,) int64, those images of each attack class.
            confusion: (V, N) int64, row: true victim, also one that cannot be named, column: named victim.
        """
        dtype = ratio_dtype(self.counts.device)
        known = [self.victims.index(name) for name in self.named]
        table = self.counts[:, known]  # (A, N, N)
        right, images = table.diagonal(dim1=1, dim2=2).sum(1), table.sum((1, 2))
        per_attack = right.to(dtype) / images.to(dtype)
        return {
            "accuracy": right.sum().to(dtype) / images.sum().to(dtype),
            "macro": per_attack.nanmean(),
            "per_attack": per_attack,
            "images": images,
            "confusion": self.counts.sum(0),
        }


class BudgetError(Metric):
    """How far an estimated budget is from the attack's own, per attack class, in grey levels (1/255).

    An estimate hangs on the attack it was made for: errors are over the images whose attack was recognised, and
    `within_all` counts every other image as missed.

    Args:
        classes: Names of the A attack classes, in the order of their indices.
        factor: An estimate is near where it is at most so many times too large or too small, > 1.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `classes` repeats a name or `factor` is not above 1.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    error: Tensor
    near: Tensor
    recognised: Tensor
    images: Tensor

    def __init__(self, classes: Sequence[str], factor: float = 1.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = check_names("BudgetError", "classes", classes)
        if not 1 < factor < float("inf"):
            raise ValueError(f"BudgetError: factor must be finite and above 1, got {factor} (leave it out for 1.5)")
        self.factor = factor
        self.add_state("error", torch.zeros(len(self.classes), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("near", "recognised", "images"):
            self.add_state(name, torch.zeros(len(self.classes), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, estimate: Tensor, budget: Tensor, prediction: Tensor, attack: Tensor) -> None:
        """Count a batch; rows whose budget is nan, which have none, are passed over.

        Args:
            estimate: (B,) floating point, > 0 in grey levels; anything where the attack was not recognised.
            budget: (B,) floating point, > 0 in grey levels; nan where the attack has none.
            prediction: (B,) integers in [0, A), the recognised attack class.
            attack: (B,) integers in [0, A), the attack class that made the image.

        Raises:
            TypeError: If `prediction` or `attack` is not a tensor of integers.
            ValueError: If an argument is not a vector, the lengths differ, or a value is out of range.
        """
        remedy = f"indices into the classes {', '.join(self.classes)}"
        columns = {"prediction": prediction, "attack": attack}
        check_indices("BudgetError", columns, dict.fromkeys(columns, (len(self.classes), remedy)))
        check_tensors("BudgetError", {"estimate": estimate, "budget": budget, "attack": attack})
        if estimate.shape != attack.shape or budget.shape != attack.shape:
            raise ValueError(
                f"BudgetError: estimate and budget must be as long as attack, got shapes {tuple(estimate.shape)} and "
                f"{tuple(budget.shape)} for {tuple(attack.shape)} (one number an image)"
            )
        counted = ~budget.isnan()
        right = counted & (prediction == attack)
        guess, truth = (values[right].to(self.error.dtype) for values in (estimate, budget))
        if not bool(((guess > 0) & (truth > 0)).all()):
            raise ValueError("BudgetError: estimate and budget must be above 0, in grey levels (and not logarithms)")
        # a share for rounding: exactly the factor is near
        near = torch.maximum(guess / truth, truth / guess) <= self.factor * (1 + 1e-6)
        size = len(self.classes)
        self.error = self.error.index_add(0, attack[right].long(), (guess - truth).abs())
        self.near = self.near + torch.bincount(attack[right][near].long(), minlength=size)
        self.recognised = self.recognised + torch.bincount(attack[right].long(), minlength=size)
        self.images = self.images + torch.bincount(attack[counted].long(), minlength=size)

    def compute(self) -> dict[str, Tensor]:
        """Return mean absolute errors in grey levels, and shares of near estimates; nan where there is no image.

        Returns:
            mae, within: scalars, over the images whose attack was recognised.
            within_all: scalar, share of all images with a budget whose attack is recognised and whose estimate is near.
            per_attack, per_attack_within: (A,), over the images whose attack was recognised.
            recognised, images: (A,) int64, those images, and all with a budget.
        """
        dtype = self.error.dtype
        recognised, near = self.recognised.to(dtype), self.near.to(dtype)
        return {
            "mae": self.error.sum() / recognised.sum(),
            "within": near.sum() / recognised.sum(),
            "within_all": near.sum() / self.images.sum().to(dtype),
            "per_attack": self.error / recognised,
            "per_attack_within": near / recognised,
            "recognised": self.recognised.clone(),
            "images": self.images.clone(),
        }
