"""Auto-PGD: projected gradient steps with momentum whose length follows from the progress of each image."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import norm, rows
from lit_adv.attacks.objectives import Objective, cross_entropy, dlr, margin
from lit_adv.attacks.radius import Radius

BallName = Literal["linf", "l2", "l1"]


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD, Croce & Hein 2020, arXiv:2003.01690, algorithm 1; in l1 Croce & Hein 2021, arXiv:2103.01208, 3.3.

    Starts at a random point with steps of length ``2 eps`` (l1: ``eps``). At checkpoints that come closer and closer,
    an image whose loss has improved in less than a share ``rho`` of the steps, or whose best point and step size are
    those of the last checkpoint, goes back to its best point with half the step size. In l1 a step moves the elements
    with the largest gradient only, two thirds of what the best point has changed, and the step size is reset when that
    number has shrunk.

    Returns a point that succeeds, else the best one. ``steps + 1`` forward and ``steps`` backward passes for every
    restart and class tried, fewer where an image is fooled earlier.

    The DLR loss needs 3 classes, 4 where targeted. With fewer ``objective="dlr"`` follows the margin; the runs of
    ``target_classes`` divide it by the range of the logits where there are 3 classes and by nothing where there are 2.

    Args:
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1], e.g. ``8/255``; 0 returns the images.
        steps: Steps a run.
        restarts: Runs from independent random starts (for every class tried).
        objective: What is followed: ``ce``, ``dlr`` or ``margin``.
        target_classes: APGD-T (section 4.2): one attempt at each of that many most likely other classes; at most all of
            them. None leaves the label in any direction. Without effect where the call is targeted.
        rho: Share of the steps that must improve the loss between two checkpoints.
        momentum: Share of the last move in a step (1 - alpha in the paper); l1 has none.
        eot_iter: Passes over which the gradient is averaged, for models that draw random numbers.
        wide_start: Look in the balls of 3 and of 2 ``eps`` first, for three tenths of the steps each (2021, section
            3.4).
        stop_at_success: An image is done with the first point that succeeds; otherwise all steps are taken and the
            success with the lowest loss is kept.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: BallName = "linf"
    eps: Radius = 8 / 255
    steps: int = 100
    restarts: int = 1
    objective: Literal["ce", "dlr", "margin"] = "ce"
    target_classes: int | None = None
    rho: float = 0.75
    momentum: float = 0.25
    eot_iter: int = 1
    wide_start: bool = False
    stop_at_success: bool = True
    fold: bool | None = None

    def __post_init__(self) -> None:
        norm(self.norm, "APGD", ("linf", "l2", "l1")).check("APGD", self.eps)
        if self.objective not in ("ce", "dlr", "margin"):
            raise ValueError(f"APGD: objective must be one of ce, dlr, margin, got {self.objective!r}")
        for field in ("steps", "restarts", "eot_iter"):
            if getattr(self, field) < 1:
                raise ValueError(f"APGD: {field} must be at least 1, got {getattr(self, field)}")
        if self.target_classes is not None and self.target_classes < 1:
            raise ValueError(
                f"APGD: target_classes must be at least 1, got {self.target_classes} (None: no class is preferred)"
            )
        if not 0 <= self.rho <= 1:
            raise ValueError(f"APGD: rho must be in [0, 1], got {self.rho:g}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"APGD: momentum must be in [0, 1), got {self.momentum:g}")

    @classmethod
    def example(cls) -> APGD:
        return cls(eps=8 / 255, steps=5)

    def _passes(self, classes: int) -> tuple[float, float]:
        stages = len(self._stages())
        tried = 1 if self.target_classes is None else min(self.target_classes, classes - 1)
        runs = tried * self.restarts * self.eot_iter
        return runs * (self.steps + stages) + (self.target_classes is not None), runs * self.steps

    def _stages(self) -> list[tuple[float, int]]:
        """Radii and steps of a run."""
        early = int(0.3 * self.steps)
        if not self.wide_start or early == 0:
            return [(self.eps, self.steps)]
        return [(3 * self.eps, early), (2 * self.eps, early), (self.eps, self.steps - 2 * early)]

    def _craft(self, problem: Problem) -> Tensor:
        ball = norm(self.norm)
        goals: Tensor | None = None
        if self.target_classes is not None and not problem.targeted:
            goals = likely_others(problem.logits(problem.x), problem.classes, self.target_classes)
        best, best_loss = problem.x.clone(), torch.full_like(problem.x[:, 0, 0, 0], math.inf)
        found = torch.zeros_like(best_loss, dtype=torch.bool)
        for run in range(self.restarts * (1 if goals is None else goals.shape[1])):
            # for all rows, so that a row's numbers do not depend on when the others are done
            start = problem.restrict(
                problem.x + ball.random(problem.draws, problem.x, self._stages()[0][0], problem.mask)
            )
            chosen = (~found).nonzero()[:, 0] if self.stop_at_success else torch.arange(len(best), device=best.device)
            if not len(chosen):
                break
            goal = None if goals is None else goals[chosen, run // self.restarts]
            x, loss, hit = self._climb(problem.take(chosen), start[chosen], goal)
            better = (hit & ~found[chosen]) | ((hit == found[chosen]) & (loss < best_loss[chosen]))
            best[chosen] = torch.where(rows(better), x, best[chosen])
            best_loss[chosen] = torch.where(better, loss, best_loss[chosen])
            found[chosen] |= hit
        return best

    def _climb(self, problem: Problem, x: Tensor, goal: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """One run: the point to return, its loss, whether it succeeds."""
        stages = self._stages()
        for stage, (eps, steps) in enumerate(stages[:-1]):
            x = problem.restrict(norm(self.norm).enforce(problem.x, x, eps))
            x, _, _ = self._descend(problem, x, goal, eps, steps, final=False, warm=stage > 0)
        x = problem.restrict(norm(self.norm).enforce(problem.x, x, self.eps))
        return self._descend(problem, x, goal, self.eps, stages[-1][1], final=True, warm=len(stages) > 1)

    def _descend(
        self, problem: Problem, x: Tensor, goal: Tensor | None, eps: float, steps: int, *, final: bool, warm: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1 in one ball, for the adversary's loss, where less is better.

        A ``final`` run returns successes; another one, in too large a ball, the lowest loss. A ``warm`` one continues.
        """
        sparse = norm(self.norm).sparse
        checkpoints = sparse_checkpoints(steps) if sparse else halving_checkpoints(steps)
        stop = final and self.stop_at_success
        walk = _Walk.begin(problem, x, goal, (1 if sparse else 2) * eps, warm=warm)
        part, active = problem, torch.arange(len(x), device=x.device)
        result, result_loss = x.clone(), torch.full_like(walk.loss, math.inf)
        found = torch.zeros_like(walk.improved, dtype=torch.bool)
        last_checkpoint = 0
        for step in range(steps + 1):
            logits, loss, gradient = self._look(part, walk, gradient=step < steps)
            walk.see(loss, gradient)
            if step == 0:
                walk.checked_loss = loss
            if final:
                hit = part.succeeded(logits)
                better = hit & ~(loss >= result_loss[active])
                if stop:
                    gone = hit.nonzero()[:, 0]
                    if len(gone):
                        place = active[gone]
                        result[place], result_loss[place], found[place] = walk.x[gone], loss[gone], True
                        kept = (~hit).nonzero()[:, 0]
                        if not len(kept):
                            return result, result_loss, found
                        part, active, walk = part.take(kept), active[kept], walk.take(kept)
                else:
                    result = torch.where(rows(better), walk.x, result)
                    result_loss = torch.where(better, loss, result_loss)
                    found |= hit
            if step == steps:
                break
            if step in checkpoints:
                if sparse:
                    walk.sparsify(part, eps)
                else:
                    walk.halve(self.rho * (step - last_checkpoint))
                last_checkpoint = step
            self._move(part, walk, eps, first=step == 0)
            part.iterated()
        missed = ~found[active]
        result[active] = torch.where(rows(missed), walk.best, result[active])
        result_loss[active] = torch.where(missed, walk.best_loss, result_loss[active])
        return result, result_loss, found

    def _look(self, problem: Problem, walk: _Walk, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, loss and gradient at ``walk.x``, each a mean over ``eot_iter`` passes; without ``gradient`` zeros."""
        loss = self._loss(walk.goal)
        seen = []
        for _ in range(self.eot_iter):
            if gradient:
                seen.append(problem.gradient(walk.x, loss))
            else:
                logits = problem.logits(walk.x)
                seen.append((logits, loss(logits, problem.classes, problem.targeted), walk.gradient))
        if len(seen) == 1:
            return seen[0]
        logits, losses, gradients = (sum(each) / self.eot_iter for each in zip(*seen, strict=True))
        return logits, losses, gradients

    def _loss(self, goal: Tensor | None) -> Objective:
        name = self.objective
        if goal is not None:
            return lambda logits, classes, targeted: _towards(name, logits, classes, goal)
        if name == "ce":
            return cross_entropy
        return lambda logits, classes, targeted: (
            dlr if name == "dlr" and logits.shape[1] >= (4 if targeted else 3) else margin
        )(logits, classes, targeted)

    def _move(self, problem: Problem, walk: _Walk, eps: float, *, first: bool) -> None:
        ball = norm(self.norm)
        direction = walk.sparse_direction() if ball.sparse else ball.steepest(walk.gradient)
        x = walk.x
        moved = problem.restrict(ball.enforce(problem.x, x - rows(walk.step_size) * direction, eps))
        if not first and not ball.sparse and self.momentum:
            moved = x.lerp(moved, 1 - self.momentum).add_(x - walk.previous, alpha=self.momentum)
            moved = problem.restrict(ball.enforce(problem.x, moved, eps))
        walk.previous, walk.x = x, moved


@dataclass
class _Walk:
    """Where the images of a run are; every tensor has one row an image."""

    x: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    step_size: Tensor
    improved: Tensor  # steps that lowered the loss since the last checkpoint
    checked_loss: Tensor  # lowest loss at the last checkpoint
    halved: Tensor  # whether the last checkpoint halved the step size
    free: Tensor  # elements that may change
    moving: Tensor  # l1: elements that a step moves
    changed: Tensor  # l1: elements changed at the best point, at the last checkpoint
    goal: Tensor | None

    @classmethod
    def begin(cls, problem: Problem, x: Tensor, goal: Tensor | None, step_size: float, *, warm: bool) -> _Walk:
        zero = torch.zeros_like(x[:, 0, 0, 0])
        free = zero + x[0].numel() if problem.mask is None else problem.mask.flatten(1).sum(1) * x.shape[1]
        changed = _changed(problem, x) if warm else free
        return cls(
            x=x,
            previous=x,
            gradient=torch.zeros_like(x),
            loss=zero - math.inf,
            best=x,
            best_loss=zero + math.inf,
            best_gradient=torch.zeros_like(x),
            step_size=zero + step_size,
            improved=zero,
            checked_loss=zero + math.inf,
            halved=zero.bool(),
            free=free,
            moving=changed / 1.5 if warm else 0.2 * free,
            changed=changed,
            goal=goal,
        )

    def take(self, kept: Tensor) -> _Walk:
        held = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        taken: dict[str, Any] = {name: None if values is None else values[kept] for name, values in held.items()}
        return _Walk(**taken)

    def see(self, loss: Tensor, gradient: Tensor) -> None:
        """Takes note of loss and gradient at ``x``."""
        self.improved = self.improved + (loss < self.loss)
        better = loss < self.best_loss
        self.best = torch.where(rows(better), self.x, self.best)
        self.best_gradient = torch.where(rows(better), gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.loss, self.gradient = loss, gradient

    def halve(self, wanted: float) -> None:
        """A checkpoint of algorithm 1: ``wanted`` improvements since the last one."""
        stuck = ~self.halved & (self.best_loss == self.checked_loss)
        self.halved = (self.improved < wanted) | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self._back_to_best(self.halved)
        self.improved, self.checked_loss = torch.zeros_like(self.improved), self.best_loss

    def sparsify(self, problem: Problem, eps: float) -> None:
        """A checkpoint in l1, Croce & Hein 2021, equations 10 and 11."""
        changed = _changed(problem, self.best)
        sparser = changed < 0.95 * self.changed
        self.moving, self.changed = changed / 1.5, changed
        self.step_size = torch.where(sparser, eps, (self.step_size / 1.5).clamp(min=eps / 10))
        self._back_to_best(sparser)

    def sparse_direction(self) -> Tensor:
        """Equal moves of the ``moving`` elements with the largest gradient, of length 1 together."""
        flat = self.gradient.flatten(1)
        count = self.moving.long().clamp(1, flat.shape[1])
        level = flat.abs().sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
        signs = flat.sign() * (flat.abs() >= level)
        return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).view_as(self.gradient)

    def _back_to_best(self, back: Tensor) -> None:
        self.x = torch.where(rows(back), self.best, self.x)
        self.gradient = torch.where(rows(back), self.best_gradient, self.gradient)
        self.loss = torch.where(back, self.best_loss, self.loss)


def halving_checkpoints(steps: int) -> set[int]:
    """Numbers of steps after which progress is judged, Croce & Hein 2020, section 3.3."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # 0.41 * 100 is a little more than 41
    return {math.ceil(round(share * steps, 6)) for share in shares[1:]}


def sparse_checkpoints(steps: int) -> set[int]:
    """Numbers of steps after which l1's sparsity is adapted, Croce & Hein 2021, section 3.3: every 4 percent."""
    every = max(1, int(0.04 * steps))
    return set(range(every, steps + 1, every))


def likely_others(logits: Tensor, classes: Tensor, count: int) -> Tensor:
    """The ``count`` most likely classes of each row but ``classes``, at most all; ``(B, min(count, K - 1))``."""
    others = logits.scatter(1, classes[:, None], -math.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def _towards(name: str, logits: Tensor, classes: Tensor, goal: Tensor) -> Tensor:
    """The loss of an attempt to leave ``classes`` for ``goal``; ``dlr`` is Croce & Hein 2020, equation 7."""
    if name == "ce":
        return cross_entropy(logits, goal, True)
    gap = (logits.gather(1, classes[:, None]) - logits.gather(1, goal[:, None]))[:, 0]
    if name == "margin" or logits.shape[1] < 3:
        return gap
    ordered = logits.topk(min(4, logits.shape[1]), dim=1).values
    return gap / (ordered[:, 0] - ordered[:, 2:].mean(1) + 1e-12)


def _changed(problem: Problem, x: Tensor) -> Tensor:
    return (x != problem.x).flatten(1).sum(1).to(x.dtype)
