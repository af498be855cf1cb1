"""Square attack: random search with squares that stay where they help."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import norm, rows
from lit_adv.attacks.objectives import ObjectiveName, objective
from lit_adv.attacks.places import nearest_allowed
from lit_adv.attacks.radius import Radius

# from these queries on of 10,000 the share of pixels is halved, once more each time (section 3.2)
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_BLOCK = 64  # steps whose random numbers are drawn together


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square attack, Andriushchenko et al. 2020, arXiv:1912.00049; sees nothing of the model but its answers.

    Random search at full radius. Linf (algorithm 2): starts at vertical stripes; a square of the image gets a new sign
    of ``eps`` in each channel, another square and another place for every image. L2 (algorithm 3): starts at a grid of
    bumps; a bump is added in one square, with the mass of a second one, which is emptied. L1 is the form of Croce &
    Hein 2021, arXiv:2103.01208, section 4.2: as L2, projected onto ball and box together. What lowers the objective
    stays. An image leaves with its first success; it takes ``queries`` forward passes at most.

    In a region the squares are drawn in the smallest rectangle around it, shrink with it, and are moved until they hold
    some of its pixels.

    Args:
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1], e.g. ``8/255``; 0 returns the images.
        queries: Forward passes, the start included.
        p_init: Share of the pixels in the first squares; halved nine times on the way. The paper has 0.05 for Linf and
            0.1 for L2 on ImageNet, AutoAttack 0.8.
        rescale: Stretch the schedule of halvings, which is one for 10,000 queries, over ``queries``; AutoAttack does
            not.
        objective: What is lowered.
        max_queries: Most forward passes an image may take; unlike ``queries`` it does not change the schedule.
        fold: Ask a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: Radius = 8 / 255
    queries: int = 5000
    p_init: float = 0.8
    rescale: bool = True
    objective: ObjectiveName = "margin"
    max_queries: int | None = None
    fold: bool | None = None

    def __post_init__(self) -> None:
        norm(self.norm, "Square", ("linf", "l2", "l1")).check("Square", self.eps)
        objective(self.objective, "Square")
        if self.queries < 1:
            raise ValueError(f"Square: queries must be at least 1, got {self.queries}")
        if not 0 < self.p_init <= 1:
            raise ValueError(f"Square: p_init must be in (0, 1], got {self.p_init:g} (a share of the pixels)")
        if self.max_queries is not None and self.max_queries < 1:
            raise ValueError(f"Square: max_queries must be at least 1, got {self.max_queries}")

    @classmethod
    def example(cls) -> Square:
        return cls(eps=16 / 255, queries=20)

    def _passes(self, classes: int) -> tuple[float, float]:
        return self.queries, 0

    def _craft(self, problem: Problem) -> Tensor:
        judge = objective(self.objective)
        search: _Search = (
            _LinfSearch(problem, self.eps) if self.norm == "linf" else _BumpSearch(problem, self.eps, self.norm)
        )
        result = problem.x.clone()
        active = torch.arange(len(result), device=result.device)
        # contiguous, as squares are written into a flat view
        part, best, tried = problem, problem.x.contiguous(), search.start().contiguous()
        lowest = torch.full_like(best[:, 0, 0, 0], math.inf)
        limit = self.queries if problem.max_queries is None else min(self.queries, problem.max_queries)
        for query in range(limit):
            if query > 0:
                tried = search.step(best, self._share(query - 1))
            logits = part.logits(tried)
            losses = judge(logits, part.classes, part.targeted)
            done = part.succeeded(logits)
            better = (losses < lowest) | done
            best = search.keep(best, tried, better)
            lowest = torch.where(better, losses, lowest)
            part.iterated()
            if bool(done.any()):
                result[active[done]] = best[done]
                kept = (~done).nonzero()[:, 0]
                if not len(kept):
                    return result
                active, part, best, lowest = active[kept], part.take(kept), best[kept], lowest[kept]
                search = search.take(part, kept)
        result[active] = best
        return result

    def _share(self, step: int) -> float:
        """Share of the pixels in the squares of a step."""
        if self.rescale:
            step = int(step / self.queries * 10000)
        return self.p_init / 2 ** sum(step > start for start in _HALVINGS)


class _Area(NamedTuple):
    """The smallest rectangle around the pixels that may change, one for every image; ``(B, 1, 1)`` int64 each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    @classmethod
    def of(cls, problem: Problem) -> _Area:
        x = problem.x
        allowed = torch.ones_like(x[:, 0]) if problem.mask is None else problem.mask[:, 0]
        spans = []
        for inside in (allowed.amax(2), allowed.amax(1)):
            first = inside.argmax(1)
            last = inside.shape[1] - 1 - inside.flip(1).argmax(1)
            spans.append((first, (last - first + 1).clamp(min=1)))
        (top, height), (left, width) = spans
        return cls(*(span.view(-1, 1, 1) for span in (top, left, height, width)))

    def take(self, chosen: Tensor) -> _Area:
        return _Area(*(span[chosen] for span in self))

    def side(self, share: float, least: int) -> Tensor:
        """Side of the square that holds a share of the rectangle and fits into it, ``(B, 1, 1)``."""
        side = (share * self.height * self.width).double().sqrt().round().long().clamp(min=least)
        return torch.minimum(side, torch.minimum(self.height, self.width))


