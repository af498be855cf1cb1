"""The best of many random perturbations: what an attack that understands nothing of the model still finds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import norm, rows
from lit_adv.attacks.objectives import margin
from lit_adv.attacks.radius import Radius


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Attack):
    """Independent random points of the Linf ball, one after the other, until one of them succeeds.

    The brute force search of Carlini et al. 2019, arXiv:1902.06705, section 4.3: where it finds what an attack with
    gradients misses, the gradients are of no use. Every other point is a corner of the ball, ``eps`` or ``-eps`` at
    each element; the rest are uniform in the ball. All are clipped to [0, 1]. Of failures the point with the smallest
    margin is returned.

    Args:
        eps: Linf radius in pixel units of [0, 1], e.g. ``8/255``; 0 returns the images.
        draws: Most points, and forward passes, of an image.
        max_queries: Most forward passes an image may take.
        fold: Ask a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    eps: Radius = 8 / 255
    draws: int = 1000
    max_queries: int | None = None
    fold: bool | None = None

    norm = "linf"

    def __post_init__(self) -> None:
        norm("linf").check("RandomSearch", self.eps)
        if self.draws < 1:
            raise ValueError(f"RandomSearch: draws must be at least 1, got {self.draws}")
        if self.max_queries is not None and self.max_queries < 1:
            raise ValueError(f"RandomSearch: max_queries must be at least 1, got {self.max_queries}")

    @classmethod
    def example(cls) -> RandomSearch:
        return cls(eps=16 / 255, draws=10)

    def _passes(self, classes: int) -> tuple[float, float]:
        return self.draws, 0

    def _craft(self, problem: Problem) -> Tensor:
        result = problem.x.clone()
        active = torch.arange(len(result), device=result.device)
        part, lowest = problem, torch.full_like(result[:, 0, 0, 0], math.inf)
        limit = self.draws if problem.max_queries is None else min(self.draws, problem.max_queries)
        for number in range(limit):
            tried = self._point(part, corner=number % 2 == 0)
            logits = part.logits(tried)
            done = part.succeeded(logits)
            losses = margin(logits, part.classes, part.targeted)
            better = (losses < lowest) | done
            result[active] = torch.where(rows(better), tried, result[active])
            lowest = torch.where(better, losses, lowest)
            part.iterated()
            if bool(done.any()):
                kept = (~done).nonzero()[:, 0]
                if not len(kept):
                    break
                active, part, lowest = active[kept], part.take(kept), lowest[kept]
        return result

    def _point(self, problem: Problem, *, corner: bool) -> Tensor:
        shape, dtype = tuple(problem.x.shape[1:]), problem.x.dtype
        draw = problem.draws.integers(shape, 2).to(dtype) if corner else problem.draws.uniform(shape, dtype)
        return problem.restrict(problem.x + self.eps * (2 * draw - 1))
