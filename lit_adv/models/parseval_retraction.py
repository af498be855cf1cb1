"""The steps back to the constraints of Parseval networks: tight frames, l1 balls, the simplex."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def parseval_retraction_(
    weights: Iterable[Tensor], beta: float | Tensor = 3e-4, rows: float = 1.0, seed: int = 0
) -> None:
    """One step towards tight frames, in place: W <- (1 + beta) W - beta W W^T W.

    A singular value s becomes (1 + beta) s - beta s^3 and its vectors stay: a gradient step on
    ||W^T W - I||^2 (Cisse et al. 2017, section 4.1). Weights of equal sizes are handled in one batched product, a tall
    matrix through its transpose, for which the step is the same.

    Rows are sampled along the shorter side: with rows of a tall matrix the singular values would end above 1.

    Args:
        weights: Each ``(O, ...)``, read as ``(O, the rest)``; of any sizes.
        beta: Length of the step; a scalar tensor does for a step that may be switched off without asking the device.
        rows: Share of the rows of the shorter side that take the step, in (0, 1]; at least one does.
        seed: Of the sample, the same on all devices and ranks.

    Raises:
        ValueError: An argument is out of range.
    """
    if not isinstance(beta, Tensor):
        check_beta("parseval_retraction_", beta)
    check_rows("parseval_retraction_", rows)
    groups: dict[tuple[object, ...], list[Tensor]] = {}
    for weight in weights:
        if weight.ndim < 2 or not weight.is_floating_point():
            raise ValueError(
                f"parseval_retraction_: weights must be floating-point tensors (O, ...), got {weight.dtype} of shape"
                f" {tuple(weight.shape)}"
            )
        sides = sorted((len(weight), weight[0].numel()))
        groups.setdefault((*sides, weight.dtype, weight.device), []).append(weight)
    generator = torch.Generator().manual_seed(seed)
    for group in groups.values():
        _retract_(group, beta, rows, generator)


def project_simplex(values: Tensor) -> Tensor:
    """The nearest point of the simplex {a >= 0, sum a = 1} (Duchi et al. 2008, figure 1).

    Args:
        values: ``(..., n)``, n at least 1; each row is projected.

    Returns:
        The same shape.
    """
    ordered = values.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    places = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype)
    # the first is always above; a NaN is above nothing
    support = (ordered * places > excess).sum(-1, keepdim=True).clamp(min=1)
    return (values - excess.gather(-1, support - 1) / support).clamp(min=0)


def project_l1_ball(values: Tensor) -> Tensor:
    """The nearest point with sum |v| <= 1, for each row of ``(..., n)``."""
    outside = values.abs().sum(-1, keepdim=True) > 1
    return torch.where(outside, values.sign() * project_simplex(values.abs()), values)


def check_beta(owner: str, beta: float) -> None:
    """Raises ValueError unless a step of this length brings singular values between 0 and 1 nearer to 1."""
    # above .5 a singular value below 1 may jump over it
    if not 0 < beta <= 0.5:
        raise ValueError(f"{owner}: beta must be above 0 and at most 0.5, got {beta} (3e-4 is usual)")


def check_rows(owner: str, rows: float) -> None:
    """Raises ValueError unless `rows` is a share."""
    if not 0 < rows <= 1:
        raise ValueError(f"{owner}: rows must be a share in (0, 1], got {rows} (1 takes all rows)")


def _retract_(weights: list[Tensor], beta: float | Tensor, rows: float, generator: torch.Generator) -> None:
    wide = [len(weight) <= weight[0].numel() for weight in weights]
    views = [w.flatten(1) if is_wide else w.flatten(1).T for w, is_wide in zip(weights, wide, strict=True)]
    half = views[0].dtype in (torch.float16, torch.bfloat16)
    count, (short, long) = len(views), views[0].shape
    chosen = max(1, round(rows * short))
    if chosen == short and views[0].device.type == "cpu" and not half:
        # where no launch is saved: a batched product of few large matrices takes longer than one after the other
        length = float(beta)
        for weight, view, is_wide in zip(weights, views, wide, strict=True):
            found = torch.addmm(view, view @ view.mT, view, beta=1 + length, alpha=-length)
            weight.copy_((found if is_wide else found.T).reshape(weight.shape))
        return
    matrices = torch.stack(views)
    # in half precision beta times anything is lost against 1
    matrices = matrices.float() if half else matrices
    if chosen == short:
        matrices = _step(matrices, beta)
    else:
        places = torch.rand(count, short, generator=generator).argsort(1)[:, :chosen]
        places = places.to(matrices.device)[..., None].expand(-1, -1, long)
        matrices = matrices.scatter(1, places, _step(matrices.gather(1, places), beta))
    for weight, matrix, is_wide in zip(weights, matrices, wide, strict=True):
        weight.copy_((matrix if is_wide else matrix.T).reshape(weight.shape))


def _step(matrices: Tensor, beta: float | Tensor) -> Tensor:
    # through the Gram matrix of the short side; W + beta (W - W W^T W)
    return matrices + beta * (matrices - matrices @ matrices.mT @ matrices)
