"""Carlini and Wagner's attacks: Adam on the perturbation's size plus c times an objective that is 0 once fooled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.nearest import Nearest, check_descent, search_constant
from lit_adv.attacks.norms import norm, rows
from lit_adv.attacks.objectives import CarliniWagnerName, Objective, margin, objective
from lit_adv.attacks.radius import Radius

# from a perturbation, whose memory it may use: its size and its penalty, both (B,), and the penalty's gradient
_Penalty = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(Attack):
    """Minimises ``||x' - x||_2^2 + c f(x')``, Carlini & Wagner 2017, arXiv:1608.04644, section V-B.

    Keeps the nearest image that succeeds (with a margin of ``confidence`` logits); an image for which none is found
    comes back clean. ``steps`` backward and ``steps + 1`` forward passes for every constant tried, fewer where it
    aborts early. Adam moves a pixel by about ``learning_rate`` a step: boundaries much nearer than that, in L2, are met
    with room to spare (up to a third more than 0.01 by the defaults on linear models of three classes, where images
    0.02 or more from the boundary came within 2 %); a smaller rate finds them more closely.

    Args:
        c: Weight of the objective, for every image; the first one tried where it is searched.
        learning_rate: Adam's. A pixel moves by about as much in the first steps, under ``tanh`` by half of it or less:
            give ``clip`` a smaller one where steps are few and the boundary is near.
        steps: Adam steps for every constant.
        search_steps: Constants tried for each image: tenfold until one succeeds, then bisection; 0 keeps ``c``.
        confidence: Margin in logits that counts as success (the paper's kappa).
        box: ``clip`` moves the perturbation itself and clamps; ``tanh`` is the paper's change of variable, under which
            pixels at exactly 0 or 1 hardly move.
        objective: The paper's ``f1`` to ``f7``.
        abort_early: Give a constant up when its lowest loss no longer falls; looked at every tenth of the steps, but
            never before 50 more: Adam needs as many to turn round, and shorter runs would end at larger perturbations.
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
        check_descent("CarliniWagnerL2", self.c, self.learning_rate, self.steps, self.objective, self.confidence)
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
        best = Nearest(problem, self.confidence)

        def attempt(c: Tensor) -> Tensor:
            found = best.renew()
            _descend(
                problem,
                problem.x,
                loss,
                c,
                _squared,
                best,
                steps=self.steps,
                learning_rate=self.learning_rate,
                box=self.box,
                abort_early=self.abort_early,
            )
            return found

        search_constant(torch.full_like(problem.x[:, 0, 0, 0], self.c), self.search_steps, attempt)
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
        check_descent("CarliniWagnerLinf", self.c, self.learning_rate, self.steps, self.objective, self.confidence)
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
        best = Nearest(problem, self.confidence)
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
            best,
            steps=self.steps,
            learning_rate=self.learning_rate,
            eps=self.eps,
        )
        return torch.where(rows(found), best.images, last)

    def _shrink(self, problem: Problem, loss: Objective, best: Nearest) -> Tensor:
        start = problem.x
        threshold = torch.full_like(start[:, 0, 0, 0], self.eps)
        c = torch.full_like(threshold, min(1e-5, self.c))
        active = torch.arange(len(start), device=start.device)
        part = problem
        while len(active):
            view = best.take(active)
            shown = threshold  # the closure must keep this round's thresholds
            _descend(
                part,
                start,
                loss,
                c,
                lambda delta, shown=shown: _excess(delta, shown),  # type: ignore[misc]
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


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL0(Attack):
    """Fewest pixels: Adam on ever fewer of them, Carlini & Wagner 2017, arXiv:1608.04644, section VI-B.

    A round goes on from the perturbation before, on the pixels that are still allowed, until it succeeds; then the
    pixels with the smallest ``|sum_channels g delta|`` are given up (``g`` the gradient of the margin in logits), at
    once with those that have not moved. Where a round finds nothing, half as many are given up instead, until one
    pixel is one too many. Keeps the last success; an image without one comes back clean. Each image has rounds of its
    own: one forward and one backward pass a step, and one of both for the success that ends a round.

    Args:
        c: Weight of the objective, beside ``||x' - x||_2^2``.
        learning_rate: Adam's.
        steps: Most Adam steps a round; most rounds take a few.
        confidence: Margin in logits that counts as success (the paper's kappa).
        share: Share of the changed pixels that a round gives up, one at least; 0 is the paper's one by one.
        objective: The paper's ``f1`` to ``f7``.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    c: float = 100.0
    learning_rate: float = 0.01
    steps: int = 100
    confidence: float = 0.0
    share: float = 0.2
    objective: CarliniWagnerName = "f6"
    fold: bool | None = None

    norm = "l0"
    minimal_norm = True

    def __post_init__(self) -> None:
        check_descent("CarliniWagnerL0", self.c, self.learning_rate, self.steps, self.objective, self.confidence)
        if not 0 <= self.share < 1:
            raise ValueError(f"CarliniWagnerL0: share must be at least 0 and less than 1, got {self.share:g}")

    @classmethod
    def example(cls) -> CarliniWagnerL0:
        return cls(learning_rate=0.1, steps=10, share=0.5)

    def _passes_of(self, classes: int, shape: torch.Size) -> tuple[float, float]:
        pixels = shape[1] * shape[2]  # each success gives one up at least, each failure halves how many
        passes = (pixels + pixels.bit_length() + 1) * (self.steps + 1)
        return passes, passes

    def _craft(self, problem: Problem) -> Tensor:
        chosen = objective(self.objective, confidence=self.confidence)

        def loss(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
            # of a success the margin's slope is wanted, and f6's is 0 there
            spare = margin(logits, classes, targeted)
            return torch.where(spare < -self.confidence, spare, chosen(logits, classes, targeted))

        best = Nearest(problem, self.confidence)
        part, active = problem, torch.arange(len(problem), device=problem.x.device)
        x = problem.x.clone()
        adam, taken = Adam(x), torch.zeros_like(x[:, 0, 0, 0])  # the steps of the round
        allowed = torch.ones_like(x[:, :1])
        held, worth = x.clone(), torch.full_like(x[:, 0], -1.0)  # the last success, and what its pixels are worth
        dropped, most = torch.zeros_like(active), torch.full_like(active, x[0, 0].numel())
        while True:
            logits, _, gradient = part.gradient(x, loss)
            delta = torch.sub(x, part.x, out=adam.work)
            changed = (delta != 0).any(1)
            pixels = changed.flatten(1).sum(1)
            hit = best.update(part, active, x, logits, pixels.to(x.dtype))
            over = (hit | (taken >= self.steps)).nonzero()[:, 0]
            if len(over):
                here, success = hit[over], rows(hit[over])
                value = (gradient[over] * delta[over]).sum(1).abs().masked_fill(~changed[over], -1.0)
                held[over] = torch.where(success, x[over], held[over])
                worth[over] = torch.where(success[:, 0], value, worth[over])
                most[over] = torch.where(here, most[over], dropped[over] // 2)
                share = (self.share * pixels[over]).long().clamp(min=1)
                dropped[over] = torch.where(here, share.minimum(most[over]), most[over])
            gradient.mul_(self.c).add_(delta, alpha=2).mul_(allowed)
            taken += 1
            adam.step(x, gradient, self.learning_rate, rows(taken))
            x.clamp_(0, 1)
            part.iterated()
            if len(over):
                allowed[over] = _most_worth(worth[over], dropped[over])
                x[over] = torch.where(allowed[over] > 0, held[over], part.x[over])
                adam.first[over], adam.second[over], taken[over] = 0, 0, 0
                going = torch.ones_like(hit)
                going[over] = (dropped[over] > 0) & (allowed[over] > 0).flatten(1).any(1)
                kept = going.nonzero()[:, 0]
                if not len(kept):
                    return best.images
                if len(kept) < len(x):
                    active, part, adam = active[kept], part.take(kept), adam.take(kept)
                    x, taken, allowed, held, worth, dropped, most = (
                        each[kept] for each in (x, taken, allowed, held, worth, dropped, most)
                    )


def _descend(
    problem: Problem,
    start: Tensor,
    loss: Objective,
    c: Tensor,
    penalty: _Penalty,
    best: Nearest,
    *,
    steps: int,
    learning_rate: float,
    box: str = "clip",
    eps: float | None = None,
    abort_early: bool = False,
) -> Tensor:
    """Adam on ``penalty(x' - x) + c loss``, each row with its own c; fills ``best`` and returns the last iterates."""
    part, active = problem, None
    x = start.clone()
    adam = Adam(x)
    ball = None if eps is None else _ball(problem.x, eps)
    # the bound keeps atanh finite; distances are always taken to the true image
    w = torch.atanh((2 * start - 1) * 0.999999) if box == "tanh" else x
    bent = torch.tanh(w) if box == "tanh" else w
    last = x.clone() if abort_early else x
    lowest, checked = torch.full_like(c, math.inf), torch.full_like(c, math.inf)
    every = max(50, steps // 10)
    for step in range(1, steps + 1):
        logits, losses, gradient = part.gradient(x, loss)
        size, cost, slope = penalty(torch.sub(x, part.x, out=adam.work))
        best.update(part, active, x, logits, size)
        gradient.mul_(rows(c)).add_(slope)
        if abort_early:
            lowest = torch.minimum(lowest, cost + c * losses)
            if step % every == 0:
                going = lowest <= 0.9999 * checked
                checked = lowest
                if not bool(going.all()):
                    kept = going.nonzero()[:, 0]
                    rest = torch.arange(len(problem), device=x.device) if active is None else active
                    last[rest] = x
                    if not len(kept):
                        return last
                    active, part, adam = rest[kept], part.take(kept), adam.take(kept)
                    x, bent, c, gradient, lowest, checked = (
                        each[kept] for each in (x, bent, c, gradient, lowest, checked)
                    )
                    w = w[kept] if box == "tanh" else x
                    ball = None if eps is None else _ball(part.x, eps)
        if box == "tanh":
            gradient.mul_(bent.square_().sub_(1).mul_(-0.5))
        adam.step(w, gradient, learning_rate, step)
        if box == "tanh":
            torch.tanh(w, out=bent)
            torch.mul(bent, 0.5, out=x).add_(0.5)
            if part.mask is not None:
                x = part.restrict(x)
        elif ball is None:
            x.clamp_(0, 1)
        else:
            x.clamp_(*ball)
        part.iterated()
    best.update(part, active, x, part.logits(x), penalty(x - part.x)[0])
    if active is None:
        return x
    last[active] = x
    return last


class Adam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) on a batch of images, in place.

    Attributes:
        work: Memory of the images' shape, free between two steps.
    """

    def __init__(self, like: Tensor) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.work = torch.empty_like(like)

    def take(self, chosen: Tensor) -> Adam:
        part = object.__new__(Adam)
        part.first, part.second = self.first[chosen], self.second[chosen]
        part.work = torch.empty_like(part.first)
        return part

    def step(self, w: Tensor, gradient: Tensor, learning_rate: float, step: int | Tensor) -> None:
        """Moves ``w``; ``step`` counts from 1, a tensor counts for each row. ``gradient`` is used up."""
        # it is squared, and float32 ends at 3e38
        gradient.clamp_(-1e18, 1e18)
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        correction = (1 - 0.999**step) ** 0.5
        torch.sqrt(self.second, out=self.work).add_(1e-8 * correction)
        w.sub_(torch.div(self.first, self.work, out=self.work).mul_(learning_rate * correction / (1 - 0.9**step)))


def _ball(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each pixel in the Linf ball and the box together."""
    return (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)


def _most_worth(worth: Tensor, dropped: Tensor) -> Tensor:
    """A 0/1 mask ``(B, 1, H, W)`` of the pixels worth at least 0, less the ``dropped`` ones that are worth least."""
    flat = worth.flatten(1)
    order = flat.argsort(dim=1, stable=True)
    first = (flat < 0).sum(1) + dropped
    kept = torch.arange(flat.shape[1], device=flat.device) >= first[:, None]
    return torch.zeros_like(flat).scatter(1, order, kept.to(flat.dtype)).view_as(worth)[:, None]


def _squared(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = norm("l2").size(delta)
    return size, size.square(), delta.mul_(2)


def _excess(delta: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size, over = norm("linf").size(delta), delta.abs().sub_(rows(threshold))
    slope = delta.sign_().mul_(over > 0)
    return size, over.relu_().flatten(1).sum(1), slope
