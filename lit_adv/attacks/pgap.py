"""PGAP and FPGAP: steps to the farthest image along the gradient whose global SSIM terms stay bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lit_adv.attacks.attack import Problem
from lit_adv.attacks.gradient import SteepestDescent
from lit_adv.attacks.objectives import Objective, objective
from lit_adv.attacks.ssim_ball import farthest
from lit_adv.attacks.ssim_cvxpy import farthest_by_cvxpy

Reference = Literal["moving", "anchored"]
Solver = Literal["exact", "cvxpy"]


class SSIMSteps(SteepestDescent):
    """x <- argmax g . y over the SSIM ball around the reference, g the gradient of ``min(margin, kappa)``.

    ``steps`` forward and as many backward passes. A region is a picture of its own: means, variances and their bounds
    are those of its pixels. With ``eps1 = 0`` they then hold for the whole image all the more.
    """

    eps1: float
    eps2: float
    steps: int
    reference: Reference
    box: bool
    per_channel: bool
    solver: Solver
    kappa: float

    relaxed: bool
    norm = "ssim"  # no ball of `norms`: `_step` keeps to its own
    random_start = False
    restarts = 1

    def _check(self) -> None:
        name = type(self).__name__
        if not 0 <= self.eps1 < 1:
            raise ValueError(f"{name}: eps1 must be in [0, 1), got {self.eps1:g} (S1 stays at least 1 - eps1^2)")
        if not 0 < self.eps2 < 1:
            raise ValueError(f"{name}: eps2 must be in (0, 1), got {self.eps2:g} (S2 stays at least 1 - eps2^2)")
        if self.steps < 1:
            raise ValueError(f"{name}: steps must be at least 1, got {self.steps}")
        if self.reference not in ("moving", "anchored"):
            raise ValueError(f"{name}: reference must be one of moving, anchored, got {self.reference!r}")
        if self.solver not in ("exact", "cvxpy"):
            raise ValueError(f"{name}: solver must be one of exact, cvxpy, got {self.solver!r}")
        if not 0 <= self.kappa < math.inf:
            raise ValueError(f"{name}: kappa must be at least 0 and finite, got {self.kappa:g} (in logits)")

    def _schedule(self) -> tuple[int, float]:
        return self.steps, 1.0

    def _budget(self) -> None:
        return None

    def _loss(self, problem: Problem) -> Objective:
        return objective("f6", type(self).__name__, self.kappa)

    def _step(self, problem: Problem, x: Tensor, direction: Tensor, step_size: float) -> Tensor:
        size = x[0, 0].numel() if self.per_channel else x[0].numel()
        solve = farthest_by_cvxpy if self.solver == "cvxpy" else farthest
        moved = solve(
            (problem.x if self.reference == "anchored" else x).reshape(-1, size),
            -direction.reshape(-1, size),
            eps1=self.eps1,
            eps2=self.eps2,
            box=self.box,
            relaxed=self.relaxed,
            inside=None if problem.mask is None else problem.mask.expand_as(x).reshape(-1, size),
            stay=x.reshape(-1, size),
        )
        return problem.restrict(moved.view(x.shape))


@dataclass(frozen=True, kw_only=True)
class PGAP(SSIMSteps):
    """Projected-gradient adversarial perturbation under SSIM-shaped constraints, S000, problems (8) and (9).

    Each step goes to the image farthest along the gradient with ``S1 >= 1 - eps1^2`` and ``S2 >= 1 - eps2^2``, the
    luminance and the structure term of SSIM with the statistics of the whole image. The solution is exact: in closed
    form without the pixel box, by active sets with it.

    Args:
        eps1: How far the mean may move, in [0, 1); 0 keeps it, problem (9).
        eps2: How far the structure may go, in (0, 1), e.g. 0.005 for ImageNet.
        steps: Most steps.
        reference: ``moving`` bounds each step by the image before it, as in the paper, so that after T steps only
            ``S2 >= 1 - (T eps2)^2`` is certain; ``anchored`` bounds every iterate by the clean image.
        box: Solve for images in [0, 1]; otherwise, as in the paper, what leaves them is clipped after each step.
        per_channel: Bound each channel by itself rather than the image as a whole.
        solver: ``exact``, or ``cvxpy`` for the same by a general solver, some hundred times slower.
        kappa: The margin in logits from which on nothing is gained.
        stop_at_success: Return the first iterate that succeeds, as in the paper.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    eps1: float = 0.0
    eps2: float = 0.005
    steps: int = 50
    reference: Reference = "moving"
    box: bool = True
    per_channel: bool = False
    solver: Solver = "exact"
    kappa: float = 50.0
    stop_at_success: bool = True
    fold: bool | None = None

    relaxed = False

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> PGAP:
        return cls(eps2=0.05, steps=3)


@dataclass(frozen=True, kw_only=True)
class FPGAP(SSIMSteps):
    """Fast PGAP, S000, equation (10): along the gradient itself rather than its part that keeps the mean.

    ``x <- mu + k22 + sqrt(k21) g / ||g||``. ``S2 >= 1 - eps2^2`` holds, while the mean moves by ``sqrt(k21) mean(g) /
    ||g||``, which ``eps1`` does not bound; where g has the mean 0 it is `PGAP`. With the box it is the farthest point
    of the same sphere in it.

    Args:
        eps1: How far the sphere's mean may move, in [0, 1), as in `PGAP`; 0 is equation (10).
        eps2: See `PGAP`, also for all that follows.
        steps: See there.
        reference: See there.
        box: See there.
        per_channel: See there.
        solver: See there.
        kappa: See there.
        stop_at_success: See there.
        fold: See there.
    """

    eps1: float = 0.0
    eps2: float = 0.005
    steps: int = 50
    reference: Reference = "moving"
    box: bool = True
    per_channel: bool = False
    solver: Solver = "exact"
    kappa: float = 50.0
    stop_at_success: bool = True
    fold: bool | None = None

    relaxed = True

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> FPGAP:
        return cls(eps2=0.05, steps=3)
