"""Attacks that follow the gradient inside a ball: one loop, of which FGSM, BIM, MI-FGSM, PGD and more are settings."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import DenseNormName, Norm, NormName, norm, over_l1, rows
from lit_adv.attacks.objectives import Objective, ObjectiveName, objective
from lit_adv.attacks.radius import Radius


class SteepestDescent(Attack):
    """x <- P(x - step_size * direction(m)), P onto the ball and [0, 1], m <- momentum * m + g / ||g||_1.

    g is the gradient of the adversary's loss; without momentum m is g itself. ``steps`` forward and ``steps`` backward
    passes a restart. One forward pass more a restart decides which of several restarts is kept: one that succeeds, else
    the one with the lowest loss. An image that has been fooled takes no further restart.
    """

    norm: str
    eps: Radius
    objective: ObjectiveName
    random_start: bool
    restarts: int
    stop_at_success: bool
    keep_best: bool = False
    momentum: float = 0.0

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
        if not 0 <= self.momentum < math.inf:
            raise ValueError(f"{name}: momentum must be at least 0, got {self.momentum:g}")

    def _craft(self, problem: Problem) -> Tensor:
        if self.restarts == 1:
            return self._descend(problem)
        judge = objective(self.objective)
        best = problem.x.clone()
        best_loss = torch.full_like(best[:, 0, 0, 0], math.inf)
        active = torch.arange(len(best), device=best.device)
        part, hit = problem, torch.zeros_like(active, dtype=torch.bool)
        for restart in range(self.restarts):
            if restart:
                kept = (~hit).nonzero()[:, 0]
                if not len(kept):
                    break
                active, part, best_loss = active[kept], part.take(kept), best_loss[kept]
            x = self._descend(part)
            logits = part.logits(x)
            hit = part.succeeded(logits)
            loss = judge(logits, part.classes, part.targeted).masked_fill(hit, -math.inf)
            better = loss < best_loss
            best[active] = torch.where(rows(better), x, best[active])
            best_loss = torch.where(better, loss, best_loss)
        return best

    def _start(self, problem: Problem) -> Tensor:
        """The first iterate."""
        if not self.random_start:
            return problem.x
        return problem.restrict(problem.x + norm(self.norm).random(problem.draws, problem.x, self.eps, problem.mask))

    def _loss(self, problem: Problem) -> Objective:
        """What is followed."""
        return objective(self.objective)

    def _descend(self, problem: Problem) -> Tensor:
        loss = self._loss(problem)
        steps, step_size = self._schedule()
        x = self._start(problem)
        if self.stop_at_success:
            return self._descend_until_success(problem, x, loss, steps, step_size)
        best, best_loss = x, torch.full_like(x[:, 0, 0, 0], math.inf)
        direction = torch.zeros_like(x)
        for _ in range(steps):
            _, losses, gradient = problem.gradient(x, loss)
            if self.keep_best:
                better = losses < best_loss
                best = torch.where(rows(better), x, best)
                best_loss = torch.where(better, losses, best_loss)
            direction = self._accumulate(direction, gradient)
            x = self._step(problem, x, direction, step_size)
            problem.iterated()
        if self.keep_best:
            logits = problem.logits(x)
            better = loss(logits, problem.classes, problem.targeted) < best_loss
            x = torch.where(rows(better), x, best)
        return x

    def _descend_until_success(
        self, problem: Problem, x: Tensor, loss: Objective, steps: int, step_size: float
    ) -> Tensor:
        """As `_descend`, but a row leaves the batch with the first iterate that succeeds."""
        result = x.clone()
        active = torch.arange(len(x), device=x.device)
        part, direction = problem, torch.zeros_like(x)
        for _ in range(steps):
            logits, _, gradient = part.gradient(x, loss)
            direction = self._accumulate(direction, gradient)
            going = ~part.succeeded(logits)
            result[active] = x
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                active, part, x, direction = active[kept], part.take(kept), x[kept], direction[kept]
                if not len(active):
                    return result
            x = self._step(part, x, direction, step_size)
            part.iterated()
        result[active] = x
        return result

    def _accumulate(self, before: Tensor, gradient: Tensor) -> Tensor:
        return self.momentum * before + over_l1(gradient) if self.momentum else gradient

    def _step(self, problem: Problem, x: Tensor, direction: Tensor, step_size: float) -> Tensor:
        ball = norm(self.norm)
        if ball.sparse:  # its few elements must not be spent on pixels that are at the end of the box
            # (nearly there is there: the projection leaves them a rounding error away)
            direction = direction.masked_fill(((direction > 0) & (x < 1e-5)) | ((direction < 0) & (x > 1 - 1e-5)), 0)
        moved = ball.steepest(direction).mul_(-step_size).add_(x)
        return problem.restrict(ball.enforce(problem.x, moved, self.eps))


@dataclass(frozen=True, kw_only=True)
class PGD(SteepestDescent):
    """Projected gradient descent, Madry et al. 2018, arXiv:1706.06083.

    Args:
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1], e.g. ``8/255``; 0 returns the images.
        step_size: Length of a step in that norm. For ``l0`` of the order of the image's number of elements: a step is
            spread over all of them, and what is not among the ``eps`` pixels kept is lost.
        steps: Steps a restart.
        random_start: Start at a uniform point of the ball rather than at the image.
        restarts: Most independent starts; an image that is fooled takes no more, of failures the best is kept.
        momentum: Share of the sum of past gradients that is kept, as in `MIFGSM`; 0 follows the gradient alone.
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
    momentum: float = 0.0
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
class FGVM(SteepestDescent):
    """Fast gradient value method, Rozsa et al. 2016, arXiv:1605.01775: one step along the gradient's own values.

    The step is ``eps g / ||g||``, or ``eps g``; where ``norm`` is ``linf`` only the largest element moves by all of
    ``eps``. ``norm="l2"`` is `FGM`.

    Args:
        norm: What the gradient is divided by: its ``l2`` or ``linf`` norm, or, ``raw``, nothing.
        eps: Radius in that norm, in pixel units of [0, 1]; for ``raw`` a factor, 1 in the paper, and no bound.
        objective: What is followed.
    """

    norm: Literal["l2", "linf", "raw"] = "l2"
    eps: Radius = 0.5
    objective: ObjectiveName = "ce"

    random_start = False
    restarts = 1
    stop_at_success = False

    def __post_init__(self) -> None:
        norm("l2" if self.norm == "raw" else self.norm, "FGVM", ("l2", "linf", "raw")).check("FGVM", self.eps)
        objective(self.objective, "FGVM")

    @classmethod
    def example(cls) -> FGVM:
        return cls(norm="linf", eps=16 / 255)

    def _schedule(self) -> tuple[int, float]:
        return 1, self.eps

    def _budget(self) -> tuple[Norm, float] | None:
        return None if self.norm == "raw" else super()._budget()

    def _step(self, problem: Problem, x: Tensor, direction: Tensor, step_size: float) -> Tensor:
        if self.norm == "l2":
            direction = norm("l2").steepest(direction)
        elif self.norm == "linf":
            direction = direction / rows(norm("linf").size(direction)).clamp(min=torch.finfo(x.dtype).tiny)
        return problem.restrict(x - step_size * direction)