class _Search(ABC):
    """Proposals for the images of a problem."""

    numbers: int  # random numbers a step takes

    def __init__(self, problem: Problem, eps: float) -> None:
        self.problem = problem
        self.eps = eps
        self.area = _Area.of(problem)
        self._block = problem.x.new_zeros(len(problem), 0)
        self._used = _BLOCK
        self._nearest = None if problem.mask is None else nearest_allowed(problem.mask)
        self._share = math.nan

    @abstractmethod
    def start(self) -> Tensor:
        """The first images to try."""

    @abstractmethod
    def step(self, best: Tensor, share: float) -> Tensor:
        """The next images to try, from the best so far and the share of the pixels in a square."""

    def keep(self, best: Tensor, tried: Tensor, better: Tensor) -> Tensor:
        """The best so far, after ``tried`` has been found ``better`` in some rows."""
        return torch.where(rows(better), tried, best)

    def take(self, problem: Problem, chosen: Tensor) -> _Search:
        """The search for the rows ``chosen``, which are those of ``problem``."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.problem = problem
        part.area = self.area.take(chosen)
        part._block = self._block[chosen]
        part._nearest = None if self._nearest is None else self._nearest[chosen]
        part._share = math.nan
        return part

    def _draw(self) -> Tensor:
        """Uniform numbers for one step, ``(B, numbers)``; drawn for many at once, as drawing takes many small steps."""
        if self._used == _BLOCK:
            self._block, self._used = self.problem.draws.uniform((_BLOCK, self.numbers)), 0
        self._used += 1
        return self._block[:, self._used - 1]

    def _choose_side(self, share: float, least: int) -> None:
        if share == self._share:
            return
        self._share, self._side = share, self.area.side(share, least)
        offsets = torch.arange(int(self._side.amax()), device=self._side.device)
        self._once = offsets < self._side
        # a side shorter than the longest of the batch: its last row and column several times
        self._across = torch.minimum(offsets, self._side - 1)

    def _corner(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """From two uniform numbers a row the upper left corner of a square in the rectangle, ``(B, 1, 1)`` each.

        It is moved as little as needed to hold a pixel that may change.
        """
        side = self._side
        top = self.area.top + (at[:, :1, None] * (self.area.height - side + 1)).long()
        left = self.area.left + (at[:, 1:, None] * (self.area.width - side + 1)).long()
        if self._nearest is None:
            return top, left
        width = self.problem.x.shape[3]
        middle = (top + side // 2) * width + left + side // 2
        pixel = self._nearest.gather(1, middle.flatten(1))[:, :, None]
        row, column = pixel // width, pixel % width
        return top.clamp(row - side + 1, row), left.clamp(column - side + 1, column)

    def _places(self, corner: tuple[Tensor, Tensor]) -> Tensor:
        """Indices of the square's pixels, ``(B, C, S^2)``."""
        channels, width = self.problem.x.shape[1], self.problem.x.shape[3]
        places = (corner[0] + self._across.mT) * width + corner[1] + self._across
        return places.flatten(1)[:, None].expand(-1, channels, -1)


