"""What Psi can say beside the attack: the network it was made against, and the budget it was given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Attribution(NamedTuple):
    """What the heads make of a batch.

    Attributes:
        victim: ``(B, V)`` logits over the victims; None without that head.
        budget: ``(B,)`` float32, log2 of the Linf radius in grey levels (1/255), for the attack that was recognised;
            nan where that has no such budget; None without that head.
    """

    victim: Tensor | None
    budget: Tensor | None


class AttributionHeads(nn.Module):
    """Heads for victim and budget on the features that Psi names the attack from, and the weights of their losses.

    Multi-task attribution in the sense of Guo et al. 2023, arXiv:2302.14059: the victim is a class of its own, the
    budget a number that belongs to an attack. The budget's head therefore has one output an attack class, and that of
    the recognised class is read. Each head is as deep as Psi's own.

    Args:
        features: Features of Psi's trunk.
        num_attacks: A, the clean class included.
        num_victims: V; 0 for no victim head.
        budget: Whether there is a budget head.

    Attributes:
        log_variances: ``(1 + heads,)``, s = log sigma^2 of attack, victim and budget, in this order, which weigh their
            losses (Kendall, Gal & Cipolla 2018, arXiv:1705.07115).
        centre: What an untrained budget head answers about, log2 of grey levels; kept in checkpoints.
        bounded: ``(A,)`` bool, the attack classes that have a budget; kept in checkpoints.

    Raises:
        ValueError: One victim alone, or no head at all.
    """

    centre: Tensor
    bounded: Tensor

    def __init__(self, features: int, num_attacks: int, num_victims: int = 0, budget: bool = False) -> None:
        super().__init__()
        if num_victims == 1 or num_victims < 0:
            raise ValueError(
                f"AttributionHeads: num_victims must be 0 or at least 2, got {num_victims} (one victim is always right)"
            )
        if not num_victims and not budget:
            raise ValueError("AttributionHeads: num_victims or budget must ask for a head, got 0 and False")
        self.victim = _head(features, num_victims) if num_victims else None
        self.budget = _head(features, num_attacks) if budget else None
        self.log_variances = nn.Parameter(torch.zeros(1 + (num_victims > 0) + budget))
        if budget:
            self.register_buffer("centre", torch.tensor(3.0))
            self.register_buffer("bounded", torch.ones(num_attacks, dtype=torch.bool))

    def set_budgets(self, budgets: Tensor) -> None:
        """Tells the budget head, before training, which classes have budgets and what size they are of.

        Args:
            budgets: ``(A, n)`` log2 of grey levels, nan where there is none.
        """
        self.bounded.copy_((~budgets.isnan()).any(1))
        self.centre.copy_(budgets.nanmean())

    def forward(self, features: Tensor, attack: Tensor) -> Attribution:
        """What is said of features ``(B, features)`` that were taken for the attack classes ``(B,)``, int64."""
        victim = None if self.victim is None else self.victim(features)
        if self.budget is None:
            return Attribution(victim, None)
        levels = self.budget(features).float().gather(1, attack[:, None])[:, 0] + self.centre
        return Attribution(victim, levels.masked_fill(~self.bounded[attack], float("nan")))


def _head(features: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(inplace=True), nn.Linear(32, outputs))
