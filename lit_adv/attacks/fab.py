"""FAB: the smallest perturbation that changes the class, by projections onto linearised boundaries inside the box."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.apgd import BallName, likely_others
from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.deepfool import nearest_boundary
from lit_adv.attacks.norms import Norm, norm, rows
from lit_adv.attacks.radius import Radius


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Fast adaptive boundary attack, Croce & Hein 2020, arXiv:1907.02044, algorithm 1.

    Each step linearises the boundary to the nearest other class and projects both the iterate and the image onto it,
    inside [0, 1]; the next iterate is a mean of the two, and an iterate that succeeds is pulled back towards the image.
    The smallest success is kept. An image for which none is found comes back clean.

    A run takes ``steps`` backward passes for every boundary looked at, and ``steps + 1`` forward passes, one more for
    every step at which some image of the batch succeeds (the last is none, nor is the first where the labels are the
    predictions). Memory does not grow with the number of classes.

    Args:
        norm: Norm of the perturbation.
        eps: Only what lies within this radius counts (pixel units of [0, 1]); None takes any size.
        steps: Steps a run.
        restarts: Runs; those after the first start at random, half as far away as the best so far.
        target_classes: FAB-T: one run of all restarts towards each of that many most likely other classes, with one
            backward pass a step; at most all of them. None looks at all classes at every step. Where the call is
            targeted, either looks at the boundary between the target and its strongest rival.
        alpha_max: Largest weight of the projection of the image itself.
        overshoot: Share by which a projection is lengthened (eta - 1 in the paper).
        beta: Share of the perturbation that is left where an iterate succeeds.
        stop_at_success: An image is done with its first success (within ``eps``); larger perturbations, fewer passes.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: BallName = "linf"
    eps: Radius | None = None
    steps: int = 100
    restarts: int = 1
    target_classes: int | None = None
    alpha_max: float = 0.1
    overshoot: float = 0.05
    beta: float = 0.9
    stop_at_success: bool = False
    fold: bool | None = None

    minimal_norm = True

    def __post_init__(self) -> None:
        ball = norm(self.norm, "FAB", ("linf", "l2", "l1"))
        if self.eps is not None:
            ball.check("FAB", self.eps)
        for field in ("steps", "restarts"):
            if getattr(self, field) < 1:
                raise ValueError(f"FAB: {field} must be at least 1, got {getattr(self, field)}")
        if self.target_classes is not None and self.target_classes < 1:
            raise ValueError(f"FAB: target_classes must be at least 1, got {self.target_classes} (None: all at once)")
        for field in ("alpha_max", "beta"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"FAB: {field} must be in [0, 1], got {getattr(self, field):g}")
        if not 0 <= self.overshoot < math.inf:
            raise ValueError(f"FAB: overshoot must be at least 0, got {self.overshoot:g}")

    @classmethod
    def example(cls) -> FAB:
        return cls(eps=0.3, steps=5)

    def _budget(self) -> tuple[Norm, float] | None:
        return None if self.eps is None else super()._budget()

    def _passes(self, classes: int) -> tuple[float, float]:
        forwards = (2 * self.steps + 1) * self.restarts
        backwards = self.steps * self.restarts
        if self.target_classes is None:
            return forwards, backwards * (classes - 1)
        tried = min(self.target_classes, classes - 1)
        return 1 + tried * forwards, tried * backwards

    def _craft(self, problem: Problem) -> Tensor:
        ball = norm(self.norm)
        found = _Found(problem, math.inf if self.eps is None else float(self.eps) * (1 + 1e-6))
        goals: Tensor | None = None
        if self.target_classes is not None and not problem.targeted:
            logits = problem.logits(problem.x)
            found.size = torch.where(problem.succeeded(logits), 0, found.size)
            goals = likely_others(logits, problem.classes, self.target_classes)
        whole = ball.size(torch.ones_like(problem.x))
        for run in range(self.restarts * (1 if goals is None else goals.shape[1])):
            start = problem.x
            if run % self.restarts:
                # for all rows, so that a row's numbers do not depend on when the others are done
                away = ball.random(problem.draws, start, 1.0, problem.mask)
                reach = torch.minimum(found.size, whole).clamp(max=found.limit) / 2
                start = problem.restrict(
                    start + away * rows(reach / ball.size(away).clamp(min=torch.finfo(start.dtype).tiny))
                )
            chosen = (~self._done(found.size, found.limit)).nonzero()[:, 0]
            if not len(chosen):
                break
            goal = None if goals is None else goals[chosen, run // self.restarts]
            self._search(problem.take(chosen), start[chosen], goal, found, chosen)
        return torch.where(rows(found.size <= found.limit), found.images, problem.x)

    def _done(self, size: Tensor, limit: float) -> Tensor:
        """Which rows nothing is left to do for, by the size of their smallest success."""
        # without eps the limit is infinite, and so is the size where nothing has been found
        return (size <= limit) & (size < math.inf) if self.stop_at_success else size == 0

    def _search(self, part: Problem, x: Tensor, goal: Tensor | None, found: _Found, active: Tensor) -> None:
        """One run from ``x``, for the rows ``active`` of ``found``."""
        ball = norm(self.norm)
        for step in range(self.steps + 1):
            if step == self.steps:
                found.update(active, x, ball.size(x - part.x), part.succeeded(part.logits(x)))
                return
            leaf, logits = part.graph(x)
            hit = part.succeeded(logits)
            if bool(hit.any()):
                found.update(active, x, ball.size(x - part.x), hit)
                x = torch.where(rows(hit), part.x + self.beta * (x - part.x), x)
                kept = (~self._done(found.size[active], found.limit)).nonzero()[:, 0]
                if not len(kept):
                    return
                if len(kept) < len(active):
                    active, part, x = active[kept], part.take(kept), x[kept]
                    goal = None if goal is None else goal[kept]
                del leaf, logits  # before the next graph takes their place
                leaf, logits = part.graph(x)
            rivals = _rivals(part, logits, goal)
            _, gap, normal = nearest_boundary(part, ball, leaf, logits, rivals)
            x = self._step(part, x, gap, normal)
            part.iterated()

    def _step(self, problem: Problem, x: Tensor, gap: Tensor, normal: Tensor) -> Tensor:
        """From ``x`` to the mean of the two projections onto the plane ``gap + <normal, . - x> = 0``."""
        ball = norm(self.norm)
        points = torch.stack([x, problem.x])
        gaps = torch.stack([gap, gap + (normal * (problem.x - x)).flatten(1).sum(1)])
        moves = to_plane(self.norm, points.flatten(2), normal.flatten(1), gaps).view_as(points)
        sizes = [ball.size(move) for move in moves]
        weight = sizes[0] / (sizes[0] + sizes[1]).clamp(min=torch.finfo(x.dtype).tiny)
        points = points.add_(moves, alpha=1 + self.overshoot)
        return problem.restrict(points[0].lerp(points[1], rows(weight.clamp(max=self.alpha_max))))


class _Found:
    """The smallest success of each row so far."""

    def __init__(self, problem: Problem, limit: float) -> None:
        self.images = problem.x.clone()
        self.size = torch.full_like(problem.x[:, 0, 0, 0], math.inf)
        self.limit = limit

    def update(self, active: Tensor, x: Tensor, size: Tensor, hit: Tensor) -> None:
        smaller = hit & (size < self.size[active])
        self.images[active] = torch.where(rows(smaller), x, self.images[active])
        self.size[active] = torch.where(smaller, size, self.size[active])


def to_plane(name: str, points: Tensor, normal: Tensor, gaps: Tensor) -> Tensor:
    """The shortest moves onto a plane that stay in [0, 1], Croce & Hein 2020, section 2.2 and appendix A.

    Args:
        name: ``linf``, ``l2`` or ``l1``.
        points: ``(N, B, D)`` in [0, 1].
        normal: ``(B, D)``, of the plane ``gap + <normal, z - point> = 0``; where it is 0 nothing moves.
        gaps: ``(N, B)``.

    Returns:
        ``(N, B, D)``; where no point of the box lies on the plane, the move to a corner that comes nearest to it.
    """
    slope = normal.abs()
    signs = normal.sign() * -gaps.sign()[..., None]
    room = torch.where(signs > 0, 1 - points, points).mul_(signs.abs())
    moved = _fill(slope, room, gaps.abs()) if name == "l1" else _spread(name, slope, room, gaps.abs())
    return moved.mul_(signs)


def _fill(slope: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """Moves in [0, room] with ``<slope, move> = wanted``, the steepest elements first."""
    slope, order = slope.sort(dim=-1, descending=True)
    order = order.expand_as(room)
    ordered = room.gather(-1, order)
    gain = slope * ordered
    before = gain.cumsum(-1) - gain
    missing = (wanted[..., None] - before).clamp_(min=0)
    filled = torch.minimum(missing / slope.clamp(min=torch.finfo(slope.dtype).tiny), ordered)
    return torch.zeros_like(room).scatter_(-1, order, filled)


def _spread(name: str, slope: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """Moves ``min(t v, room)`` with ``<slope, move> = wanted``, where v is 1 in linf and ``slope`` in l2.

    Newton's method on a concave, piecewise linear function: t grows, past at least one kink a time, until no further
    element is at the end of its room; then it is exact.
    """
    tiny = torch.finfo(room.dtype).tiny
    gain = slope * room
    growth = slope if name == "linf" else slope.square()
    ends = room if name == "linf" else room / slope.clamp(min=tiny)
    possible = gain.sum(-1) > wanted
    t = torch.zeros_like(wanted)
    count = torch.full_like(wanted, -1)
    while True:
        free = (ends > t[..., None]).to(room.dtype)
        seen, count = count, free.sum(-1)
        if bool(((count == seen) | ~possible).all()):
            break
        full = gain.sum(-1) - (gain * free).sum(-1)
        rate = (growth * free).sum(-1)
        t = torch.maximum(t, (wanted - full) / rate.clamp(min=tiny))
    move = torch.minimum(t[..., None] * (1 if name == "linf" else slope), room)
    return torch.where(possible[..., None], move, room)


def _rivals(problem: Problem, logits: Tensor, goal: Tensor | None) -> Tensor:
    """The classes whose boundaries are looked at, ``(B, n)``; one column, unused, where targeted."""
    if problem.targeted:
        return problem.classes[:, None]
    if goal is not None:
        return goal[:, None]
    return likely_others(logits.detach(), problem.classes, logits.shape[1] - 1)
