"""An attack that sees the logits divided by a temperature: what a distilled network's saturated softmax hides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.gradient import FGSM
from lit_adv.attacks.norms import Norm


@dataclass(frozen=True, kw_only=True)
class AtTemperature(Attack):
    """Any attack on Z(x) / T in place of Z(x), Carlini & Wagner 2017, arXiv:1608.04644, section VIII-B.

    The network attacked stays the same: no prediction depends on T. After defensive distillation the logits are about T
    times larger, so that the gradient of the cross-entropy at temperature 1 underflows to 0; divided by T they have a
    gradient again. Attacks that follow differences of logits (an objective ``margin``, ``dlr`` or ``f6``) need none of
    this.

    Args:
        attack: Any attack.
        temperature: T, above 0: that of the distillation, or whatever brings the largest logits to about 10.
    """

    attack: Attack
    temperature: float = 40.0

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise ValueError(f"AtTemperature: attack must be an attack, got {type(self.attack).__name__}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"AtTemperature: temperature must be above 0 and finite, got {self.temperature} (1 changes nothing)"
            )

    @classmethod
    def example(cls) -> AtTemperature:
        return cls(attack=FGSM(eps=8 / 255), temperature=40.0)

    def _passes_of(self, classes: int, shape: torch.Size) -> tuple[float, float] | None:
        return self.attack._passes_of(classes, shape)

    def _budget(self) -> tuple[Norm, float] | None:
        return self.attack._budget()

    def _craft(self, problem: Problem) -> Tensor:
        divided = problem._twin()
        divided._model = _Divided(problem._model, self.temperature)
        return self.attack._craft(divided)


class _Divided(nn.Module):
    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Any:
        logits = self.model(x)
        # what is no tensor is refused by the problem, with a better message
        return logits / self.temperature if isinstance(logits, Tensor) else logits
