"""Patches: attacks that own the place where they act."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_adv.attacks.gradient import SteepestDescent
from lit_adv.attacks.objectives import ObjectiveName
from lit_adv.attacks.radius import Radius
from lit_adv.attacks.randomness import mix
from lit_adv.attacks.regions import RandomPatch, Region


@dataclass(frozen=True, kw_only=True)
class BoundedPatch(SteepestDescent):
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

    norm = "linf"
    restarts = 1
    stop_at_success = False
    keep_best = True

    def __post_init__(self) -> None:
        RandomPatch(self.size)  # checks the size
        self._check()

    @classmethod
    def example(cls) -> BoundedPatch:
        return cls(size=3, eps=16 / 255, steps=3)

    def _schedule(self) -> tuple[int, float]:
        return self.steps, self.step_size

    def _region(self, images: Tensor, seeds: Tensor, region: Region | None) -> Tensor:
        place = RandomPatch(self.size)(images, mix(seeds))
        return place if region is None else place * region(images, seeds)
