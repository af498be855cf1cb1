"""Random perturbations of a given size: controls that an attack must beat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import NormName, norm, rows
from lit_adv.attacks.objectives import ObjectiveName, objective
from lit_adv.attacks.radius import Radius


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Attack):
    """A uniformly random direction, scaled so that what is left of it in [0, 1] has exactly the given norm.

    The direction is uniform on the sphere of the norm; for ``l0`` it is a random set of pixels, with uniform values.
    The scale is that of Rauber & Bethge 2020, arXiv:2007.07677: clipped noise would be smaller. Where no scale reaches
    ``eps``, every pixel is at the end of the box. Takes no pass through the model.

    Args:
        norm: ``linf``, ``l2``, ``l1`` or ``l0``.
        eps: Norm of the noise in pixel units of [0, 1] (``l0``: pixels).
    """

    norm: NormName = "linf"
    eps: Radius = 8 / 255

    def __post_init__(self) -> None:
        norm(self.norm, "RandomNoise").check("RandomNoise", self.eps)

    @classmethod
    def example(cls) -> RandomNoise:
        return cls(eps=8 / 255)

    def _passes(self, classes: int) -> tuple[float, float]:
        return 0, 0

    def _craft(self, problem: Problem) -> Tensor:
        x, ball = problem.x, norm(self.norm)
        direction = ball.random(problem.draws, x, self.eps, problem.mask)
        if self.norm == "l0":
            chosen = (direction != 0).any(1, keepdim=True)
            return torch.where(chosen, problem.draws.uniform(tuple(x.shape[1:]), x.dtype), x)
        room = torch.where(direction > 0, 1 - x, x)
        order = {"linf": math.inf, "l2": 2, "l1": 1}[self.norm]
        scale = _stretch(direction.flatten(1).abs(), room.flatten(1), self.eps, order)
        return problem.restrict(x + rows(scale.to(x.dtype)) * direction)


@dataclass(frozen=True, kw_only=True)
class SemiRandomNoise(Attack):
    """The worst perturbation in a random subspace, the semi-random noise of Fawzi et al. 2016, arXiv:1608.08967.

    Projected gradient descent over the coordinates in an orthonormal basis of the subspace. With as many dimensions as
    the image has elements it is L2 PGD from the image itself; with one it is random noise with the better of two signs.

    Args:
        eps: L2 radius in pixel units of [0, 1].
        dimension: Dimension of the subspace (the paper's m).
        steps: Steps.
        step_size: Length of a step; None takes ``2.5 eps / steps``.
        objective: What is followed.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    eps: Radius = 0.5
    dimension: int = 10
    steps: int = 10
    step_size: Radius | None = None
    objective: ObjectiveName = "ce"
    fold: bool | None = None

    norm = "l2"

    def __post_init__(self) -> None:
        norm("l2").check("SemiRandomNoise", self.eps)
        objective(self.objective, "SemiRandomNoise")
        for field in ("dimension", "steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"SemiRandomNoise: {field} must be at least 1, got {getattr(self, field)}")
        if self.step_size is not None and not 0 <= self.step_size < math.inf:
            raise ValueError(f"SemiRandomNoise: step_size must be at least 0, got {self.step_size:g}")

    @classmethod
    def example(cls) -> SemiRandomNoise:
        return cls(eps=0.5, dimension=40, steps=3)

    def _passes(self, classes: int) -> tuple[float, float]:
        return self.steps, self.steps

    def _craft(self, problem: Problem) -> Tensor:
        ball, loss = norm("l2"), objective(self.objective)
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        basis = self._basis(problem)
        place = basis.new_zeros(len(basis), basis.shape[2], 1, 1)  # coordinates, in the shape of images
        x = problem.x
        for _ in range(self.steps):
            _, _, gradient = problem.gradient(x, loss)
            # products and sums, as autocast would round a matrix product
            slope = (basis * gradient.flatten(1)[:, :, None]).sum(1)[..., None, None]
            place = ball.project(place - step_size * ball.steepest(slope), self.eps)
            x = problem.restrict(problem.x + (basis * place[:, None, :, 0, 0]).sum(2).view_as(x))
            problem.iterated()
        return x

    def _basis(self, problem: Problem) -> Tensor:
        """Orthonormal columns that span a random subspace of the mask, ``(B, C * H * W, dimension)``."""
        shape = problem.x.shape[1:]
        count = min(self.dimension, shape.numel())
        directions = [problem.draws.normal(tuple(shape), problem.x.dtype) for _ in range(count)]
        if problem.mask is not None:
            directions = [direction * problem.mask for direction in directions]
        return torch.linalg.qr(torch.stack([direction.flatten(1) for direction in directions], 2))[0]


def _stretch(length: Tensor, room: Tensor, eps: float, order: float) -> Tensor:
    """The scale ``(B,)`` at which ``min(scale * length, room)`` has the norm ``eps``, or all room is filled."""
    length, room = length.double(), room.double()
    # the scale at which an element fills its room
    full = torch.where(length > 0, room / length, math.inf)
    everything = full.masked_fill(full.isinf(), 0).amax(1)
    if order == math.inf:
        scale = torch.where((room >= eps) & (length > 0), eps / length, math.inf).amin(1)
        return torch.where(scale < math.inf, scale, everything)
    full, sequence = full.sort(dim=1)
    length, room = length.gather(1, sequence) ** order, room.gather(1, sequence) ** order
    spent = room.cumsum(1) - room  # by the elements that are full before this one
    free = length.flip(1).cumsum(1).flip(1)
    scale = ((eps**order - spent).clamp(min=0) / free) ** (1 / order)
    fits = (scale <= full) & full.isfinite()
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    return torch.where(fits.any(1), scale.gather(1, first)[:, 0], everything)
