"""What an attack needs to know of a norm: steepest direction, projection, a random point of its ball, its size."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_adv.attacks.randomness import Draws

NormName = Literal["linf", "l2", "l1", "l0"]
DenseNormName = Literal["linf", "l2"]


class Norm(ABC):
    """A norm over each row's elements; tensors are ``(B, C, H, W)``, radii a float or ``(B,)``."""

    name: str
    limit: float = math.inf  # the largest radius that means anything for images in [0, 1]
    sparse: bool = False  # whether its steepest direction moves a few elements only

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


class L1(Norm):
    """Sum of absolute values."""

    name = "l1"
    sparse = True
    share = 0.01

    def steepest(self, gradient: Tensor) -> Tensor:
        """Equal steps on the hundredth of the elements with the largest gradient, Tramer & Boneh 2019, section 3.

        The one steepest element would need as many steps as there are elements to change.
        """
        flat = gradient.flatten(1)
        chosen = flat.abs().topk(max(1, math.ceil(self.share * flat.shape[1])), dim=1).indices
        kept = torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen).sign())
        return (kept / kept.abs().sum(1, keepdim=True).clamp(min=1)).view_as(gradient)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        inside = self._shrink(delta, torch.full_like(delta, math.inf), eps)
        return torch.where(rows(self.size(delta)) > eps, inside, delta)

    def enforce(self, x: Tensor, moved: Tensor, eps: float) -> Tensor:
        """The nearest point of ball and box together, Croce & Hein 2021, arXiv:2103.01208, section 2.3."""
        delta = moved - x
        room = torch.where(delta > 0, 1 - x, x).clamp(min=0)
        inside = self._shrink(delta, room, eps)
        return torch.where(rows(self.size(delta)) > eps, x + inside, moved)

    def random(self, draws: Draws, like: Tensor, eps: float, mask: Tensor | None) -> Tensor:
        # exponential spacings are uniform on the simplex; one more of them leaves a part of the radius unused
        spacings = -(draws.uniform(tuple(like.shape[1:]), like.dtype) + 2.0**-25).log()
        rest = -(draws.uniform((1,), like.dtype) + 2.0**-25).log()
        signs = draws.integers(tuple(like.shape[1:]), 2).to(like.dtype) * 2 - 1
        if mask is not None:
            spacings = spacings * mask
        total = spacings.flatten(1).sum(1) + rest[:, 0]
        return signs * spacings * (eps / rows(total))

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)

    def dual(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).abs().amax(1)

    def _shrink(self, delta: Tensor, room: Tensor, eps: float) -> Tensor:
        """min(max(|delta| - t, 0), room) with the sign of delta and the least t >= 0 that gives a size within eps."""
        long = delta.flatten(1).abs()
        room = room.flatten(1)
        # the size is piecewise linear in t: an element begins to count below |delta| and is full below |delta| - room
        ends, order = torch.cat([long, (long - room).clamp(min=0)], 1).sort(dim=1, descending=True)
        slopes = torch.where(order < long.shape[1], 1.0, -1.0).double().cumsum(1)
        sizes = (slopes[:, :-1] * (ends[:, :-1] - ends[:, 1:])).cumsum(1)  # at all ends but the first, where it is 0
        beyond = sizes >= eps
        before = torch.where(beyond.any(1), beyond.to(torch.int8).argmax(1), sizes.shape[1] - 1)[:, None]
        level = ends.gather(1, before + 1) + (sizes.gather(1, before) - eps) / slopes.gather(1, before).clamp(min=1)
        kept = torch.minimum((long - level.clamp(min=0).to(long.dtype)).clamp(min=0), room)
        # the sums are rounded
        kept = kept * (eps / kept.sum(1, keepdim=True).clamp(min=max(eps, torch.finfo(kept.dtype).tiny)))
        return (kept * delta.flatten(1).sign()).view_as(delta)


class L0(Norm):
    """Number of pixels changed, in any channel; radii are numbers of pixels."""

    name = "l0"

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient over its L1 norm; only the projection is sparse (Croce & Hein 2019, arXiv:1909.05040, 3.2)."""
        return over_l1(gradient)

    def project(self, delta: Tensor, eps: float) -> Tensor:
        return delta * self._largest(delta.square().sum(1), eps)

    def enforce(self, x: Tensor, moved: Tensor, eps: float) -> Tensor:
        """The nearest point of ball and box together, Croce & Hein 2019, section 3.2."""
        delta = moved - x
        boxed = moved.clamp(0, 1)
        # what giving a pixel up costs more than clamping it
        gain = (delta.square() - (boxed - moved).square()).sum(1)
        inside = torch.where(self._largest(gain, eps) > 0, boxed, x)
        return torch.where(rows(self.size(delta)) > eps, inside, moved)

    def random(self, draws: Draws, like: Tensor, eps: float, mask: Tensor | None) -> Tensor:
        scores = draws.uniform(tuple(like.shape[2:]), like.dtype) + 1
        values = draws.uniform(tuple(like.shape[1:]), like.dtype) * 2 - 1
        if mask is not None:
            scores = scores * mask[:, 0]
            values = values * mask
        return values * self._largest(scores, eps)

    def size(self, delta: Tensor) -> Tensor:
        return (delta != 0).any(1).flatten(1).sum(1).to(delta.dtype)

    def dual(self, gradient: Tensor) -> Tensor:
        raise NotImplementedError("l0 is no norm and has no dual")

    def _largest(self, scores: Tensor, count: float) -> Tensor:
        """A 0/1 mask ``(B, 1, H, W)`` of the ``count`` pixels with the largest scores ``(B, H, W)``."""
        flat = scores.flatten(1)
        count = min(int(count), flat.shape[1])
        chosen = flat.topk(count, dim=1).indices
        return torch.zeros_like(flat).scatter(1, chosen, 1).view(len(flat), 1, *scores.shape[1:])


_NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2(), L1(), L0())}


def norm(name: str, owner: str = "norm", choices: Sequence[str] = ("linf", "l2", "l1", "l0")) -> Norm:
    """The norm of that name.

    Raises:
        ValueError: It is none of ``choices``.
    """
    if name not in choices:
        raise ValueError(f"{owner}: norm must be one of {', '.join(choices)}, got {name!r}")
    return _NORMS[name]


def over_l1(gradient: Tensor) -> Tensor:
    """Each row over its L1 norm; 0 where that is 0."""
    # divided by its largest element first, or the sum of a huge gradient overflows
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / rows(gradient.flatten(1).abs().amax(1)).clamp(min=tiny)
    return scaled / rows(scaled.flatten(1).abs().sum(1)).clamp(min=tiny)


def rows(values: Tensor) -> Tensor:
    """``(B,)`` to ``(B, 1, 1, 1)``, to scale images row by row."""
    return values.view(-1, 1, 1, 1)
