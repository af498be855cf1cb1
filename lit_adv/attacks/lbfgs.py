"""Box-constrained L-BFGS: every image its own quasi-Newton descent, all images in one batch."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.nearest import Nearest, search_constant
from lit_adv.attacks.norms import rows


@dataclass(frozen=True, kw_only=True)
class LBFGS(Attack):
    """Minimises ``||x' - x||_2^2 + c CE(x')`` in [0, 1], Szegedy et al. 2014, arXiv:1312.6199, section 4.1.

    CE is the cross-entropy to the target; untargeted, that of "any class but the label", ``-log(1 - F_label)``, which
    for two classes is the same and, unlike minus the cross-entropy to the label, does not pull the harder the further
    it is followed. A projected quasi-Newton method (Bertsekas 1982; two-loop recursion over the last ten steps, on the
    pixels that are free to move) with a line search for each image. The constant is the smallest whose minimum
    succeeds; the nearest success met anywhere is kept, and an image without one comes back clean.

    One forward and one backward pass for each evaluation: ``steps`` at most for every constant, and one for the clean
    image. Images that have converged leave.

    Args:
        c: The first weight of the cross-entropy.
        steps: Most evaluations of the objective for every constant; a step takes one, or more where it is shortened.
        search_steps: Constants tried for each image: tenfold until one succeeds, then bisection; 0 keeps ``c``.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    c: float = 1e-2
    steps: int = 100
    search_steps: int = 9
    fold: bool | None = None

    minimal_norm = True

    def __post_init__(self) -> None:
        if not 0 < self.c < math.inf:
            raise ValueError(f"LBFGS: c must be greater than 0, got {self.c:g}")
        if self.steps < 1:
            raise ValueError(f"LBFGS: steps must be at least 1, got {self.steps}")
        if self.search_steps < 0:
            raise ValueError(f"LBFGS: search_steps must be at least 0, got {self.search_steps}")

    @classmethod
    def example(cls) -> LBFGS:
        return cls(c=1.0, steps=8, search_steps=3)

    def _passes(self, classes: int) -> tuple[float, float]:
        passes = max(1, self.search_steps) * self.steps + 1
        return passes, passes

    def _craft(self, problem: Problem) -> Tensor:
        best = Nearest(problem)
        logits, losses, gradient = problem.gradient(problem.x, _surprise)
        gradient = gradient.clamp_(-_LARGEST, _LARGEST)
        done = best.update(problem, None, problem.x, logits, torch.zeros_like(losses))

        def attempt(c: Tensor) -> Tensor:
            return self._minimise(problem, c, losses, gradient, done.clone(), best)

        search_constant(torch.full_like(losses, self.c), self.search_steps, attempt)
        return best.images

    def _minimise(
        self, problem: Problem, c: Tensor, losses: Tensor, gradient: Tensor, found: Tensor, best: Nearest
    ) -> Tensor:
        """Whether the minimum for ``c`` succeeds; from the clean images, whose losses and gradients are known."""
        part, active = problem, torch.arange(len(problem), device=c.device)
        x, value, gradient = problem.x, c * losses, rows(c) * gradient
        steps: deque[tuple[Tensor, Tensor]] = deque(maxlen=10)
        tolerance = max(10 * torch.finfo(c.dtype).eps, 2e-9)
        direction = _direction(x, gradient, steps)
        length = torch.ones_like(c)
        for _ in range(self.steps):
            trial = part.restrict(x + rows(length) * direction)
            logits, losses, slope = part.gradient(trial, _surprise)
            delta, step = trial - part.x, trial - x
            size = _inner(delta, delta)
            hit = best.update(part, active, trial, logits, size.sqrt())
            trial_value = size + c * losses
            slope = rows(c) * slope.clamp_(-_LARGEST, _LARGEST) + 2 * delta
            expected = _inner(gradient, step)
            gained = value - trial_value
            taken = (gained >= -1e-4 * expected) & (expected < 0)
            # for a row that is not taken a pair of zeros, which has no part in the direction
            steps.append((rows(taken) * step, rows(taken) * (slope - gradient)))
            done = torch.where(taken, gained <= tolerance * value, (length < 1e-10) | (expected >= 0))
            x, gradient = torch.where(rows(taken), trial, x), torch.where(rows(taken), slope, gradient)
            value = torch.where(taken, trial_value, value)
            found[active] = torch.where(taken, hit, found[active])
            # the parabola through both values and the slope, Nocedal & Wright 2006, section 3.5
            shorter = (-expected / (2 * (-gained - expected))).nan_to_num(0.1).clamp(0.1, 0.5)
            length = torch.where(taken, 1, length * shorter)
            part.iterated()
            going = ~(done | (((x - gradient).clamp(0, 1) - x).flatten(1).abs().amax(1) <= 1e-5))
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                if not len(kept):
                    break
                active, part = active[kept], part.take(kept)
                x, gradient, direction, value, length, c, taken = (
                    each[kept] for each in (x, gradient, direction, value, length, c, taken)
                )
                steps = deque(((s[kept], y[kept]) for s, y in steps), maxlen=steps.maxlen)
            direction = torch.where(rows(taken), _direction(x, gradient, steps), direction)
        return found


_LARGEST = 1e15  # of a gradient's elements: they are squared and added up, and float32 ends at 3e38


def _surprise(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """-log of the probability of the target; untargeted, of all classes but the label."""
    own = logits.gather(1, classes[:, None])[:, 0]
    others = logits.scatter(1, classes[:, None], -math.inf).logsumexp(1)
    return torch.nn.functional.softplus(others - own if targeted else own - others)


def _direction(x: Tensor, gradient: Tensor, steps: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """Minus the inverse Hessian times the gradient, on the pixels that it does not push out of the box.

    The two-loop recursion, Nocedal & Wright 2006, algorithm 7.4.
    """
    free = ~(((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0)))
    q = gradient * free
    start = q
    length = _inner(q, q).sqrt()
    scale = 1 / length.clamp(min=1)
    used = []
    for s, y in steps:
        y = y * free
        sy, yy = _inner(s, y), _inner(y, y)
        valid = sy > 1e-10 * yy
        scale = torch.where(valid, sy / yy, scale)
        used.append((s * free, y, torch.where(valid, 1 / sy, 0)))
    weights = []
    for s, y, inverse in reversed(used):
        weights.append(inverse * _inner(s, q))
        q = q - rows(weights[-1]) * y
    q = rows(scale) * q
    for (s, y, inverse), weight in zip(used, reversed(weights), strict=True):
        q = q + rows(weight - inverse * _inner(y, q)) * s
    # rounding can spoil the recursion
    downhill = _inner(start, q) > 0
    return -torch.where(rows(downhill), q, start * rows(1 / length.clamp(min=1)))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
