"""The inner attack of TRADES: as far as can be from the network's answer to the clean image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_adv.attacks.attack import Problem
from lit_adv.attacks.gradient import SteepestDescent
from lit_adv.attacks.norms import DenseNormName, norm
from lit_adv.attacks.objectives import Objective, cross_entropy
from lit_adv.attacks.radius import Radius


@dataclass(frozen=True, kw_only=True)
class KLPGD(SteepestDescent):
    """Projected ascent of KL(p(x) || p(x')), Zhang et al. 2019, arXiv:1901.08573, algorithm 1.

    p(x) is the network's answer to the clean image, which one forward pass more finds; the label plays no part, so that
    none can leak into the perturbation. At x itself the gradient is 0: the start is x with a little Gaussian noise.
    With ``targets`` the distribution to reach is all on the target, and the attack descends the cross-entropy.

    Args:
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1], e.g. ``8/255``; 0 returns the images.
        step_size: Length of a step in that norm.
        steps: Steps.
        noise: Standard deviation of the start, in pixel units of [0, 1].
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: DenseNormName = "linf"
    eps: Radius = 8 / 255
    step_size: Radius = 2 / 255
    steps: int = 10
    noise: float = 0.001
    fold: bool | None = None

    objective = "ce"
    random_start = True
    restarts = 1
    stop_at_success = False

    def __post_init__(self) -> None:
        norm(self.norm, "KLPGD", ("linf", "l2"))
        self._check()
        if not 0 < self.noise < math.inf:
            raise ValueError(f"KLPGD: noise must be above 0, got {self.noise:g} (at the image the gradient is 0)")

    @classmethod
    def example(cls) -> KLPGD:
        return cls(eps=8 / 255, step_size=4 / 255, steps=3)

    def _schedule(self) -> tuple[int, float]:
        return self.steps, self.step_size

    def _passes(self, classes: int) -> tuple[float, float]:
        return self.steps + 1, self.steps

    def _start(self, problem: Problem) -> Tensor:
        noise = problem.draws.normal(tuple(problem.x.shape[1:]), problem.x.dtype) * self.noise
        if problem.mask is not None:
            noise = noise * problem.mask
        return problem.restrict(norm(self.norm).enforce(problem.x, problem.x + noise, self.eps))

    def _loss(self, problem: Problem) -> Objective:
        if problem.targeted:
            return cross_entropy
        clean = problem.logits(problem.x).log_softmax(1)
        shares = clean.exp()
        return lambda logits, classes, targeted: (shares * (logits.log_softmax(1) - clean)).sum(1)
