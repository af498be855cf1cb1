"""Patches: attacks that own the place where they act."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, Problem, _check_shapes, _untouched, mix_seeds
from lit_adv.attacks.gradient import SteepestDescent
from lit_adv.attacks.objectives import Objective, ObjectiveName, objective
from lit_adv.attacks.radius import Radius
from lit_adv.attacks.randomness import Draws, mix, mix_int, row_seeds
from lit_adv.attacks.regions import RandomPatch, Region


class PlacedPatch(SteepestDescent):
    """A square at a random place of each image; of the iterates down the gradient that with the lowest loss is kept."""

    size: int | float

    norm = "linf"
    restarts = 1
    stop_at_success = False
    keep_best = True

    def __post_init__(self) -> None:
        RandomPatch(self.size)  # checks the size
        self._check()

    def _region(self, images: Tensor, seeds: Tensor, region: Region | None) -> Tensor:
        place = RandomPatch(self.size)(images, mix(seeds))
        return place if region is None else place * region(images, seeds)


@dataclass(frozen=True, kw_only=True)
class BoundedPatch(PlacedPatch):
    """A square at a random place, perturbed inside an Linf ball (LaVAN, Karmon et al. 2018, bounded as in Souri et
    al.).

    The iterate with the lowest loss is kept. One place an image, every place equally likely. A region further restricts
    the pixels of the patch that may change.

    Args:
        size: Side of the patch in pixels (int) or as a share of the image's side (float).
        eps: Linf radius in pixel units of [0, 1].
        step_size: Length of a step; the paper gives none, 0.01 is its PGD's.
        steps: Steps.
        random_start: Start at a uniform point of the ball rather than at the image.
        objective: What is followed.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    size: int | float = 8
    eps: Radius = 8 / 255
    step_size: Radius = 0.01
    steps: int = 100
    random_start: bool = True
    objective: ObjectiveName = "ce"
    fold: bool | None = None

    @classmethod
    def example(cls) -> BoundedPatch:
        return cls(size=3, eps=16 / 255, steps=3)

    def _schedule(self) -> tuple[int, float]:
        return self.steps, self.step_size


