"""Carlini and Wagner's attacks: Adam on the perturbation's size plus c times an objective that is 0 once fooled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import norm, rows
from lit_adv.attacks.objectives import CarliniWagnerName, Objective, margin, objective
from lit_adv.attacks.radius import Radius

# from a perturbation: its penalty (B,) and the penalty's gradient
_Penalty = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(Attack):
    """Minimises ``||x' - x||_2^2 + c f(x')``, Carlini & Wagner 2017, arXiv:1608.04644, section V-B.

    Keeps the nearest image that succeeds (with a margin of ``confidence`` logits); an image for which none is found
    comes back clean. ``steps`` backward and ``steps + 1`` forward passes for every constant tried, fewer where it
    aborts early.

    Args:
        c: Weight of the objective, for every image; the first one tried where it is searched.
        learning_rate: Adam's.
        steps: Adam steps for every constant.
        search_steps: Constants tried for each image: tenfold until one succeeds, then bisection; 0 keeps ``c``.
        confidence: Margin in logits that counts as success (the paper's kappa).
        box: ``clip`` moves the perturbation itself and clamps; ``tanh`` is the paper's change of variable, under which
            pixels at exactly 0 or 1 hardly move.
        objective: The paper's ``f1`` to ``f7``.
        abort_early: Give a constant up when its loss no longer falls; looked at every tenth of the steps.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    c: float = 1e-3
    learning_rate: float = 0.01
    steps: int = 1000
    search_steps: int = 9
    confidence: float = 0.0
    box: Literal["clip", "tanh"] = "clip"
    objective: CarliniWagnerName = "f6"
    abort_early: bool = True
    fold: bool | None = None

    minimal_norm = True

    def __post_init__(self) -> None:
        _check("CarliniWagnerL2", self.c, self.learning_rate, self.steps, self.objective, self.confidence)
        if self.search_steps < 0:
            raise ValueError(f"CarliniWagnerL2: search_steps must be at least 0, got {self.search_steps}")
        if self.box not in ("clip", "tanh"):
            raise ValueError(f"CarliniWagnerL2: box must be clip or tanh, got {self.box!r}")

    @classmethod
    def example(cls) -> CarliniWagnerL2:
        return cls(c=1.0, learning_rate=0.05, steps=10, search_steps=2)

    def _passes(self, classes: int) -> tuple[float, float]:
        searches = max(1, self.search_steps)
        return searches * (self.steps + 1), searches * self.steps

    def _craft(self, problem: Problem) -> Tensor:
        loss = objective(self.objective, confidence=self.confidence)
        best = _Best(problem, self.confidence)
        c = torch.full_like(problem.x[:, 0, 0, 0], self.c)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in range(max(1, self.search_steps)):
            found = best.renew()
            _descend(
                problem,
                problem.x,
                loss,
                c,
                _squared,
                _length,
                best,
                steps=self.steps,
                learning_rate=self.learning_rate,
                box=self.box,
                abort_early=self.abort_early,
            )
            high = torch.where(found, torch.minimum(high, c), high)
            low = torch.where(found, low, torch.maximum(low, c))
            c = torch.where(high < math.inf, (low + high) / 2, c * 10)
        return best.images


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinf(Attack):
    """Carlini and Wagner's attack for the Linf norm.

    ``variant="bounded"`` is the reading of Souri et al.'s "CW-Linf" with a radius: Adam on ``||delta||_2^2 + c f(x')``,
    clamped to the ball and to [0, 1] after every step; keeps the success with the smallest L2 norm, else returns the
    last iterate. ``variant="carlini"`` is the original (arXiv:1608.04644, section VI-C): penalises what exceeds a
    threshold, which shrinks by a tenth with every success within it, down to 1/256; c doubles with every failure, from
    1e-5 up to ``c``; an image for which nothing is found comes back clean. It starts at the threshold ``eps``: give
    ``eps=1`` for the paper's.

    Args:
        eps: Radius in pixel units of [0, 1].
        c: Weight of the objective; the largest one tried in the original (20 in the paper).
        learning_rate: Adam's.
        steps: Adam steps, in the original for every threshold and constant.
        confidence: Margin in logits that counts as success (the paper's kappa).
        variant: Which of the two.
        objective: The paper's ``f1`` to ``f7``.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    eps: Radius = 8 / 255
    c: float = 5.0
    learning_rate: float = 0.005
    steps: int = 100
    confidence: float = 0.0
    variant: Literal["bounded", "carlini"] = "bounded"
    objective: CarliniWagnerName = "f6"
    fold: bool | None = None

    norm = "linf"
    minimal_norm = True

    def __post_init__(self) -> None:
        norm("linf").check("CarliniWagnerLinf", self.eps)
        _check("CarliniWagnerLinf", self.c, self.learning_rate, self.steps, self.objective, self.confidence)
        if self.variant not in ("bounded", "carlini"):
            raise ValueError(f"CarliniWagnerLinf: variant must be bounded or carlini, got {self.variant!r}")

    @classmethod
    def example(cls) -> CarliniWagnerLinf:
        return cls(eps=16 / 255, steps=10)

    def _passes(self, classes: int) -> tuple[float, float]:
        rounds = 1
        if self.variant == "carlini":  # every round makes the threshold a tenth smaller or c twice as large
            shrinks = math.ceil(math.log(max(self.eps * 256, 1)) / -math.log(0.9)) + 1
            rounds = shrinks + max(0, math.ceil(math.log2(self.c / min(1e-5, self.c)))) + 1
        return rounds * (self.steps + 1), rounds * self.steps

    def _craft(self, problem: Problem) -> Tensor:
        loss = objective(self.objective, confidence=self.confidence)
        best = _Best(problem, self.confidence)
        if self.variant == "carlini":
            return self._shrink(problem, loss, best)
        c = torch.full_like(problem.x[:, 0, 0, 0], self.c)
        found = best.renew()
        last = _descend(
            problem,
            problem.x,
            loss,
            c,
            _squared,
            _length,
            best,
            steps=self.steps,
            learning_rate=self.learning_rate,
            eps=self.eps,
        )
        return torch.where(rows(found), best.images, last)

    def _shrink(self, problem: Problem, loss: Objective, best: _Best) -> Tensor:
        start = problem.x
        threshold = torch.full_like(start[:, 0, 0, 0], self.eps)
        c = torch.full_like(threshold, min(1e-5, self.c))
        active = torch.arange(len(start), device=start.device)
        part = problem
        linf = norm("linf")
        while len(active):
            view = best.take(active)
            shown = threshold  # the closure must keep this round's thresholds
            _descend(
                part,
                start,
                loss,
                c,
                lambda delta, shown=shown: _excess(delta, shown),  # type: ignore[misc]
                linf.size,
                view,
                steps=self.steps,
                learning_rate=self.learning_rate,
                eps=self.eps,
            )
            best.put(active, view)
            start = view.images
            # a success outside the threshold, such as the one it starts from, does not count; the share is for rounding
            found = view.size <= 1.0001 * threshold
            threshold = torch.where(found, 0.9 * view.size, threshold)
            c = torch.where(found, c, 2 * c)
            going = ((threshold >= 1 / 256) | view.size.isinf()) & (c <= self.c)
            kept = going.nonzero()[:, 0]
            active, part, start, threshold, c = active[kept], part.take(kept), start[kept], threshold[kept], c[kept]
        return best.images


class _Best:
    """The smallest success of each row so far, and which rows had one since `renew`."""

    def __init__(self, problem: Problem, confidence: float) -> None:
        self.images = problem.x.clone()
        self.size = torch.full_like(problem.x[:, 0, 0, 0], math.inf)
        self.found = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
        self.confidence = confidence

    def renew(self) -> Tensor:
        """Forgets who has been found; the returned tensor is filled by later `update`s."""
        self.found = torch.zeros_like(self.found)
        return self.found

    def take(self, chosen: Tensor) -> _Best:
        part = object.__new__(_Best)
        part.images, part.size, part.found = self.images[chosen], self.size[chosen], self.found[chosen]
        part.confidence = self.confidence
        return part

    def put(self, chosen: Tensor, part: _Best) -> None:
        self.images[chosen], self.size[chosen] = part.images, part.size

    def update(self, problem: Problem, active: Tensor | None, x: Tensor, logits: Tensor, size: Tensor) -> None:
        """Takes rows ``active`` (None: all) of ``x`` that succeed and are smaller than what is kept."""
        hit = problem.succeeded(logits)
        if self.confidence:
            hit &= margin(logits, problem.classes, problem.targeted) <= -self.confidence
        if active is None:
            self.found |= hit
            smaller = hit & (size < self.size)
            self.images = torch.where(rows(smaller), x, self.images)
            self.size = torch.where(smaller, size, self.size)
        else:
            self.found[active] |= hit
            smaller = hit & (size < self.size[active])
            self.images[active] = torch.where(rows(smaller), x, self.images[active])
            self.size[active] = torch.where(smaller, size, self.size[active])


def _descend(
    problem: Problem,
    start: Tensor,
    loss: Objective,
    c: Tensor,
    penalty: _Penalty,
    measure: Callable[[Tensor], Tensor],
    best: _Best,
    *,
    steps: int,
    learning_rate: float,
    box: str = "clip",
    eps: float | None = None,
    abort_early: bool = False,
) -> Tensor:
    """Adam on ``penalty(x' - x) + c loss``, each row with its own c; fills ``best`` and returns the last iterates."""
    part, active = problem, None
    x = start
    # the bound keeps atanh finite; distances are always taken to the true image
    w = torch.atanh((2 * start - 1) * 0.999999) if box == "tanh" else start
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    last = x.clone()
    checked = torch.full_like(c, math.inf)
    every = max(1, steps // 10)
    for step in range(1, steps + 1):
        logits, losses, gradient = part.gradient(x, loss)
        delta = x - part.x
        best.update(part, active, x, logits, measure(delta))
        cost, slope = penalty(delta)
        if abort_early and step % every == 0:
            total = cost + c * losses
            going = total <= 0.9999 * checked
            checked = total
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                rest = torch.arange(len(problem), device=x.device) if active is None else active
                last[rest] = x
                if not len(kept):
                    return last
                active, part = rest[kept], part.take(kept)
                x, w, c, slope, gradient, first, second, checked = (
                    each[kept] for each in (x, w, c, slope, gradient, first, second, checked)
                )
        # Adam squares it, and float32 ends at 3e38
        gradient = (slope + rows(c) * gradient).clamp(-1e18, 1e18)
        if box == "tanh":
            gradient = gradient * (0.5 * (1 - torch.tanh(w).square()))
        first = first.lerp(gradient, 0.1)
        second = second.lerp(gradient.square(), 0.001)
        scale = math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        # Adam's 1e-8, in the form that divides it by the same bias correction
        update = first * scale / (second.sqrt() + 1e-8 * math.sqrt(1 - 0.999**step))
        w = w - learning_rate * update
        if box == "tanh":
            x = part.restrict(0.5 * (torch.tanh(w) + 1))
        else:
            w = w if eps is None else w.clamp(part.x - eps, part.x + eps)
            x = w = part.restrict(w)
        part.iterated()
    best.update(part, active, x, part.logits(x), measure(x - part.x))
    if active is None:
        return x
    last[active] = x
    return last


def _squared(delta: Tensor) -> tuple[Tensor, Tensor]:
    return delta.flatten(1).square().sum(1), 2 * delta


def _excess(delta: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    over = delta.abs() - rows(threshold)
    return over.relu().flatten(1).sum(1), delta.sign() * (over > 0)


def _length(delta: Tensor) -> Tensor:
    return torch.linalg.vector_norm(delta.flatten(1), dim=1)


def _check(name: str, c: float, learning_rate: float, steps: int, loss: str, confidence: float) -> None:
    if loss not in ("f1", "f2", "f3", "f4", "f5", "f6", "f7"):
        raise ValueError(f"{name}: objective must be one of f1 to f7, got {loss!r}")
    objective(loss, name, confidence)
    for field, value in (("c", c), ("learning_rate", learning_rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: {field} must be greater than 0, got {value:g}")
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, got {steps}")
