"""What attacks that look for a small perturbation share: the smallest success so far, and the search for a constant."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lit_adv.attacks.attack import Problem
from lit_adv.attacks.norms import rows
from lit_adv.attacks.objectives import margin, objective


class Nearest:
    """The smallest success of each row so far (the clean image without one), and which rows had one since `renew`.

    Args:
        problem: The whole problem.
        confidence: Margin in logits that counts as success.
    """

    def __init__(self, problem: Problem, confidence: float = 0.0) -> None:
        self.images = problem.x.clone()
        self.size = torch.full_like(problem.x[:, 0, 0, 0], math.inf)
        self.found = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
        self.confidence = confidence

    def renew(self) -> Tensor:
        """Forgets who has been found; the returned tensor is filled by later `update`s."""
        self.found = torch.zeros_like(self.found)
        return self.found

    def take(self, chosen: Tensor) -> Nearest:
        part = object.__new__(Nearest)
        part.images, part.size, part.found = self.images[chosen], self.size[chosen], self.found[chosen]
        part.confidence = self.confidence
        return part

    def put(self, chosen: Tensor, part: Nearest) -> None:
        self.images[chosen], self.size[chosen] = part.images, part.size

    def update(self, problem: Problem, active: Tensor | None, x: Tensor, logits: Tensor, size: Tensor) -> Tensor:
        """Takes rows ``active`` (None: all) of ``x`` that succeed and are smaller than what is kept.

        Returns:
            Which rows of ``x`` succeed.
        """
        hit = problem.succeeded(logits)
        if self.confidence:
            hit &= margin(logits, problem.classes, problem.targeted) <= -self.confidence
        if active is None:
            self.found |= hit
            smaller = hit & (size < self.size)
            torch.where(rows(smaller), x, self.images, out=self.images)
            torch.where(smaller, size, self.size, out=self.size)
        else:
            self.found[active] |= hit
            smaller = hit & (size < self.size[active])
            self.images[active] = torch.where(rows(smaller), x, self.images[active])
            self.size[active] = torch.where(smaller, size, self.size[active])
        return hit


def search_constant(c: Tensor, tries: int, attempt: Callable[[Tensor], Tensor]) -> None:
    """Looks for each row's smallest constant that succeeds: tenfold until one does, then bisection.

    Args:
        c: ``(B,)`` the first constants.
        tries: Constants tried; 0 tries ``c`` alone.
        attempt: From constants to whether they succeed, both ``(B,)``.
    """
    low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
    for _ in range(max(1, tries)):
        found = attempt(c)
        high = torch.where(found, torch.minimum(high, c), high)
        low = torch.where(found, low, torch.maximum(low, c))
        c = torch.where(high < math.inf, (low + high) / 2, c * 10)


def check_descent(name: str, c: float, learning_rate: float, steps: int, loss: str, confidence: float) -> None:
    """Raises ValueError unless these are fields of a descent on ``size + c f``, with f one of Carlini and Wagner's."""
    if loss not in ("f1", "f2", "f3", "f4", "f5", "f6", "f7"):
        raise ValueError(f"{name}: objective must be one of f1 to f7, got {loss!r}")
    objective(loss, name, confidence)
    for field, value in (("c", c), ("learning_rate", learning_rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: {field} must be greater than 0, got {value:g}")
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, got {steps}")


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """From ``start`` at step 0 to ``end`` at step ``steps`` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2
