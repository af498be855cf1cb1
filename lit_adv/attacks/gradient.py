"""Attacks that follow the gradient inside a ball: one loop, of which FGSM, FGM, BIM and PGD are settings."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import NormName, norm, rows
from lit_adv.attacks.objectives import ObjectiveName, objective
from lit_adv.attacks.radius import Radius


class SteepestDescent(Attack):
    """x <- P(x - step_size * direction(gradient of the adversary's loss)), P onto the ball and [0, 1].

    ``steps`` forward and ``steps`` backward passes a restart. One forward pass more a restart decides which of several
    restarts is kept: one that succeeds, else the one with the lowest loss.
    """

    norm: NormName
    eps: Radius
    objective: ObjectiveName
    random_start: bool
    restarts: int
    stop_at_success: bool
    keep_best: bool = False

    @abstractmethod
    def _schedule(self) -> tuple[int, float]:
        """Number of steps and step size."""

    def _passes(self, classes: int) -> tuple[float, float]:
        steps, _ = self._schedule()
        judged = (self.restarts > 1) + self.keep_best
        return self.restarts * (steps + judged), self.restarts * steps

    def _check(self) -> None:
        name = type(self).__name__
        norm(self.norm, name).check(name, self.eps)
        objective(self.objective, name)
        steps, step_size = self._schedule()
        if steps < 1:
            raise ValueError(f"{name}: steps must be at least 1, got {steps}")
        if not 0 <= step_size < math.inf:
            raise ValueError(f"{name}: step_size must be at least 0, got {step_size:g} (images are in [0, 1])")
        if self.restarts < 1:
            raise ValueError(f"{name}: restarts must be at least 1, got {self.restarts}")

    def _craft(self, problem: Problem) -> Tensor:
        if self.restarts == 1:
            return self._descend(problem)
        judge = objective(self.objective, type(self).__name__)
        best = problem.x
        best_loss = torch.full_like(problem.x[:, 0, 0, 0], math.inf)
        for _ in range(self.restarts):
            x = self._descend(problem)
            logits = problem.logits(x)
            loss = judge(logits, problem.classes, problem.targeted)
            loss = torch.where(problem.succeeded(logits), -math.inf, loss)
            better = loss < best_loss
            best = torch.where(rows(better), x, best)
            best_loss = torch.where(better, loss, best_loss)
        return best

    def _descend(self, problem: Problem) -> Tensor:
        ball = norm(self.norm)
        loss = objective(self.objective)
        steps, step_size = self._schedule()
        x = problem.x
        if self.random_start:
            x = problem.restrict(x + ball.random(problem.draws, x, self.eps, problem.mask))
        if self.stop_at_success:
            return self._descend_until_success(problem, x, steps, step_size)
        best, best_loss = x, torch.full_like(x[:, 0, 0, 0], math.inf)
        for _ in range(steps):
            _, losses, gradient = problem.gradient(x, loss)
            if self.keep_best:
                better = losses < best_loss
                best = torch.where(rows(better), x, best)
                best_loss = torch.where(better, losses, best_loss)
            x = self._step(problem, x, gradient, step_size)
            problem.iterated()
        if self.keep_best:
            logits = problem.logits(x)
            better = loss(logits, problem.classes, problem.targeted) < best_loss
            x = torch.where(rows(better), x, best)
        return x

    def _descend_until_success(self, problem: Problem, x: Tensor, steps: int, step_size: float) -> Tensor:
        """As `_descend`, but a row leaves the batch with the first iterate that succeeds."""
        loss = objective(self.objective)
        result = x.clone()
        active = torch.arange(len(x), device=x.device)
        part = problem
        for _ in range(steps):
            logits, _, gradient = part.gradient(x, loss)
            going = ~part.succeeded(logits)
            result[active] = x
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                active, part, x, gradient = active[kept], part.take(kept), x[kept], gradient[kept]
                if not len(active):
                    return result
            x = self._step(part, x, gradient, step_size)
            part.iterated()
        result[active] = x
        return result

    def _step(self, problem: Problem, x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        ball = norm(self.norm)
        if ball.sparse:  # its few elements must not be spent on pixels that are at the end of the box
            gradient = gradient.masked_fill(((gradient > 0) & (x <= 0)) | ((gradient < 0) & (x >= 1)), 0)
        moved = x - step_size * ball.steepest(gradient)
        return problem.restrict(ball.enforce(problem.x, moved, self.eps))


@dataclass(frozen=True, kw_only=True)
class PGD(SteepestDescent):
    """Projected gradient descent, Madry et al. 2018, arXiv:1706.06083.

    Args:
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1], e.g. ``8/255``; 0 returns the images.
        step_size: Length of a step in that norm.
        steps: Steps a restart.
        random_start: Start at a uniform point of the ball rather than at the image.
        restarts: Independent starts; the best is kept.
        objective: What is followed: ``ce``, ``margin``, ``dlr`` or ``f1`` to ``f7``.
        stop_at_success: Return the first iterate that succeeds: smaller perturbations, fewer passes.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: NormName = "linf"
    eps: Radius = 8 / 255
    step_size: Radius = 2 / 255
    steps: int = 10
    random_start: bool = True
    restarts: int = 1
    objective: ObjectiveName = "ce"
    stop_at_success: bool = False
    fold: bool | None = None

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> PGD:
        return cls(eps=8 / 255, step_size=4 / 255, steps=3)

    def _schedule(self) -> tuple[int, float]:
        return self.steps, self.step_size


@dataclass(frozen=True, kw_only=True)
class FGSM(SteepestDescent):
    """Fast gradient sign method, Goodfellow et al. 2015, arXiv:1412.6572: one Linf step of length ``eps``.

    Where the gradient is exactly 0, as in a saturated model, the pixel does not change.

    Args:
        eps: Radius in pixel units of [0, 1], e.g. ``8/255``.
        objective: What is followed.
    """

    eps: Radius = 8 / 255
    objective: ObjectiveName = "ce"

    norm = "linf"
    random_start = False
    restarts = 1
    stop_at_success = False

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> FGSM:
        return cls(eps=8 / 255)

    def _schedule(self) -> tuple[int, float]:
        return 1, self.eps


@dataclass(frozen=True, kw_only=True)
class FGM(SteepestDescent):
    """Fast gradient method: one L2 step of length ``eps`` along the gradient.

    Args:
        eps: L2 radius in pixel units of [0, 1].
        objective: What is followed.
    """

    eps: Radius = 0.5
    objective: ObjectiveName = "ce"

    norm = "l2"
    random_start = False
    restarts = 1
    stop_at_success = False

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> FGM:
        return cls(eps=0.5)

    def _schedule(self) -> tuple[int, float]:
        return 1, self.eps


@dataclass(frozen=True, kw_only=True)
class BIM(SteepestDescent):
    """Basic iterative method, Kurakin et al. 2017, arXiv:1607.02533, section 2.2.

    Args:
        eps: Linf radius in pixel units of [0, 1], e.g. ``8/255``.
        step_size: Length of a step, one grey level in the paper.
        steps: None takes the paper's rule, ``ceil(min(levels + 4, 1.25 levels))`` for ``levels = 255 eps``.
        objective: What is followed.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    eps: Radius = 8 / 255
    step_size: Radius = 1 / 255
    steps: int | None = None
    objective: ObjectiveName = "ce"
    fold: bool | None = None

    norm = "linf"
    random_start = False
    restarts = 1
    stop_at_success = False

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> BIM:
        return cls(eps=4 / 255)

    def _schedule(self) -> tuple[int, float]:
        return (iteration_rule(self.eps) if self.steps is None else self.steps), self.step_size


def iteration_rule(eps: float) -> int:
    """Steps of BIM and ILLC for a radius in [0, 1], Kurakin et al. 2017, section 2.2."""
    levels = round(255 * eps, 6)  # 8/255*255 is a little more than 8
    return max(1, math.ceil(min(levels + 4, 1.25 * levels)))
