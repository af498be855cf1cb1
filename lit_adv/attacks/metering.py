"""What an attack costs before it runs, and the watch over a call that may not run to its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_adv.attacks.norms import rows


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an attack will take at most; ``str()`` says it in a line.

    Attributes:
        forwards: Most forward passes an image takes; NaN where the attack cannot know.
        backwards: Most backward passes an image takes.
        images: Images it was asked for.
        seconds: For all of them, from the time of one pass on this model and device.
    """

    forwards: float
    backwards: float
    images: int
    seconds: float

    def __str__(self) -> str:
        if math.isnan(self.forwards):
            return f"unknown for {self.images:,} images"
        passes = f"at most {self.forwards:,.0f} forward and {self.backwards:,.0f} backward passes an image"
        return f"{passes}, up to {_duration(self.seconds)} for {self.images:,} images"


class Spent(Exception):  # no error: it ends a call whose budget is used up
    """The budget of passes or of time is used up."""


class Meter:
    """Watches the passes of one call: ends it at a limit, knows what to return then, moves a progress bar.

    Args:
        x: ``(B, C, H, W)`` clean images.
        max_queries: Most forward passes an image may take, or None.
        max_seconds: Most time the call may take, or None.
        measure: The size of a perturbation, ``(B,)``; the smallest success is kept. None keeps the last iterate.
        tick: Told how many images go through the model.
    """

    def __init__(
        self,
        x: Tensor,
        max_queries: int | None,
        max_seconds: float | None,
        measure: Callable[[Tensor], Tensor] | None,
        tick: Callable[[int], Any] | None,
    ) -> None:
        self.images = x.clone()
        self._size = torch.full_like(x[:, 0, 0, 0], math.inf)
        self.max_queries = max_queries
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._limited = max_queries is not None or max_seconds is not None
        self._measure = measure
        self._tick = tick

    def before(self, forwards: Tensor, index: Tensor | None, count: int) -> None:
        """Raises Spent where ``count`` more images are beyond the limit; ``forwards`` are the passes so far."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Spent
        if self.max_queries is not None:
            after = forwards + 1 if index is None else forwards.index_add(0, index, torch.ones_like(index))
            if bool((after if index is None else after[index]).gt(self.max_queries).any()):
                raise Spent
        if self._tick is not None:
            self._tick(count)

    def after(self, x: Tensor, clean: Tensor, hit: Tensor, index: Tensor | None) -> None:
        """Keeps of each image's candidates ``x`` what a call that ends now would return."""
        if not self._limited:
            return
        place = torch.arange(len(x), device=x.device) if index is None else index
        # an iterate of a bounded attack counts as larger than any success, and is replaced by the next one
        size = torch.zeros_like(self._size[place]) if self._measure is None else self._measure(x - clean).to(x.dtype)
        size = torch.where(hit, size, torch.finfo(x.dtype).max if self._measure is None else math.inf)
        # of several candidates of an image the smallest: sorted by size, then, stably, by image
        order = size.argsort(stable=True)
        order = order[place[order].argsort(stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = place[order][1:] != place[order][:-1]
        chosen = order[first]
        target = place[chosen]
        better = size[chosen] < self._size[target] if self._measure is not None else size[chosen] <= self._size[target]
        self.images[target] = torch.where(rows(better), x[chosen], self.images[target])
        self._size[target] = torch.where(better, size[chosen], self._size[target])


def measured(passes: Callable[[], Any], device: torch.device) -> float:
    """Seconds of ``passes()``, the better of two."""
    best = math.inf
    for _ in range(2):
        began = time.perf_counter()
        passes()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
