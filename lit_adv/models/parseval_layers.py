"""Layers whose weights are kept on a set of operators that do not enlarge differences, and sums that do not either."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.models.parseval_retraction import project_l1_ball, project_simplex

Constraint = Literal["l2", "linf"]
"""The norm in which a layer is to be 1-Lipschitz."""


class ParsevalConv2d(nn.Conv2d):
    """Convolution whose flattened weight ``(O, I kh kw)`` is kept near a tight frame (Cisse et al. 2017).

    A pixel stands in up to kh kw of the patches that a convolution sees, so orthonormal rows alone may enlarge it by
    sqrt(kh kw). The effective weight is therefore the stored one times 1 / sqrt(kh kw), safe at every stride. With
    ``linf`` the rows are kept in the l1 ball of radius 1 instead, which needs no such factor.

    Nothing in here keeps the constraint: `ParsevalRetraction` does, after each step of an optimiser.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: Side of the kernel.
        stride: Of the kernel.
        padding: Zeros at each border.
        bias: Whether there is one; it does not matter to the Lipschitz constant and is free.
        constraint: ``l2`` or ``linf``.

    Raises:
        ValueError: There is no such constraint.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        constraint: Constraint = "l2",
    ) -> None:
        _check_constraint(type(self).__name__, constraint)
        self.constraint = constraint
        self.scale = 1 / kernel_size if constraint == "l2" else 1.0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def reset_parameters(self) -> None:
        """Fulfils the constraint, with its bound reached."""
        _reset(self)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(B, I, H, W)`` to ``(B, O, H', W')``."""
        return self._conv_forward(input, self.weight * self.scale, self.bias)


class ParsevalLinear(nn.Linear):
    """Linear layer whose weight ``(O, I)`` is kept near a tight frame, or with ``linf`` its rows in the l1 ball.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether there is one; it is free.
        constraint: ``l2`` or ``linf``.

    Raises:
        ValueError: There is no such constraint.
    """

    scale = 1.0

    def __init__(self, in_features: int, out_features: int, bias: bool = True, constraint: Constraint = "l2") -> None:
        _check_constraint(type(self).__name__, constraint)
        self.constraint = constraint
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Fulfils the constraint, with its bound reached."""
        _reset(self)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(B, I)`` to ``(B, O)``."""
        return F.linear(input, self.weight, self.bias)


class ConvexSum(nn.Module):
    """Convex combination a x + (1 - a) y of a shortcut and a branch: 1-Lipschitz where both are.

    Args:
        identity_share: What the shortcut's coefficient starts as, in [0, 1].

    Attributes:
        coefficients: ``(2,)``, learned; `ParsevalRetraction` keeps them at least 0 with sum 1.

    Raises:
        ValueError: The share is not in [0, 1].
    """

    def __init__(self, identity_share: float = 0.5) -> None:
        super().__init__()
        if not 0 <= identity_share <= 1:
            raise ValueError(f"ConvexSum: identity_share must be in [0, 1], got {identity_share}")
        self.coefficients = nn.Parameter(torch.tensor([identity_share, 1 - identity_share]))

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """The combination of two tensors of one shape."""
        return self.coefficients[0] * shortcut + self.coefficients[1] * branch

    @torch.no_grad()
    def project_(self) -> None:
        """Puts the coefficients back on the simplex."""
        self.coefficients.copy_(project_simplex(self.coefficients))


ParsevalLayer = ParsevalConv2d | ParsevalLinear


def _check_constraint(owner: str, constraint: str) -> None:
    if constraint not in ("l2", "linf"):
        raise ValueError(f"{owner}: constraint must be l2 or linf, got {constraint!r}")


@torch.no_grad()
def _reset(layer: ParsevalLayer) -> None:
    nn.init.orthogonal_(layer.weight)
    if layer.constraint == "linf":
        rows = layer.weight.flatten(1)
        # inside the ball a row would start smaller than it may be
        rows = project_l1_ball(rows / rows.abs().sum(1, keepdim=True))
        layer.weight.copy_(rows.view_as(layer.weight))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
