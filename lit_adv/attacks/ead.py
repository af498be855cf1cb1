"""EAD: an elastic-net penalty, half L2, half L1, by iterative shrinkage and thresholding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.nearest import Nearest, check_descent, search_constant
from lit_adv.attacks.norms import rows
from lit_adv.attacks.objectives import CarliniWagnerName, Objective, objective


@dataclass(frozen=True, kw_only=True)
class EAD(Attack):
    """Elastic-net attack: ``c f(x') + ||x' - x||_2^2 + beta ||x' - x||_1``, Chen et al. 2018, arXiv:1709.04114.

    FISTA with a step that falls with the root of the steps left (section 4, equations 4 to 6). Keeps the smallest
    success; an image for which none is found comes back clean. Success is read off the pass that gives the gradient, at
    the extrapolated point, which is kept in [0, 1]: ``steps`` backward and ``steps + 1`` forward passes for every
    constant tried, fewer where it aborts early.

    Args:
        c: Weight of the objective, for every image; the first one tried where it is searched.
        beta: Weight of the L1 norm. As in the paper it is also, whatever the step, the threshold of a step, so that
            sparsity weighs more than in the sum above: ``beta`` over the length of the step.
        learning_rate: The first step.
        steps: Steps for every constant.
        search_steps: Constants tried for each image: tenfold until one succeeds, then bisection; 0 keeps ``c``.
        confidence: Margin in logits that counts as success.
        rule: Which success is the smallest: in the elastic net (``en``) or in ``l1``.
        momentum: FISTA's extrapolation; without it ISTA.
        objective: Carlini and Wagner's ``f1`` to ``f7``.
        abort_early: Give a constant up when its lowest loss no longer falls; looked at every tenth of the steps, every
            tenth step at most.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    c: float = 1e-3
    beta: float = 1e-3
    learning_rate: float = 0.01
    steps: int = 1000
    search_steps: int = 9
    confidence: float = 0.0
    rule: Literal["en", "l1"] = "en"
    momentum: bool = True
    objective: CarliniWagnerName = "f6"
    abort_early: bool = True
    fold: bool | None = None

    norm = "l1"
    minimal_norm = True

    def __post_init__(self) -> None:
        check_descent("EAD", self.c, self.learning_rate, self.steps, self.objective, self.confidence)
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"EAD: beta must be at least 0, got {self.beta:g}")
        if self.search_steps < 0:
            raise ValueError(f"EAD: search_steps must be at least 0, got {self.search_steps}")
        if self.rule not in ("en", "l1"):
            raise ValueError(f"EAD: rule must be en or l1, got {self.rule!r}")

    @classmethod
    def example(cls) -> EAD:
        return cls(c=1.0, learning_rate=0.05, steps=10, search_steps=2)

    def _passes(self, classes: int) -> tuple[float, float]:
        searches = max(1, self.search_steps)
        return searches * (self.steps + 1), searches * self.steps

    def _craft(self, problem: Problem) -> Tensor:
        loss = objective(self.objective, confidence=self.confidence)
        best = Nearest(problem, self.confidence)

        def attempt(c: Tensor) -> Tensor:
            found = best.renew()
            self._descend(problem, loss, c, best)
            return found

        search_constant(torch.full_like(problem.x[:, 0, 0, 0], self.c), self.search_steps, attempt)
        return best.images

    def _descend(self, problem: Problem, loss: Objective, c: Tensor, best: Nearest) -> None:
        part, active = problem, None
        x = y = problem.x
        lowest, checked = torch.full_like(c, math.inf), torch.full_like(c, math.inf)
        every = max(10, self.steps // 10)
        for step in range(self.steps):
            logits, losses, gradient = part.gradient(y, loss)
            delta = y - part.x
            size, cost = self._sizes(delta)
            best.update(part, active, y, logits, size)
            if self.abort_early:
                lowest = torch.minimum(lowest, cost + c * losses)
                if (step + 1) % every == 0:
                    going = lowest <= 0.9999 * checked
                    checked = lowest
                    if not bool(going.all()):
                        kept = going.nonzero()[:, 0]
                        if not len(kept):
                            return
                        active = kept if active is None else active[kept]
                        part = part.take(kept)
                        x, y, c, gradient, delta, lowest, checked = (
                            each[kept] for each in (x, y, c, gradient, delta, lowest, checked)
                        )
            rate = self.learning_rate * math.sqrt(1 - step / self.steps)
            moved = delta - rate * (rows(c) * gradient + 2 * delta)
            # shrinkage leaves what has moved by less than beta exactly where it was
            before, x = x, (part.x + (moved - moved.clamp(-self.beta, self.beta))).clamp_(0, 1)
            y = (x + step / (step + 3) * (x - before)).clamp_(0, 1) if self.momentum else x
            part.iterated()
        best.update(part, active, x, part.logits(x), self._sizes(x - part.x)[0])

    def _sizes(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """What the rule compares, and the penalty."""
        flat = delta.flatten(1)
        long = flat.abs().sum(1)
        cost = flat.square().sum(1) + self.beta * long
        return (long if self.rule == "l1" else cost), cost