class _LinfSearch(_Search):
    """Squares of one colour, every channel at one end of the ball; reads and writes no other pixels."""

    def __init__(self, problem: Problem, eps: float) -> None:
        super().__init__(problem, eps)
        self.numbers = 2 + problem.x.shape[1]
        # outside the mask both are the image itself, so that a square may reach over its edge
        self.low = problem.restrict(problem.x - eps).flatten(2)
        self.high = problem.restrict(problem.x + eps).flatten(2)

    def take(self, problem: Problem, chosen: Tensor) -> _LinfSearch:
        part = super().take(problem, chosen)
        assert isinstance(part, _LinfSearch)
        part.low, part.high = self.low[chosen], self.high[chosen]
        return part

    def start(self) -> Tensor:
        x = self.problem.x
        down = self.problem.draws.uniform((x.shape[1], 1, x.shape[3])) < 0.5
        return torch.where(down, self.low.view_as(x), self.high.view_as(x))

    def step(self, best: Tensor, share: float) -> Tensor:
        draws = self._draw()
        self._choose_side(share, 1)
        self._at = self._places(self._corner(draws[:, :2]))
        self._old = best.flatten(2).gather(2, self._at)
        low, high = self.low.gather(2, self._at), self.high.gather(2, self._at)
        down = (draws[:, 2:] < 0.5)[:, :, None]
        # a square that has these colours already would waste a query: it gets the opposite ones
        idle = (torch.where(down, low, high) == self._old).flatten(1).all(1)
        self._new = torch.where(down ^ idle[:, None, None], low, high)
        best.flatten(2).scatter_(2, self._at, self._new)
        return best

    def keep(self, best: Tensor, tried: Tensor, better: Tensor) -> Tensor:
        if tried is not best:
            return super().keep(best, tried, better)
        best.flatten(2).scatter_(2, self._at, torch.where(better[:, None, None], self._new, self._old))
        return best


