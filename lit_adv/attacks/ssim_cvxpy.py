"""The farthest point of an SSIM ball by a general convex solver: slow, and independent of our own solution."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_adv.attacks.ssim_ball import SSIMBall


def farthest_by_cvxpy(
    x: Tensor,
    direction: Tensor,
    *,
    eps1: float = 0.0,
    eps2: float,
    box: bool = False,
    relaxed: bool = False,
    inside: Tensor | None = None,
    stay: Tensor | None = None,
    tolerance: float = 1e-12,
) -> Tensor:
    """As `ssim_ball.farthest`, one vector after the other, by cvxpy with Clarabel.

    Args:
        x: See `ssim_ball.farthest`, also for all that follows.
        direction: See there.
        eps1: See there.
        eps2: See there.
        box: See there.
        relaxed: See there.
        inside: See there.
        stay: See there.
        tolerance: Clarabel's, on feasibility and on the duality gap.

    Raises:
        ImportError: cvxpy or Clarabel is not there.
        RuntimeError: Clarabel finds no solution.
    """
    solved = []
    for row in range(len(x)):
        kept = torch.ones_like(x[row], dtype=torch.bool) if inside is None else inside[row] > 0
        point = (x if stay is None else stay)[row].clone()
        vector, g = x[row, kept].double(), direction[row, kept].double()
        flat = g if relaxed else g - g.mean()
        if len(g) > 1 and float(flat.norm()) > 1e-14 * len(g) ** 0.5 * float(g.abs().max()):
            ball = SSIMBall.around(vector[None], eps1, eps2)
            if not box or 0 < float(ball.mean) < 1:
                g = g / g.norm()
                solution = _solve(ball, g.cpu().numpy(), eps1 > 0, box, relaxed, tolerance)
                point[kept] = torch.as_tensor(solution, dtype=x.dtype, device=x.device)
        solved.append(point)
    return torch.stack(solved)


def _solve(ball: SSIMBall, g: np.ndarray, mean_moves: bool, box: bool, relaxed: bool, tolerance: float) -> np.ndarray:
    cp = _cvxpy()
    low, mean, high, radius = (float(each) for each in (ball.low, ball.mean, ball.high, ball.radius))
    # a scalar for the mean keeps the cone sparse: written with sum(y) / N it would be dense
    y, m = cp.Variable(len(g)), cp.Variable()
    constraints = [cp.norm(y - m - ball.centre[0].cpu().numpy()) <= radius]
    constraints += [low <= m, m <= high] if mean_moves else [m == mean]
    if not relaxed:
        constraints.append(cp.sum(y) == len(g) * m)
    if box:
        constraints += [y >= 0, y <= 1]
    problem = cp.Problem(cp.Maximize(g @ y), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": it says so of all that it cannot bring to the tolerance
        problem.solve(
            solver=cp.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance, max_iter=200
        )
    if y.value is None:
        raise RuntimeError(f"cvxpy: Clarabel ends with {problem.status}")
    return np.asarray(y.value)


def _cvxpy() -> Any:
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError('solver="cvxpy" needs cvxpy with Clarabel: pip install cvxpy') from error
    return cvxpy
