"""FMN: projected descent on the margin in a ball whose radius is led to the boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.nearest import Nearest, cosine
from lit_adv.attacks.norms import Norm, NormName, norm
from lit_adv.attacks.objectives import margin


@dataclass(frozen=True, kw_only=True)
class FMN(Attack):
    """Fast minimum norm, Pintor et al. 2021, arXiv:2102.12827, algorithm 1.

    Each step goes along the gradient of the logits' margin, without the pixels that it pushes out of the box, and is
    projected onto a ball. Until a first success the ball reaches to the boundary of the linearised network; then its
    radius shrinks by ``gamma`` after a success and grows by it otherwise. Keeps the nearest image that succeeds; an
    image for which none is found comes back clean. ``steps`` forward and ``steps - 1`` backward passes: the first looks
    at the image itself, and from the last no step is taken.

    Args:
        norm: Norm of the perturbation; ``l0`` counts pixels, its radius changes by at least one.
        steps: Images looked at.
        step_size: L2 length of the first step, in every norm; falls to a hundredth along a cosine.
        gamma: Share by which the radius changes at first.
        gamma_end: The same at the end, along a cosine.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: NormName = "l2"
    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    gamma_end: float = 1e-3
    fold: bool | None = None

    minimal_norm = True

    def __post_init__(self) -> None:
        norm(self.norm, "FMN")
        if self.steps < 2:
            raise ValueError(f"FMN: steps must be at least 2 (the first looks at the image itself), got {self.steps}")
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"FMN: step_size must be greater than 0, got {self.step_size:g} (images are in [0, 1])")
        for field, value in (("gamma", self.gamma), ("gamma_end", self.gamma_end)):
            if not 0 < value < 1:
                raise ValueError(f"FMN: {field} must be between 0 and 1, got {value:g}")

    @classmethod
    def example(cls) -> FMN:
        return cls(steps=12, step_size=0.5)

    def _passes(self, classes: int) -> tuple[float, float]:
        return self.steps, self.steps - 1

    def _craft(self, problem: Problem) -> Tensor:
        ball, best = norm(self.norm), Nearest(problem)
        x = problem.x
        room = torch.maximum(x, 1 - x)
        widest = ball.size(room if problem.mask is None else room * problem.mask)
        radius = torch.ones_like(widest)  # of l0; the other norms set their own
        for step in range(self.steps - 1):
            logits, losses, gradient = problem.gradient(x, margin)
            # at the end of the box, or the few elements that a sparse ball holds would be those that cannot move
            gradient.masked_fill_(((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)), 0)
            delta = x - problem.x
            size = ball.size(delta)
            hit = best.update(problem, None, x, logits, size)
            share = cosine(self.gamma, self.gamma_end, step, self.steps)
            if self.norm == "l0":
                smaller = torch.minimum(radius - 1, (radius * (1 - share)).floor())
                larger = torch.maximum(radius + 1, (radius * (1 + share)).floor())
            else:
                smaller, larger = radius * (1 - share), radius * (1 + share)
                # the share more crosses a boundary that is flat, on which rounding would end
                reach = (size + _to_boundary(ball, losses, gradient)) * (1 + self.gamma_end)
                larger = torch.where(best.found, larger, reach)
            radius = torch.where(hit, torch.minimum(smaller, best.size), larger).clamp(min=0).minimum(widest)
            length = cosine(self.step_size, 0.01 * self.step_size, step, self.steps)
            moved = delta - length * norm("l2").steepest(gradient)
            x = problem.restrict(problem.x + _into_ball(self.norm, moved, radius))
            problem.iterated()
        best.update(problem, None, x, problem.logits(x), ball.size(x - problem.x))
        return best.images


def _to_boundary(ball: Norm, losses: Tensor, gradient: Tensor) -> Tensor:
    """Distance to the boundary of the linearised network, ``(B,)``."""
    return losses.abs() / ball.dual(gradient).clamp(min=torch.finfo(losses.dtype).tiny)


def _into_ball(name: str, delta: Tensor, radius: Tensor) -> Tensor:
    """The nearest point of the ball, with a radius ``(B,)`` for each row."""
    flat, radius = delta.flatten(1), radius[:, None]
    if name == "linf":
        flat = flat.clamp(-radius, radius)
    elif name == "l2":
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        flat = flat * (radius / length.clamp(min=torch.finfo(flat.dtype).tiny)).clamp(max=1)
    elif name == "l1":
        flat = _soft(flat, radius)
    else:
        order = delta.square().sum(1).flatten(1).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(order.shape[1], device=order.device)
        kept = torch.zeros_like(order).scatter(1, order, (places < radius).to(order.dtype))
        return delta * kept.view(-1, 1, *delta.shape[2:])
    return flat.view_as(delta)


def _soft(flat: Tensor, radius: Tensor) -> Tensor:
    """Soft thresholding to an L1 norm; Newton's method finds the threshold from below, and sorts nothing."""
    long = flat.abs()
    level = torch.zeros_like(radius)
    for _ in range(20):
        over = (long - level).clamp_(min=0)
        level = level + (over.sum(1, keepdim=True) - radius).clamp(min=0) / over.count_nonzero(1)[:, None].clamp(min=1)
    return (long - level).clamp_(min=0) * flat.sign()
