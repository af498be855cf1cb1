"""DDN: the direction follows the loss, the length grows until the image is fooled and shrinks afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.nearest import Nearest, cosine
from lit_adv.attacks.norms import norm, rows
from lit_adv.attacks.objectives import ObjectiveName, objective


@dataclass(frozen=True, kw_only=True)
class DDN(Attack):
    """Decoupled direction and norm, Rony et al. 2019, arXiv:1811.09600, algorithm 1.

    Each step goes along the gradient, then the perturbation is scaled to a length of its own, which shrinks by
    ``gamma`` after a success and grows by it otherwise. Keeps the nearest image that succeeds; an image for which none
    is found comes back clean. ``steps`` forward and ``steps - 1`` backward passes: the first looks at the image itself,
    and from the last no step is taken. The paper's rounding to 256 levels is left to whoever writes 8-bit images.

    Args:
        steps: Images looked at.
        start: The first length, in L2 units of [0, 1].
        gamma: Share by which the length changes.
        step_size: Length of the first step; falls to a hundredth along a cosine.
        objective: What is followed.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    steps: int = 100
    start: float = 1.0
    gamma: float = 0.05
    step_size: float = 1.0
    objective: ObjectiveName = "ce"
    fold: bool | None = None

    minimal_norm = True

    def __post_init__(self) -> None:
        objective(self.objective, "DDN")
        if self.steps < 2:
            raise ValueError(f"DDN: steps must be at least 2 (the first looks at the image itself), got {self.steps}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"DDN: gamma must be between 0 and 1, got {self.gamma:g}")
        for field, value in (("start", self.start), ("step_size", self.step_size)):
            if not 0 < value < math.inf:
                raise ValueError(f"DDN: {field} must be greater than 0, got {value:g} (images are in [0, 1])")

    @classmethod
    def example(cls) -> DDN:
        return cls(steps=12, start=0.5, gamma=0.1)

    def _passes(self, classes: int) -> tuple[float, float]:
        return self.steps, self.steps - 1

    def _craft(self, problem: Problem) -> Tensor:
        l2, loss, best = norm("l2"), objective(self.objective), Nearest(problem)
        x = problem.x
        delta = x - x
        length = delta[:, 0, 0, 0] + self.start
        for step in range(self.steps - 1):
            logits, _, gradient = problem.gradient(x, loss)
            hit = best.update(problem, None, x, logits, l2.size(delta))
            length = length * (1 + self.gamma * (1 - 2 * hit.to(length.dtype)))
            moved = delta - cosine(self.step_size, 0.01 * self.step_size, step, self.steps) * l2.steepest(gradient)
            x = problem.restrict(problem.x + rows(length) * l2.steepest(moved))
            delta = x - problem.x
            problem.iterated()
        best.update(problem, None, x, problem.logits(x), l2.size(delta))
        return best.images
