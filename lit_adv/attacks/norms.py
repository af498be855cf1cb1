"""What an attack needs to know of a norm: steepest direction, projection, a random point of its ball, its size."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_adv.attacks.randomness import Draws

NormName = Literal["linf", "l2"]


class Norm(ABC):
    """A norm over each row's elements; tensors are ``(B, C, H, W)``, radii a float or ``(B,)``."""

    name: str
    limit: float = math.inf  # the largest radius that means anything for images in [0, 1]

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm with the largest inner product with ``gradient``; 0 where that is 0."""

    @abstractmethod
    def project(self, delta: Tensor, eps: float) -> Tensor:
        """The nearest point of the ball of radius ``eps``; a point inside is returned bit for bit."""

    @abstractmethod
    def random(self, draws: Draws, like: Tensor, eps: float, mask: Tensor | None) -> Tensor:
        """A uniform point of the ball over the masked coordinates (all without a mask)."""

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """The norm of each row, ``(B,)``."""

    @abstractmethod
    def dual(self, gradient: Tensor) -> Tensor:
        """The dual norm of each row, ``(B,)``: the slope along `steepest`."""

    def enforce(self, x: Tensor, moved: Tensor, eps: float) -> Tensor:
        """``moved``, brought into the ball around ``x`` where it has left it; bit for bit the same elsewhere."""
        delta = moved - x
        return torch.where(rows(self.size(delta)) > eps, x + self.project(delta, eps), moved)

    def check(self, owner: str, eps: float, field: str = "eps") -> None:
        """Raises ValueError unless ``eps`` is a radius in pixel units of [0, 1]."""
        if not isinstance(eps, int | float):
            raise ValueError(f"{owner}: {field} must be a number, got {eps!r} (Radius reads fractions such as 8/255)")
        if not 0 <= eps <= self.limit or eps == math.inf:
            wanted = f"in [0, {self.limit:g}]" if self.limit < math.inf else "at least 0 and finite"
            hint = f"; did you mean {eps:g}/255?" if eps > self.limit else ""
            raise ValueError(
                f"{owner}: {field} must be {wanted} for {self.name}, got {eps:g} (images are in [0, 1]{hint})"
            )


class Linf(Norm):
    """Largest absolute value."""

    name = "linf"
    limit = 1.0

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor, eps: float) -> Tensor:
        return delta.clamp(-eps, eps)

    def enforce(self, x: Tensor, moved: Tensor, eps: float) -> Tensor:
        return moved.clamp(x - eps, x + eps)

    def random(self, draws: Draws, like: Tensor, eps: float, mask: Tensor | None) -> Tensor:
        point = draws.uniform(tuple(like.shape[1:]), like.dtype).mul_(2).sub_(1).mul_(eps)
        return point if mask is None else point * mask

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def dual(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).abs().sum(1)


class L2(Norm):
    """Euclidean length."""

    name = "l2"

    def steepest(self, gradient: Tensor) -> Tensor:
        # divided by its largest element first, or the squares of a saturated model's gradient underflow to 0
        largest = rows(gradient.flatten(1).abs().amax(1))
        scaled = gradient / largest.clamp(min=torch.finfo(gradient.dtype).tiny)
        length = rows(self.size(scaled))
        return scaled / length.clamp(min=torch.finfo(gradient.dtype).tiny)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        length = rows(self.size(delta))
        inside = delta * (eps / length.clamp(min=torch.finfo(delta.dtype).tiny))
        return torch.where(length > eps, inside, delta)

    def random(self, draws: Draws, like: Tensor, eps: float, mask: Tensor | None) -> Tensor:
        direction = draws.normal(tuple(like.shape[1:]), like.dtype)
        radius = draws.uniform((1, 1, 1), like.dtype)
        if mask is None:
            dimensions: Tensor | int = like[0].numel()
        else:
            direction = direction * mask
            dimensions = (mask.expand(-1, like.shape[1], -1, -1)).flatten(1).sum(1).clamp(min=1).view(-1, 1, 1, 1)
        return self.steepest(direction) * (eps * radius ** (1 / dimensions))

    def size(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta.flatten(1), dim=1)

    def dual(self, gradient: Tensor) -> Tensor:
        return self.size(gradient)


_NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2())}


def norm(name: str, owner: str = "norm") -> Norm:
    """The norm of that name.

    Raises:
        ValueError: No such norm.
    """
    if name not in _NORMS:
        raise ValueError(f"{owner}: norm must be one of {', '.join(_NORMS)}, got {name!r}")
    return _NORMS[name]


def rows(values: Tensor) -> Tensor:
    """``(B,)`` to ``(B, 1, 1, 1)``, to scale images row by row."""
    return values.view(-1, 1, 1, 1)
