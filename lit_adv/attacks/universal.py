"""One perturbation for all images: fitted once, then added without a look at the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, Problem, predictions
from lit_adv.attacks.deepfool import DeepFool
from lit_adv.attacks.norms import DenseNormName, norm
from lit_adv.attacks.radius import Radius
from lit_adv.attacks.randomness import Draws, mix
from lit_adv.attacks.regions import Region


@dataclass(frozen=True, kw_only=True, eq=False)
class UniversalPerturbation(Attack):
    """Universal adversarial perturbation, Moosavi-Dezfooli et al. 2017, arXiv:1610.08401, algorithm 1.

    `fit` finds the perturbation v and returns the attack that holds it; that attack adds v to every image and calls
    the network not once. Pass the clean predictions as labels for the paper's fooling rate.

    ``together=1`` is the algorithm of the paper, which moves v after every image. Several images together are much
    faster: DeepFool runs once for those of them that v does not fool yet, from the same v, and v then moves by the sum
    of what it found, projected onto the ball. Each pass costs one forward pass an image, and DeepFool (a forward pass
    and ``candidates - 1`` backward passes a step) of the images that v does not fool.

    Args:
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1]; 10/255 (linf) and 2000/255 (l2) in the paper, for 224 x 224 pixels.
        perturbation: v, ``(C, H, W)``; a side of 1 is the same along that side. None until `fit` has found it.
        delta: `fit` ends once a share ``1 - delta`` of the images is fooled.
        passes: Most passes of `fit` over the images.
        steps: Most DeepFool steps an image takes in a pass.
        overshoot: DeepFool's.
        candidates: DeepFool's.
        together: Images that move v at once.
        rates: Share of the images fooled after each pass of `fit`, which fills it in.
    """

    norm: DenseNormName = "linf"
    eps: Radius = 10 / 255
    perturbation: Tensor | None = None
    delta: float = 0.2
    passes: int = 10
    steps: int = 10
    overshoot: float = 0.02
    candidates: int | None = 10
    together: int = 20
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        norm(self.norm, name, ("linf", "l2")).check(name, self.eps)
        v = self.perturbation
        if v is not None and (not isinstance(v, Tensor) or v.ndim != 3 or not v.is_floating_point()):
            found = f"{v.dtype} of shape {tuple(v.shape)}" if isinstance(v, Tensor) else repr(v)
            raise ValueError(f"{name}: perturbation must be a floating-point tensor (C, H, W) or None, got {found}")
        if v is not None and not bool(v.isfinite().all()):
            raise ValueError(f"{name}: perturbation must be finite, got NaN or infinity")
        if not 0 <= self.delta < 1:
            raise ValueError(f"{name}: delta must be in [0, 1), the share that need not be fooled, got {self.delta:g}")
        for field, value in (("passes", self.passes), ("together", self.together)):
            if value < 1:
                raise ValueError(f"{name}: {field} must be at least 1, got {value}")
        self._deepfool()  # checks its own

    @classmethod
    def example(cls) -> UniversalPerturbation:
        return cls(eps=16 / 255, perturbation=torch.tensor([[[0.06]]]))

    def fit(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        target: int | None = None,
        region: Region | None = None,
        seed: int = 0,
    ) -> UniversalPerturbation:
        """Finds a perturbation that changes the prediction of as many images as possible.

        The images are kept in memory where they are, so that any iterable will do, also one that can be read once only.

        Args:
            model: Maps images in [0, 1] to logits.
            batches: Batches ``(images, labels)``, as a DataLoader gives them, or of images alone; the labels are not
                used. All images have one shape.
            target: The class that all images are to be taken for; None to leave the class predicted for each.
            region: The only pixels that may change. One that is drawn is another for every image.
            seed: Of the order of the images, and of the region.

        Returns:
            The attack with the perturbation that fooled most images, and ``rates``, the share after each pass.

        Raises:
            ValueError: There is no image, or the images have several shapes.
        """
        name = type(self).__name__
        images = _joined(name, batches)
        device = next((p.device for p in model.parameters()), images.device)
        seeds = mix(torch.arange(len(images)) ^ mix(torch.tensor(seed)))
        parts = torch.arange(len(images)).split(_PART)
        goals = torch.cat([predictions(model, images[rows].to(device)) for rows in parts])
        if target is not None:
            goals = torch.full_like(goals, target)

        def given(rows: Tensor) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
            here = goals[rows.to(device)]
            return (images[rows].to(device), here), {
                "targets": None if target is None else here,
                "region": region,
                "seed": seeds[rows].to(device),
            }

        deepfool, ball = self._deepfool(), norm(self.norm)
        dtype = torch.promote_types(images.dtype, torch.float32)
        v = torch.zeros(images.shape[1:], dtype=dtype, device=device)
        fooled = torch.zeros(len(images), dtype=torch.bool)
        best, rates = self, list[float]()
        for number in range(self.passes):
            order = Draws(seeds, number).uniform((1,), torch.float64)[:, 0].argsort(stable=True)
            if self.together > 1:  # the paper's algorithm asks every image again
                order = order[~fooled[order]]
            for rows in order.split(self.together):
                (x, goal), keywords = given(rows)
                moved = dataclasses.replace(self, perturbation=v)(model, x, goal, **keywords)
                nearest = deepfool(model, moved, goal, **keywords)
                v = ball.project((v + (nearest - moved).sum(0))[None], self.eps)[0]
            candidate = dataclasses.replace(self, perturbation=v)
            results = []
            for rows in parts:
                arguments, keywords = given(rows)
                results.append(candidate.run(model, *arguments, **keywords).success)
            fooled = torch.cat(results).cpu()
            rates.append(float(fooled.double().mean()))
            if rates[-1] == max(rates):
                best = candidate
            if rates[-1] >= 1 - self.delta:
                break
        return dataclasses.replace(best, rates=tuple(rates))

    def _passes(self, classes: int) -> tuple[float, float]:
        return 0, 0

    def _craft(self, problem: Problem) -> Tensor:
        v = self.perturbation
        if v is None:
            raise ValueError(
                f"{type(self).__name__}: perturbation must be fitted first, got None (attack = attack.fit(model,"
                " batches), or load one that was saved)"
            )
        x = problem.x
        if any(own not in (1, side) for own, side in zip(v.shape, x.shape[1:], strict=True)):
            raise ValueError(
                f"{type(self).__name__}: perturbation must fit images of shape {tuple(x.shape[1:])}, got shape"
                f" {tuple(v.shape)} (fit it on images of this size)"
            )
        return problem.restrict(x + v.to(x))

    def _deepfool(self) -> DeepFool:
        return DeepFool(steps=self.steps, overshoot=self.overshoot, candidates=self.candidates)


def label_histogram(
    attack: Attack, model: nn.Module, batches: Iterable[Any], *, region: Region | None = None, seed: int = 0
) -> Tensor:
    """What the images that an attack fools are taken for: the dominant labels of Moosavi-Dezfooli et al., section 3.

    Args:
        attack: Any attack, such as a universal perturbation.
        model: Maps images in [0, 1] to logits.
        batches: Batches ``(images, labels)`` or images; the labels are not used.
        region: The only pixels that may change.
        seed: Of the attack.

    Returns:
        ``(K,)`` int64: how many images whose prediction was another are taken for each class.
    """
    counts: Tensor | None = None
    for batch in batches:
        images = _images(batch)
        images = images.to(next((p.device for p in model.parameters()), images.device))
        result = attack.run(model, images, predictions(model, images), region=region, seed=seed)
        if len(images):
            found = result.logits[result.success].argmax(1).bincount(minlength=result.logits.shape[1]).cpu()
            counts = found if counts is None else counts + found
    return torch.zeros(0, dtype=torch.int64) if counts is None else counts


_PART = 256  # images that go through the model at once


def _images(batch: Any) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


def _joined(owner: str, batches: Iterable[Any]) -> Tensor:
    parts = [_images(batch).detach() for batch in batches]
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) != 1 or not sum(len(part) for part in parts):
        found = f"shapes {sorted(shapes)}" if len(shapes) > 1 else "none"
        raise ValueError(f"{owner}: batches must hold images of one shape, got {found}")
    return torch.cat(parts)
