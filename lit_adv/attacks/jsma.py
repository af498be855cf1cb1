"""JSMA: pairs of features that raise the target most while they lower the other classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_adv.attacks.attack import Attack, Problem

_TABLE = 1 << 22  # entries of a table of pairs that are looked at together


@dataclass(frozen=True, kw_only=True)
class JSMA(Attack):
    """Jacobian-based saliency map attack, Papernot et al. 2016, arXiv:1511.07528, algorithms 2 and 3.

    A step looks for the two features (a feature is one channel of one pixel) that, moved together by ``theta``, raise
    the target and lower the sum of all others, with the largest product of the two slopes; both move. Features at the
    end of the box drop out. An image is done with success, when ``gamma`` of its features have changed, or when no pair
    is left that does both; where it fails it comes back with all that has changed. Untargeted, it goes to the class
    that is second on the clean image, and any other class than the label is a success.

    The search over all pairs is exact and takes memory linear in the number of features. With s steps it takes s + 1
    forward and 2 (s + 1) backward passes, the last ones to find out that it is done; one backward pass a step with
    probabilities.

    Args:
        theta: What is added to a feature, in pixel units of [0, 1]; negative features are made darker.
        gamma: Share of the image's features that may change.
        on: Slopes of the logits or of the probabilities. These sum to 1, so that the others' slope is minus the
            target's and says nothing new.
        fold: Attack a folded snapshot of the model: None where it repays, False never (bit for bit the model itself).
    """

    theta: float = 1.0
    gamma: float = 0.145
    on: Literal["logits", "probs"] = "logits"
    fold: bool | None = None

    norm = "l0"
    minimal_norm = True

    def __post_init__(self) -> None:
        if not 1e-6 <= abs(self.theta) <= 1:
            raise ValueError(f"JSMA: theta must be in [-1, 1] and not 0, got {self.theta:g} (images are in [0, 1])")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"JSMA: gamma must be in [0, 1], got {self.gamma:g} (a share of the features)")
        if self.on not in ("logits", "probs"):
            raise ValueError(f"JSMA: on must be logits or probs, got {self.on!r}")

    @classmethod
    def example(cls) -> JSMA:
        return cls(gamma=0.2)

    def _passes_of(self, classes: int, shape: torch.Size) -> tuple[float, float]:
        steps = self._steps(shape.numel())
        return steps, steps if self.on == "probs" else 2 * steps

    def _steps(self, features: int) -> int:
        """Most steps an image of so many features takes."""
        pairs = self._most(features) // 2
        # a feature is at the end of the box after 1 / |theta| steps; rounding may add one
        return pairs if abs(self.theta) == 1 else pairs * (math.ceil(1 / abs(self.theta)) + 1)

    def _most(self, features: int) -> int:
        return math.floor(self.gamma * features + 1e-9)

    def _craft(self, problem: Problem) -> Tensor:
        result = problem.x.clone()
        features = result[0].numel()
        active = torch.arange(len(result), device=result.device)
        part, x = problem, problem.x
        goal: Tensor | None = None
        for _ in range(self._steps(features)):
            leaf, logits = part.graph(x)
            if goal is None:
                goal = self._goal(logits.detach(), part)
            target, others = self._slopes(part, leaf, logits, goal)
            free = x < 1 if self.theta > 0 else x > 0
            if part.mask is not None:
                free = free & (part.mask > 0)
            sign = math.copysign(1.0, self.theta)
            pair, found = best_pair(sign * target.flatten(1), -sign * others.flatten(1), free.flatten(1))
            changed = (x != part.x).flatten(1).sum(1)
            going = found & ~part.succeeded(logits.detach()) & (changed + 2 <= self._most(features))
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                active, part, x, goal, pair = active[kept], part.take(kept), x[kept], goal[kept], pair[kept]
                if not len(active):
                    return result
            flat = x.flatten(1)
            x = flat.scatter(1, pair, (flat.gather(1, pair) + self.theta).clamp(0, 1)).view_as(x)
            result[active] = x
            part.iterated()
        return result

    def _goal(self, logits: Tensor, problem: Problem) -> Tensor:
        if problem.targeted:
            return problem.classes
        return logits.scatter(1, problem.classes[:, None], -math.inf).argmax(1)

    def _slopes(self, problem: Problem, leaf: Tensor, logits: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of the target and of the sum of all other classes."""
        if self.on == "probs":
            target = problem.backward(logits.softmax(1).gather(1, goal[:, None]).sum(), leaf)
            return target, -target
        target = problem.backward(logits.gather(1, goal[:, None]).sum(), leaf, keep_graph=True)
        return target, problem.backward(logits.sum(), leaf) - target