@dataclass(frozen=True, kw_only=True)
class RandFGSM(SteepestDescent):
    """FGSM after a random step, Tramer et al. 2018, arXiv:1705.07204 (RAND+FGSM).

    ``x~ = clip(x + alpha sign(N(0, I)))``, then FGSM from there with what is left of the radius, ``eps - alpha``.

    Args:
        eps: Linf radius in pixel units of [0, 1], e.g. ``8/255``.
        alpha: Length of the random step, at most ``eps``; None takes half of it, 0 is FGSM.
        objective: What is followed.
    """

    eps: Radius = 8 / 255
    alpha: Radius | None = None
    objective: ObjectiveName = "ce"

    norm = "linf"
    random_start = True
    restarts = 1
    stop_at_success = False

    def __post_init__(self) -> None:
        norm("linf").check("RandFGSM", self.eps)
        if not 0 <= self._alpha() <= self.eps:
            raise ValueError(f"RandFGSM: alpha must be in [0, eps] = [0, {self.eps:g}], got {self.alpha:g}")
        self._check()

    @classmethod
    def example(cls) -> RandFGSM:
        return cls(eps=8 / 255)

    def _alpha(self) -> float:
        return self.eps / 2 if self.alpha is None else self.alpha

    def _schedule(self) -> tuple[int, float]:
        return 1, self.eps - self._alpha()

    def _start(self, problem: Problem) -> Tensor:
        # the sign of a normal number
        signs = problem.draws.integers(tuple(problem.x.shape[1:]), 2).to(problem.x.dtype) * 2 - 1
        return problem.restrict(problem.x + self._alpha() * signs)


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


