"""AutoAttack: an ensemble without parameters, each part on what the ones before it have left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_adv.attacks.apgd import APGD, BallName
from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.fab import FAB
from lit_adv.attacks.norms import norm, rows
from lit_adv.attacks.objectives import margin
from lit_adv.attacks.radius import Radius
from lit_adv.attacks.randomness import Draws
from lit_adv.attacks.square import Square


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack, Croce & Hein 2020, arXiv:2003.01690, section 6; for l1 Croce & Hein 2021, arXiv:2103.01208.

    ``standard``: APGD on the cross-entropy, APGD-T on the targeted DLR loss, FAB-T, Square. In l1 the first two start
    wide, with five restarts and five classes. ``plus``: APGD on the cross-entropy and on the DLR loss, FAB (five
    restarts each), Square, APGD-T, FAB-T. ``rand``, for models that draw random numbers: APGD on both losses, the
    gradient averaged over ``eot_iter`` passes. Each part runs on the images that no part before it has fooled, so its
    robust set is the intersection of theirs. An image that is misclassified as it is comes back clean; one that
    nothing fools, as the iterate with the smallest margin.

    With few classes: the targeted parts try ``min(9, K - 1)`` classes. The DLR loss needs the third largest logit, its
    targeted form the fourth too. APGD-T divides by the range of the logits where there are 3 classes; where the loss is
    not defined at all (2 classes, or fewer than 4 in a targeted call) the margin takes its place. A targeted call runs
    every part towards the given target alone.

    Args:
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1], e.g. ``8/255``; 0 returns the images.
        version: Which parts run.
        steps: Steps of every APGD and FAB run.
        queries: Queries of Square.
        eot_iter: Passes a gradient of ``rand``.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: BallName = "linf"
    eps: Radius = 8 / 255
    version: Literal["standard", "plus", "rand"] = "standard"
    steps: int = 100
    queries: int = 5000
    eot_iter: int = 20
    fold: bool | None = None

    def __post_init__(self) -> None:
        norm(self.norm, "AutoAttack", ("linf", "l2", "l1")).check("AutoAttack", self.eps)
        if self.version not in ("standard", "plus", "rand"):
            raise ValueError(f"AutoAttack: version must be standard, plus or rand, got {self.version!r}")
        for field in ("steps", "queries", "eot_iter"):
            if getattr(self, field) < 1:
                raise ValueError(f"AutoAttack: {field} must be at least 1, got {getattr(self, field)}")

    @classmethod
    def example(cls) -> AutoAttack:
        return cls(eps=2 / 255, steps=4, queries=10)

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The attacks, in the order in which they run."""
        ball, eps, steps = self.norm, self.eps, self.steps
        sparse = ball == "l1"
        if self.version == "rand":
            names: tuple[Literal["ce", "dlr"], ...] = ("ce", "dlr")
            return tuple(
                APGD(norm=ball, eps=eps, steps=steps, objective=name, eot_iter=self.eot_iter, wide_start=sparse)
                for name in names
            )
        targeted = APGD(
            norm=ball, eps=eps, steps=steps, objective="dlr", target_classes=5 if sparse else 9, wide_start=sparse
        )
        boundaries = FAB(norm=ball, eps=eps, steps=steps, target_classes=9, stop_at_success=True)
        square = Square(norm=ball, eps=eps, queries=self.queries)
        if self.version == "standard":
            restarts = 5 if sparse else 1
            first = APGD(norm=ball, eps=eps, steps=steps, restarts=restarts, wide_start=sparse)
            return first, targeted, boundaries, square
        return (
            APGD(norm=ball, eps=eps, steps=steps, restarts=5, wide_start=sparse),
            APGD(norm=ball, eps=eps, steps=steps, restarts=5, objective="dlr", wide_start=sparse),
            FAB(norm=ball, eps=eps, steps=steps, restarts=5, stop_at_success=True),
            square,
            targeted,
            boundaries,
        )

    def _passes(self, classes: int) -> tuple[float, float] | None:
        passes = [part._passes(classes) for part in self.parts]
        forwards = sum(found[0] + 1 for found in passes if found is not None)
        return 1 + forwards, sum(found[1] for found in passes if found is not None)

    def _craft(self, problem: Problem) -> Tensor:
        # what is robust the model itself decides: an image on the boundary may fool its folded snapshot alone
        robust = ~problem.succeeded(problem.itself().logits(problem.x))
        result, nearest = problem.x.clone(), torch.full_like(problem.x[:, 0, 0, 0], torch.inf)
        for number, part in enumerate(self.parts, 1):
            left = robust.nonzero()[:, 0]
            if not len(left):
                break
            rest = problem.take(left)
            rest.draws = Draws(rest.draws.seeds, number << 32)  # far from the other parts' numbers
            crafted = part._solve(rest)
            logits = rest.itself().logits(crafted)
            hit = rest.succeeded(logits)
            distance = torch.where(hit, -torch.inf, margin(logits, rest.classes, rest.targeted))
            closer = distance < nearest[left]
            result[left] = torch.where(rows(closer), crafted, result[left])
            nearest[left] = torch.where(closer, distance, nearest[left])
            robust[left] = ~hit
        return result