def best_pair(a: Tensor, b: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The two columns p != q of each row with the largest ``(a_p + a_q) (b_p + b_q)``, both factors positive.

    Exact. A column p may be left out where two others are at least as large in both a and b: one of them is not q, and
    does in p's place at least as well.

    Args:
        a: ``(B, n)``.
        b: ``(B, n)``.
        free: ``(B, n)`` bool, the columns that may be chosen.

    Returns:
        The pairs ``(B, 2)``, and whether there is one, ``(B,)`` bool.
    """
    a, b = a.masked_fill(~free, -math.inf), b.masked_fill(~free, -math.inf)
    place = torch.arange(a.shape[1], device=a.device).expand_as(a)
    # most columns go in linear time, so that few are left to sort
    for useful in (_not_below_two, _in_two_layers):
        a, b, place = _compressed(useful(a, b), a, b, place)
    score, pair = _largest_product(_scaled(a), _scaled(b))
    return place.gather(1, pair), score > 0


def _not_below_two(a: Tensor, b: Tensor) -> Tensor:
    """Leaves out what is below two good columns, the largest in both a and b together; ``(B, n)`` bool."""
    key = torch.minimum(_scaled(a), _scaled(b))
    first = key.argmax(1, keepdim=True)
    second = key.scatter(1, first, -math.inf).argmax(1, keepdim=True)
    two = torch.cat([first, second], 1)
    useful = (a > a.gather(1, two).amin(1, keepdim=True)) | (b > b.gather(1, two).amin(1, keepdim=True))
    return useful.scatter(1, two, True)


def _in_two_layers(a: Tensor, b: Tensor) -> Tensor:
    """Leaves out whatever is below two other columns; ``(B, n)`` bool."""
    order = a.argsort(dim=1, descending=True)
    b = b.gather(1, order)
    # the largest and the second largest b among the columns with a larger a
    largest = _before(b.cummax(dim=1).values)
    second = _before(torch.minimum(b, largest).cummax(dim=1).values)
    return torch.zeros_like(b, dtype=torch.bool).scatter(1, order, b > second)


def _before(best: Tensor) -> Tensor:
    """Column k holds what ``best`` holds in column k - 1; the first holds -inf."""
    return torch.cat([torch.full_like(best[:, :1], -math.inf), best[:, :-1]], 1)


def _compressed(kept: Tensor, a: Tensor, b: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kept columns of every row in as many columns as the fullest row needs, filled up with -inf."""
    row, column = kept.nonzero(as_tuple=True)
    counts = kept.sum(1)
    width = max(2, int(counts.amax()))
    to = row, torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    return (
        a.new_full((len(a), width), -math.inf).index_put(to, a[row, column]),
        b.new_full((len(b), width), -math.inf).index_put(to, b[row, column]),
        place.new_zeros(len(a), width).index_put(to, place[row, column]),
    )


def _scaled(values: Tensor) -> Tensor:
    """Over each row's largest, or the products of a saturated model's slopes would underflow."""
    return values / values.amax(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def _largest_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The largest product over all pairs of columns and its pair ``(B, 2)``, tables of bounded size at a time."""
    count = a.shape[1]
    step = max(1, _TABLE // max(1, a.numel()))
    columns = torch.arange(count, device=a.device)
    best = torch.zeros_like(a[:, 0])
    pair = torch.zeros(len(a), 2, dtype=torch.int64, device=a.device)
    for start in range(0, count, step):
        rows = columns[start : start + step]
        rise = a[:, rows, None] + a[:, None, :]
        fall = b[:, rows, None] + b[:, None, :]
        product = torch.where((rise > 0) & (fall > 0) & (rows[:, None] < columns), rise * fall, 0.0)
        score, at = product.flatten(1).max(1)
        found = torch.stack([rows[0] + at // count, at % count], 1)
        pair = torch.where((score > best)[:, None], found, pair)
        best = torch.maximum(best, score)
    return best, pair