@dataclass(frozen=True, kw_only=True)
class ILLC(SteepestDescent):
    """Iterative least-likely class method, Kurakin et al. 2017, arXiv:1607.02533, section 2.3.

    Goes to the class that is the least likely one for the clean image, which one forward pass more finds. With
    ``targets`` it goes to those, and is a targeted `BIM`.

    Args:
        eps: Linf radius in pixel units of [0, 1], e.g. ``8/255``.
        step_size: Length of a step, one grey level in the paper.
        steps: None takes the paper's rule, ``ceil(min(levels + 4, 1.25 levels))`` for ``levels = 255 eps``.
        objective: What is followed towards that class.
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
    def example(cls) -> ILLC:
        return cls(eps=4 / 255)

    def _schedule(self) -> tuple[int, float]:
        return (iteration_rule(self.eps) if self.steps is None else self.steps), self.step_size

    def _passes(self, classes: int) -> tuple[float, float]:
        forwards, backwards = super()._passes(classes)
        return forwards + 1, backwards

    def _loss(self, problem: Problem) -> Objective:
        loss = objective(self.objective)
        if problem.targeted:
            return loss
        unlikely = problem.logits(problem.x).argmin(1)
        return lambda logits, classes, targeted: loss(logits, unlikely, True)


@dataclass(frozen=True, kw_only=True)
class MIFGSM(SteepestDescent):
    """Momentum iterative FGSM, Dong et al. 2018, arXiv:1710.06081, algorithm 1 and, for L2, section 3.3.

    ``m <- momentum * m + g / ||g||_1``; the step is ``step_size * sign(m)``, or ``step_size * m / ||m||_2``.

    Args:
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1], e.g. ``16/255``.
        step_size: Length of a step in that norm; None takes ``eps / steps``.
        steps: Steps.
        momentum: The paper's mu; 0 is BIM.
        objective: What is followed.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: DenseNormName = "linf"
    eps: Radius = 16 / 255
    step_size: Radius | None = None
    steps: int = 10
    momentum: float = 1.0
    objective: ObjectiveName = "ce"
    fold: bool | None = None

    random_start = False
    restarts = 1
    stop_at_success = False

    def __post_init__(self) -> None:
        norm(self.norm, "MIFGSM", ("linf", "l2"))
        self._check()

    @classmethod
    def example(cls) -> MIFGSM:
        return cls(eps=8 / 255, steps=3)

    def _schedule(self) -> tuple[int, float]:
        return self.steps, self.eps / max(self.steps, 1) if self.step_size is None else self.step_size


def iteration_rule(eps: float) -> int:
    """Steps of BIM and ILLC for a radius in [0, 1], Kurakin et al. 2017, section 2.2."""
    levels = round(255 * eps, 6)  # 8/255*255 is a little more than 8
    return max(1, math.ceil(min(levels + 4, 1.25 * levels)))
