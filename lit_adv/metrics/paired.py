"""Intervals of the difference of two shares of the same images."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_adv.metrics.neutralization import wilson_interval


class PairedDifference(NamedTuple):
    """``value`` and its interval from ``low`` to ``high``, in [-1, 1] where the factor is 1."""

    value: float
    low: float
    high: float


def paired_difference(
    both: int, first: int, second: int, images: int, confidence: float = 0.95, factor: float = 1.0
) -> PairedDifference:
    """``p1 - factor * p2``, two shares of the same images, with Newcombe's interval.

    Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10: Wilson's intervals of the two shares are joined by
    square-and-add, with the correlation phi of the table, which is continuity-corrected where it is positive. Unlike
    McNemar's or Wald's, it does not shrink to a point where the two never differ. A factor other than 1 multiplies
    share and interval of the second, as in Zou and Donner 2008, Statistics in Medicine 27, 1693-1702.

    Args:
        both: Images counted in both shares.
        first: Images counted in the first.
        second: Images counted in the second.
        images: All images.
        confidence: In (0, 1).
        factor: At least 0.

    Raises:
        ValueError: The counts are not those of a table, or there is no image.
    """
    cells = (both, first - both, second - both, images - first - second + both)
    if images < 1 or min(cells) < 0 or factor < 0:
        raise ValueError(
            "paired_difference: both, first, second and images must be counts of one table of at least one image, and"
            f" factor at least 0, got {both}, {first}, {second}, {images} and {factor:g}"
        )
    counts = torch.tensor([first, second])
    low, high = (each.tolist() for each in wilson_interval(counts, torch.full_like(counts, images), confidence))
    p1, p2 = first / images, second / images
    below = (p1 - low[0], factor * (high[1] - p2))
    above = (high[0] - p1, factor * (p2 - low[1]))
    phi, value = _phi(*cells), p1 - factor * p2
    return PairedDifference(value, value - _added(*below, phi), value + _added(*above, phi))


def median_interval(values: Tensor, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median and its interval between two order statistics, which holds for any distribution.

    Conover 1999, Practical Nonparametric Statistics, section 3.2: ranks ``n/2 -+ z sqrt(n)/2``, rounded outwards; the
    whole range where there are few values.

    Args:
        values: ``(N,)``, at least one.
        confidence: In (0, 1).

    Returns:
        Median, lower and upper end.

    Raises:
        ValueError: No values.
    """
    count = values.numel()
    if count == 0:
        raise ValueError("median_interval: values must hold at least one number, got none")
    ordered = values.double().flatten().sort().values
    half = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64))) * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - half) - 1)
    high = min(count - 1, math.ceil(count / 2 + half))
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return float(median), float(ordered[low]), float(ordered[high])


def _phi(a: int, b: int, c: int, d: int) -> float:
    scale = (a + b) * (c + d) * (a + c) * (b + d)
    if scale == 0:
        return 0.0
    product: float = a * d - b * c
    if product > 0:
        product = max(product - (a + b + c + d) / 2, 0)
    return product / math.sqrt(scale)


def _added(one: float, other: float, phi: float) -> float:
    # rounding may leave a negative number where the two cancel
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))
