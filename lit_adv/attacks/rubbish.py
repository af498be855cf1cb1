"""Rubbish images: classified with confidence, and of nothing. They start from no image, so they are no `Attack`s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.attacks.norms import rows
from lit_adv.attacks.radius import Radius
from lit_adv.attacks.randomness import Draws, mix_int


@dataclass(frozen=True, kw_only=True)
class RubbishImages:
    """Images that a network takes for something, one a class.

    Attributes:
        images: ``(N, C, H, W)`` float32 in [0, 1].
        classes: ``(N,)`` int64, what each is to be taken for.
        confidence: ``(N,)``, the softmax probability of that class.
        generations: ``(N,)`` int64: the generation a champion is from, or the steps taken.
        queries: Images that went through the network, all together.
    """

    images: Tensor
    classes: Tensor
    confidence: Tensor
    generations: Tensor
    queries: int


@dataclass(frozen=True, kw_only=True)
class MapElites:
    """MAP-Elites with direct encoding, Nguyen et al. 2015, arXiv:1412.1897, section 2.3; asks for answers only.

    There is a champion a class. In each generation champions drawn at random are mutated, and a child replaces the
    champion of every class of which the network is surer for the child. Champions start as uniform noise. A pixel
    mutates with a probability that halves from time to time, by the polynomial mutation of Deb & Agrawal 1995.

    Args:
        generations: Generations.
        children: Children a generation; they go through the network together.
        mutation_rate: Probability that an element of the image mutates.
        halve_every: Generations after which that probability is halved.
        strength: Mean size of a mutation in pixel units of [0, 1]. The distribution index is ``1 / strength - 2``,
            the usual 15 for 15/255.
        confidence: Ends once every class has a champion of more than this confidence; 1 never ends early.
    """

    generations: int = 5000
    children: int = 64
    mutation_rate: float = 0.1
    halve_every: int = 1000
    strength: Radius = 15 / 255
    confidence: float = 0.99

    def __post_init__(self) -> None:
        _at_least("MapElites", 1, generations=self.generations, children=self.children, halve_every=self.halve_every)
        if not 0 < self.mutation_rate <= 1:
            raise ValueError(f"MapElites: mutation_rate must be in (0, 1], got {self.mutation_rate:g}")
        if not 0 < self.strength < 0.5:
            raise ValueError(f"MapElites: strength must be in (0, 0.5), got {self.strength:g} (pixels are in [0, 1])")

    def __call__(
        self, model: nn.Module, shape: tuple[int, int, int], *, seed: int = 0, device: torch.device | str | None = None
    ) -> RubbishImages:
        """The champions of all classes.

        Args:
            model: Maps images in [0, 1] to logits ``(B, K)``; left as it was, as in the attack call.
            shape: (C, H, W).
            seed: Same seed, same images.
            device: Where the images are made; None: where the model is.
        """
        with _untouched(model) as inner, torch.no_grad():
            draws = _draws(seed, self.children, _place(model, device))
            x = draws.uniform(shape)
            found = _confidences(inner, x)
            classes = found.shape[1]
            best, parent = found.max(0)
            champions = x[parent]
            born = torch.zeros_like(parent)
            queries = len(x)
            for generation in range(1, self.generations + 1):
                if bool((best > self.confidence).all()):
                    break
                rate = self.mutation_rate * 0.5 ** ((generation - 1) // self.halve_every)
                chosen = draws.integers((1,), classes)[:, 0]
                x = self._mutated(champions[chosen], draws, rate)
                found, child = _confidences(inner, x).max(0)
                queries += len(x)
                better = found > best
                champions = torch.where(rows(better), x[child], champions)
                best = torch.where(better, found, best)
                born = torch.where(better, generation, born)
            return RubbishImages(
                images=champions,
                classes=torch.arange(classes, device=champions.device),
                confidence=best,
                generations=born,
                queries=queries,
            )

    def _mutated(self, x: Tensor, draws: Draws, rate: float) -> Tensor:
        shape = tuple(x.shape[1:])
        hit = draws.uniform(shape) < rate
        return torch.where(hit, (x + polynomial(draws.uniform(shape), self.strength)).clamp(0, 1), x)


@dataclass(frozen=True, kw_only=True)
class ClassImage:
    """The image of a class by gradient ascent on its logit with decay, Simonyan et al. 2014, arXiv:1312.6034, eq. 1.

    ``x <- clip(x + step_size (dZ_t/dx - 2 decay x))`` until the network is sure of the class.

    Args:
        step_size: alpha.
        decay: lambda, the weight of ``||x||_2^2``.
        steps: Most steps.
        confidence: Softmax probability at which an image is done.
        start: Uniform ``noise``, or ``zeros``.
    """

    step_size: float = 0.1
    decay: float = 0.0
    steps: int = 1000
    confidence: float = 0.99
    start: Literal["noise", "zeros"] = "noise"

    def __post_init__(self) -> None:
        _at_least("ClassImage", 1, steps=self.steps)
        for field, value in (("step_size", self.step_size), ("decay", self.decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"ClassImage: {field} must be at least 0, got {value:g}")
        if not 0 < self.confidence <= 1:
            raise ValueError(f"ClassImage: confidence must be in (0, 1], got {self.confidence:g}")
        if self.start not in ("noise", "zeros"):
            raise ValueError(f"ClassImage: start must be noise or zeros, got {self.start!r}")

    def __call__(
        self,
        model: nn.Module,
        shape: tuple[int, int, int],
        classes: Sequence[int] | Tensor | None = None,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> RubbishImages:
        """An image a class; the last one of a class that the network never is sure of.

        Args:
            model: Maps images in [0, 1] to logits ``(B, K)``; left as it was, as in the attack call.
            shape: (C, H, W).
            classes: ``(N,)``, one image each, and the same class may stand there twice. None: every class once.
            seed: Same seed, same images.
            device: Where the images are made; None: where the model is.

        Raises:
            ValueError: A class that the model does not have.
        """
        with _untouched(model) as inner:
            place = _place(model, device)
            queries = 0
            if classes is None:
                with torch.no_grad():
                    classes = range(_call(inner, torch.zeros(1, *shape, device=place)).shape[1])
                queries = 1
            goal = torch.as_tensor(classes if isinstance(classes, Tensor) else list(classes), device=place).long()
            x = _draws(seed, len(goal), place).uniform(shape)
            x = x if self.start == "noise" else torch.zeros_like(x)
            result, sure = x.clone(), torch.zeros(len(x), device=place)
            taken = torch.zeros_like(goal)
            active = torch.arange(len(x), device=place)
            for step in range(self.steps + 1):
                if not len(active):
                    break
                leaf = x.detach().requires_grad_()
                logits = _call(inner, leaf).float()
                queries += len(active)
                if step == 0 and bool(((goal < 0) | (goal >= logits.shape[1])).any()):
                    raise ValueError(
                        f"ClassImage: classes must be 0 to {logits.shape[1] - 1}, got {int(goal.min())} to"
                        f" {int(goal.max())}"
                    )
                own = goal[active][:, None]
                result[active], taken[active] = x, step
                sure[active] = logits.detach().softmax(1).gather(1, own)[:, 0]
                kept = (sure[active] <= self.confidence).nonzero()[:, 0]
                if step == self.steps or not len(kept):
                    break
                (gradient,) = torch.autograd.grad(logits.gather(1, own).sum(), leaf)
                active, x = active[kept], x[kept]
                slope = gradient[kept].nan_to_num_(0.0) - 2 * self.decay * x
                x = (x + self.step_size * slope).clamp(0, 1)
            return RubbishImages(images=result, classes=goal, confidence=sure, generations=taken, queries=queries)


def polynomial(draw: Tensor, strength: float) -> Tensor:
    """Polynomial mutation, Deb & Agrawal 1995: a change in (-1, 1) from a uniform number in [0, 1).

    Args:
        draw: Any shape.
        strength: Mean absolute change, ``1 / (eta + 2)`` for the distribution index eta.
    """
    power = strength / (1 - strength)  # 1 / (eta + 1)
    return torch.where(draw < 0.5, (2 * draw) ** power - 1, 1 - (2 - 2 * draw) ** power)


def _confidences(model: nn.Module, x: Tensor) -> Tensor:
    """Softmax probabilities; a model that gives NaN is sure of nothing."""
    return _call(model, x).float().softmax(1).nan_to_num(0.0)


def _draws(seed: int, count: int, device: torch.device) -> Draws:
    return Draws(torch.tensor([mix_int(seed, row) for row in range(count)], dtype=torch.int64, device=device))


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _at_least(owner: str, least: int, **fields: int) -> None:
    for field, value in fields.items():
        if value < least:
            raise ValueError(f"{owner}: {field} must be at least {least}, got {value}")