@dataclass(frozen=True, kw_only=True)
class LaVAN(PlacedPatch):
    """Localized and visible adversarial noise, Karmon et al. 2018, arXiv:1801.02608: a square without a bound.

    Lowers ``Z_y - Z_t``, the logit of the class y predicted for the clean image (the best one but the target) minus
    that of the target, where one forward pass more finds y; untargeted, that of the label minus the best other one. The
    iterate with the lowest loss is kept. One place an image, every place equally likely. A region further restricts the
    pixels of the patch that may change.

    Args:
        size: Side of the patch in pixels (int) or as a share of the image's side (float).
        step_size: Length of a step of every pixel, in pixel units of [0, 1].
        steps: Steps.
        random_start: Start at random pixels rather than at the image.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    size: int | float = 8
    step_size: Radius = 0.05
    steps: int = 100
    random_start: bool = False
    fold: bool | None = None

    eps = 1.0
    objective = "margin"

    @classmethod
    def example(cls) -> LaVAN:
        return cls(size=3, steps=3)

    def _schedule(self) -> tuple[int, float]:
        return self.steps, self.step_size

    def _passes(self, classes: int) -> tuple[float, float]:
        forwards, backwards = super()._passes(classes)
        return forwards + 1, backwards

    def _start(self, problem: Problem) -> Tensor:
        if not self.random_start:
            return problem.x
        return problem.restrict(problem.draws.uniform(tuple(problem.x.shape[1:]), problem.x.dtype))

    def _loss(self, problem: Problem) -> Objective:
        if not problem.targeted:
            return objective("margin")
        others = problem.logits(problem.x).scatter(1, problem.classes[:, None], -math.inf)
        source = others.argmax(1, keepdim=True)
        return lambda logits, classes, targeted: (logits.gather(1, source) - logits.gather(1, classes[:, None]))[:, 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdversarialPatch(Attack):
    """Universal adversarial patch, Brown et al. 2017, arXiv:1712.09665: one picture that fools wherever it lies.

    `fit` finds the picture and returns the attack that holds it; that attack pastes it over every image, at a random
    place, scale and angle, and calls the network not once. It lies wholly inside the image; only what lies inside the
    region is shown.

    Args:
        patch: The picture, ``(C, S, S)`` in [0, 1]; one channel is the same for all. None until `fit` has found it.
        size: S of the picture that `fit` makes, in pixels.
        min_scale: Smallest side (diameter) on the image, as a share of the image's shorter side.
        max_scale: Largest one. Scales are uniform in between.
        rotation: Largest angle to either side, in degrees.
        shape: What is shown of the picture: the ``circle`` inside, or the whole ``square``.
        objective: What `fit` follows.
        passes: Passes of `fit` over the batches; an Adam step a batch.
        learning_rate: Adam's.
    """

    patch: Tensor | None = None
    size: int = 32
    min_scale: float = 0.2
    max_scale: float = 0.5
    rotation: float = 22.5
    shape: Literal["circle", "square"] = "circle"
    objective: ObjectiveName = "ce"
    passes: int = 10
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        p = self.patch
        if p is not None and not (isinstance(p, Tensor) and p.is_floating_point() and p.ndim == 3):
            found = f"{p.dtype} of shape {tuple(p.shape)}" if isinstance(p, Tensor) else repr(p)
            raise ValueError(f"AdversarialPatch: patch must be a floating-point tensor (C, S, S) or None, got {found}")
        if p is not None and (p.shape[1] != p.shape[2] or not p.numel()):
            raise ValueError(f"AdversarialPatch: patch must be square, got shape {tuple(p.shape)}")
        if p is not None and not bool(((p >= 0) & (p <= 1)).all()):
            raise ValueError("AdversarialPatch: patch must be in [0, 1] and finite (8-bit images: divide by 255)")
        if not 0 < self.min_scale <= self.max_scale <= 1:
            raise ValueError(
                "AdversarialPatch: min_scale and max_scale must be in (0, 1] and in this order, got"
                f" {self.min_scale:g} and {self.max_scale:g} (shares of the image's shorter side)"
            )
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"AdversarialPatch: rotation must be in [0, 180] degrees, got {self.rotation:g}")
        if self.shape not in ("circle", "square"):
            raise ValueError(f"AdversarialPatch: shape must be circle or square, got {self.shape!r}")
        objective(self.objective, "AdversarialPatch")
        for field in ("size", "passes"):
            if getattr(self, field) < 1:
                raise ValueError(f"AdversarialPatch: {field} must be at least 1, got {getattr(self, field)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"AdversarialPatch: learning_rate must be greater than 0, got {self.learning_rate:g}")

    @classmethod
    def example(cls) -> AdversarialPatch:
        return cls(patch=torch.eye(4)[None], min_scale=0.4, max_scale=0.8)

    def fit(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        target: int | None = None,
        region: Region | None = None,
        seed: int = 0,
    ) -> AdversarialPatch:
        """Descends the expected loss over images, places, scales and angles, from this patch or from mid-grey.

        Args:
            model: Maps images in [0, 1] to logits; it is left as it was, as in the attack call.
            batches: Batches ``(images, labels)``, all of the same channels; an iterator is kept in memory, as it can be
                read once only.
            target: The class that all images are to be taken for; None to leave the labels.
            region: The only pixels that may change.
            seed: Of the transforms.

        Returns:
            The attack with the patch that was found.

        Raises:
            ValueError: No image, or what the attack call refuses.
        """
        name = type(self).__name__
        batches = list(batches) if isinstance(batches, Iterator) else batches
        loss = objective(self.objective, name)
        patch, adam, number = None, None, 0
        with _untouched(model) as inner:
            for _ in range(self.passes):
                for batch in batches:
                    images, labels = (each.detach() for each in batch[:2])
                    _check_shapes(name, images, labels, None)
                    if not len(images):
                        continue
                    device = next((p.device for p in inner.parameters()), images.device)
                    x = images.to(device, torch.promote_types(images.dtype, torch.float32), copy=True)
                    goal = (
                        labels.to(device, copy=True) if target is None else torch.full_like(labels, target).to(device)
                    )
                    if patch is None or adam is None:
                        grey = x.new_full((x.shape[1], self.size, self.size), 0.5)
                        patch = (grey if self.patch is None else self.patch.to(grey, copy=True)).requires_grad_()
                        adam = torch.optim.Adam([patch], lr=self.learning_rate)
                    # another transform in every pass
                    seeds = row_seeds(x, mix_int(seed, number))
                    number += 1
                    mask = None if region is None else region(x, mix_seeds(seeds)).expand(len(x), -1, -1, -1)
                    problem = Problem(inner, x, goal, target is not None, mask, Draws(seeds), owner=name)
                    pasted = problem.restrict(self._paste(problem, patch))
                    _, _, slope = problem.gradient(pasted, loss)
                    (patch.grad,) = torch.autograd.grad(pasted, patch, slope)
                    adam.step()
                    patch.data.clamp_(0, 1)
        if patch is None:
            raise ValueError(f"{name}: batches must hold at least one image, got none")
        return dataclasses.replace(self, patch=patch.detach())

    def _passes(self, classes: int) -> tuple[float, float]:
        return 0, 0

    def _craft(self, problem: Problem) -> Tensor:
        if self.patch is None:
            raise ValueError(
                "AdversarialPatch: patch must be fitted first, got None (attack = attack.fit(model, batches), or give"
                " the tensor of one that was)"
            )
        return self._paste(problem, self.patch.to(problem.x))

    def _paste(self, problem: Problem, patch: Tensor) -> Tensor:
        """The images with the patch over them; differentiable in the patch ``(C, S, S)``."""
        x = problem.x
        if len(patch) not in (1, x.shape[1]):
            raise ValueError(
                f"AdversarialPatch: patch must have the images' {x.shape[1]} channels or one, got {len(patch)}"
            )
        grid = self._grid(problem.draws, x)
        inside = grid.square().sum(-1) <= 1 if self.shape == "circle" else grid.abs().amax(-1) <= 1
        shown = F.grid_sample(patch.expand(len(x), -1, -1, -1), grid, padding_mode="border", align_corners=False)
        return torch.where(inside[:, None], shown, x)

    def _grid(self, draws: Draws, x: Tensor) -> Tensor:
        """Where every pixel of the images lies on the patch, whose sides are at -1 and 1, ``(B, H, W, 2)``."""
        height, width = x.shape[-2:]
        scale, angle, across, down = draws.uniform((4, 1, 1), x.dtype).unbind(1)
        half = (self.min_scale + (self.max_scale - self.min_scale) * scale) * min(height, width) / 2
        angle = (2 * angle - 1) * math.radians(self.rotation)
        cos, sin = angle.cos(), angle.sin()
        reach = half if self.shape == "circle" else half * (cos.abs() + sin.abs())
        # the columns and rows of pixel centres, seen from the patch's centre
        columns = torch.arange(width, device=x.device, dtype=x.dtype) + 0.5 - _centre(across, reach, width)
        lines = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + 0.5 - _centre(down, reach, height)
        return torch.stack([cos * columns + sin * lines, cos * lines - sin * columns], -1) / half[..., None]


def _centre(draw: Tensor, reach: Tensor, side: int) -> Tensor:
    """Uniform between the places where something that reaches so far touches the image's edges; else the middle."""
    reach = reach.clamp(max=side / 2)
    return reach + draw * (side - 2 * reach)
