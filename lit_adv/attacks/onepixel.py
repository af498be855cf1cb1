"""One-pixel attack: differential evolution of the place and colour of a few pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.places import nearest_allowed
from lit_adv.attacks.randomness import Draws


@dataclass(frozen=True, kw_only=True)
class OnePixel(Attack):
    """One-pixel attack, Su et al. 2019, arXiv:1710.08864, section III; sees nothing of the model but its answers.

    Differential evolution (DE/rand/1 without crossover, factor 0.5) of ``pixels`` tuples of place and colour, one
    population for each image. A candidate replaces its parent where it lowers the probability of the label, or raises
    that of the target. It takes ``population * (generations + 1)`` forward passes, fewer where it succeeds early; where
    it fails the best of the last population comes back.

    Args:
        pixels: Most pixels that may change, in all channels.
        population: Candidates a generation, for each image.
        generations: Generations after the first, random one.
        stop_at_success: Stop with the generation in which some candidate succeeds. Otherwise go on until the label's
            probability is below 0.05 or the target's above 0.9, the authors' rule.
        max_queries: Most forward passes an image may take.
        fold: Ask a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    pixels: int = 1
    population: int = 400
    generations: int = 100
    stop_at_success: bool = True
    max_queries: int | None = None
    fold: bool | None = None

    norm = "l0"
    factor = 0.5

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"OnePixel: pixels must be at least 1, got {self.pixels}")
        if self.population < 4:
            raise ValueError(
                f"OnePixel: population must be at least 4 (a candidate and three others), got {self.population}"
            )
        if self.generations < 0:
            raise ValueError(f"OnePixel: generations must be at least 0, got {self.generations}")
        if self.max_queries is not None and self.max_queries < 1:
            raise ValueError(f"OnePixel: max_queries must be at least 1, got {self.max_queries}")

    @classmethod
    def example(cls) -> OnePixel:
        return cls(pixels=2, population=10, generations=4)

    def _passes(self, classes: int) -> tuple[float, float]:
        return self.population * (self.generations + 1), 0

    def _craft(self, problem: Problem) -> Tensor:
        result = problem.x.clone()
        active = torch.arange(len(result), device=result.device)
        part, nearest = problem, _nearest(problem)
        genes = self._first(problem)
        fitness = torch.full_like(genes[:, :, 0, 0], math.inf)
        best, best_odds = genes[:, 0], fitness[:, 0]
        enough = math.inf
        if not self.stop_at_success:
            enough = -math.log(0.9 / 0.1) if problem.targeted else math.log(0.05 / 0.95)
        left = self.population * (self.generations + 1)
        if problem.max_queries is not None:
            left = min(left, problem.max_queries)
        children = genes
        while left > 0:
            odds, hit = _judged(part, children[:, :left], nearest)
            left -= odds.shape[1]
            part.iterated()
            lowest, place = torch.where(hit, odds, math.inf).min(1)
            found = children[torch.arange(len(place), device=place.device), place]
            best = torch.where((lowest < best_odds)[:, None, None], found, best)
            best_odds = torch.minimum(lowest, best_odds)
            if odds.shape[1] < self.population:
                odds = torch.nn.functional.pad(odds, (0, self.population - odds.shape[1]), value=math.inf)
            genes = torch.where((odds < fitness)[:, :, None, None], children, genes)
            fitness = torch.minimum(odds, fitness)
            going = best_odds >= enough
            if not bool(going.all()):
                gone = (~going).nonzero()[:, 0]
                result[active[gone]] = _rendered(part.take(gone), best[gone], nearest[gone])
                kept = going.nonzero()[:, 0]
                active, part, nearest, genes, fitness, best, best_odds = (
                    active[kept],
                    part.take(kept),
                    nearest[kept],
                    genes[kept],
                    fitness[kept],
                    best[kept],
                    best_odds[kept],
                )
                if not len(active):
                    return result
            children = self._mutants(part.draws, genes, part.x.shape)
        closest = genes[torch.arange(len(genes), device=genes.device), fitness.argmin(1)]
        best = torch.where((best_odds < math.inf)[:, None, None], best, closest)
        result[active] = _rendered(part, best, nearest)
        return result

    def _first(self, problem: Problem) -> Tensor:
        """Uniform over the pixels that may change, colours from a clipped N(0.5, 0.5); ``(B, P, d, 2 + C)``.

        A tuple is row and column, in pixels from the edge, and a colour.
        """
        x = problem.x
        width, shape = x.shape[3], (self.population, self.pixels)
        if problem.mask is None:
            order = torch.arange(x[0, 0].numel(), device=x.device).expand(len(x), -1)
            count = torch.full_like(order[:, :1], order.shape[1])
        else:
            allowed = problem.mask.flatten(1) > 0
            order = allowed.to(torch.int8).argsort(dim=1, descending=True, stable=True)
            count = allowed.sum(1, keepdim=True)
        rank = (problem.draws.uniform(shape, torch.float64).flatten(1) * count).long()
        pixel = order.gather(1, rank).view(-1, *shape)
        place = torch.stack([pixel // width, pixel % width], 3) + problem.draws.uniform((*shape, 2), x.dtype)
        colour = problem.draws.normal((*shape, x.shape[1]), x.dtype).mul_(0.5).add_(0.5).clamp_(0, 1)
        return torch.cat([place, colour], 3)

    def _mutants(self, draws: Draws, genes: Tensor, shape: torch.Size) -> Tensor:
        """For every candidate p_r1 + F (p_r2 - p_r3), with three others, brought back into image and box."""
        one, two, three = (
            genes.gather(1, other[:, :, None, None].expand_as(genes)) for other in _three_others(draws, genes.shape[1])
        )
        limit = genes.new_tensor([*shape[2:], *[1.0] * shape[1]])
        return torch.minimum((one + self.factor * (two - three)).clamp_(min=0), limit)


def _three_others(draws: Draws, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every one of ``count`` candidates three different ones, not itself, ``(B, count)`` each."""
    # draws from ever fewer numbers; one at or above a number that is taken moves up by one
    first = draws.integers((count,), count - 1)
    second = draws.integers((count,), count - 2)
    second += (second >= first).long()
    third = draws.integers((count,), count - 3)
    third += (third >= torch.minimum(first, second)).long()
    third += (third >= torch.maximum(first, second)).long()
    own = torch.arange(1, count + 1, device=first.device)
    return (first + own) % count, (second + own) % count, (third + own) % count


def _judged(problem: Problem, genes: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """The odds of all candidates, lower is better, and whether they succeed; ``(B, P)`` each."""
    size = len(genes), genes.shape[1]
    genes = genes.flatten(0, 1)
    image = torch.arange(len(genes), device=genes.device) // size[1]
    odds, hit = [], []
    for rows, tuples in zip(image.split(_chunk(problem.x)), genes.split(_chunk(problem.x)), strict=True):
        part = problem.take(rows)
        logits = part.logits(_rendered(part, tuples, nearest[rows]))
        odds.append(_odds(logits, part.classes, part.targeted))
        hit.append(part.succeeded(logits))
    return torch.cat(odds).view(size), torch.cat(hit).view(size)


def _odds(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """Log odds of the class to leave, or minus those of the target; ordered as the probability, which saturates."""
    own = logits.gather(1, classes[:, None])[:, 0]
    others = logits.scatter(1, classes[:, None], -math.inf).logsumexp(1)
    return (others - own if targeted else own - others).nan_to_num(math.inf, math.inf, -math.inf)


def _rendered(problem: Problem, genes: Tensor, nearest: Tensor) -> Tensor:
    """The images with the tuples ``(B, d, 2 + C)`` painted over them, the last one on top."""
    height, width = problem.x.shape[2:]
    places = genes[:, :, :2].long()
    pixels = places[:, :, 0].clamp(max=height - 1) * width + places[:, :, 1].clamp(max=width - 1)
    pixels = nearest.gather(1, pixels)
    images = problem.x.flatten(2).clone()
    for k in range(genes.shape[1]):  # one after the other, since several may fall on the same pixel
        images.scatter_(2, pixels[:, None, k : k + 1].expand(-1, images.shape[1], -1), genes[:, k, 2:, None])
    images = images.view_as(problem.x)
    return images if problem.mask is None else problem.restrict(images)


def _nearest(problem: Problem) -> Tensor:
    """Where a tuple is painted that lies on a pixel, ``(B, H W)``."""
    if problem.mask is not None:
        return nearest_allowed(problem.mask)
    return torch.arange(problem.x[0, 0].numel(), device=problem.x.device).expand(len(problem), -1)


def _chunk(x: Tensor) -> int:
    """Candidates that go through the model together: on a CPU more than its cache holds are slower."""
    return 128 if x.device.type == "cpu" else max(128, min(4096, (1 << 26) // max(1, x[0].numel())))