class _BumpSearch(_Search):
    """Bumps whose mass is taken from another square, for norms that share one budget among all pixels."""

    def __init__(self, problem: Problem, eps: float, name: str) -> None:
        super().__init__(problem, eps)
        self.numbers = 5 + problem.x.shape[1]
        self.power = 2 if name == "l2" else 1
        terms = 1 / torch.arange(1, max(problem.x.shape[2:]) + 1, device=problem.x.device, dtype=problem.x.dtype) ** 2
        self.sums = torch.cat([torch.zeros_like(terms[:1]), terms.cumsum(0)])

    def start(self) -> Tensor:
        x, area = self.problem.x, self.area
        draws = self.problem.draws.uniform((x.shape[1] + 1, 25))
        height, width = (area.height // 5).clamp(min=1), (area.width // 5).clamp(min=1)
        row = (
            torch.arange(x.shape[2], device=x.device)[:, None] - area.top - (area.height - 5 * height).clamp(min=0) // 2
        )
        column = torch.arange(x.shape[3], device=x.device) - area.left - (area.width - 5 * width).clamp(min=0) // 2
        inside = (row >= 0) & (row < 5 * height) & (column >= 0) & (column < 5 * width)
        tile = ((row // height) * 5 + column // width).clamp(0, 24).flatten(1)
        signs, turned = (
            (draws < 0.5).gather(2, tile[:, None].expand(-1, x.shape[1] + 1, -1)).view(len(x), -1, *x.shape[2:])
        ).split([x.shape[1], 1], 1)
        bump = self._bump(row % height, column % width, height, width, turned[:, 0]) * inside
        if self.problem.mask is not None:
            bump = bump * self.problem.mask[:, 0]
        return self._at_radius(torch.where(signs, bump[:, None], -bump[:, None]))

    def step(self, best: Tensor, share: float) -> Tensor:
        draws, delta = self._draw(), (best - self.problem.x).flatten(2)
        self._choose_side(share, 3)
        one, two = self._corner(draws[:, :2]), self._corner(draws[:, 2:4])
        filled, emptied = self._places(one), self._places(two)
        once = (self._once.mT & self._once).flatten(1)[:, None]
        bump = self._bump(self._across.mT, self._across, self._side, self._side, draws[:, 4, None, None] < 0.5)
        bump = bump.flatten(1)[:, None]
        if self.problem.mask is not None:
            bump = bump * self.problem.mask.flatten(2).gather(2, filled[:, :1])
        sign = torch.where(draws[:, 5:] < 0.5, -1.0, 1.0).to(delta.dtype)[:, :, None]
        old = delta.gather(2, filled)
        new = _over(bump, self._size(bump * once)) * sign + _over(old, self._size(old * once))
        # what the ball has left is shared by the channels, what both squares held is the channel's own
        left = self.eps**self.power - self._size(delta.flatten(1)[:, None]).pow(self.power)
        row, column = two[0] - one[0] + self._across.mT, two[1] - one[1] + self._across
        both = ((row >= 0) & (row < self._side) & (column >= 0) & (column < self._side)).flatten(1)[:, None]
        moved = delta.gather(2, emptied) * (once & ~both)
        held = self._size(old * once).pow(self.power) + self._size(moved).pow(self.power)
        mass = (left.clamp(min=0) / delta.shape[1] + held).pow(1 / self.power)
        if self.power == 1:  # more than there is: the projection takes it from all pixels, most from the smallest
            mass = mass * delta.shape[1]
        delta.scatter_(2, emptied, 0).scatter_(2, filled, new * _over(mass, self._size(new * once)))
        return self._at_radius(delta.view_as(best))

    def _at_radius(self, delta: Tensor) -> Tensor:
        """The image with the perturbation brought to the radius, in the box."""
        x = self.problem.x
        if self.power == 1:
            return self.problem.restrict(norm("l1").enforce(x, x + delta, self.eps))
        return self.problem.restrict(x + delta * _over(delta.new_tensor(self.eps), rows(norm("l2").size(delta))))

    def _bump(self, row: Tensor, column: Tensor, height: Tensor, width: Tensor, turned: Tensor) -> Tensor:
        """Two pyramids of opposite signs side by side, or one over the other where ``turned``; ``(B, H, W)``.

        Around the centre of each, squares of growing size k are laid, 1 / (k + 1)^2 high (the paper's eta).

        Args:
            row: Place of the pixels from the upper edge of their bump.
            column: The same from the left edge.
            height: Of the bump.
            width: Of the bump.
            turned: Which of the two.
        """
        along, across = torch.where(turned, width, height), torch.where(turned, height, width)
        place, other = torch.where(turned, column, row), torch.where(turned, row, column)
        second = place >= along // 2
        place = torch.where(second, place - along // 2, place)
        along = torch.where(second, along - along // 2, along // 2)
        ring = torch.maximum((place - along // 2).abs(), (other - across // 2).abs())
        high = self.sums[torch.maximum(along // 2, across // 2) + 1] - self.sums[ring.clamp(max=len(self.sums) - 1)]
        return torch.where(second, -high, high)

    def _size(self, values: Tensor) -> Tensor:
        """The norm of each channel, ``(B, C, 1)``."""
        return torch.linalg.vector_norm(values, ord=self.power, dim=2, keepdim=True)


def _over(values: Tensor, size: Tensor) -> Tensor:
    return values / size.clamp(min=torch.finfo(values.dtype).tiny)
