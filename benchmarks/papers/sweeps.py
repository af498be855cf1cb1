"""Sweeps over an attack's budget: which budget comes next, what is read off the curve, and the file of points."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from lit_adv.files import replacing


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one attack with one budget did to all images.

    Attributes:
        key: Stands for attack, network, images and everything else that decides the figures, save `quantise`.
        set: Name of the image set.
        network: Name of the network.
        images: How many.
        steps: Most steps of the iterative attacks.
        stopped: Whether they stop with the first iterate that succeeds.
        attack: Name of the attack.
        budget: Its eps, or eps2.
        quantise: ``none``, or ``round`` for images rounded to 8 bits.
        fooling_rate: Share of changed predictions.
        ssim: Mean over the images.
        psnr: Mean over the images in dB, those above 100 dB counted as 100.
        identical: Images that are equal to the clean ones.
        precision: SSIM precision, nan where no image has a perturbed pixel.
        pixels: Share of pixels perturbed.
        recall: SSIM recall.
        iou_outside: IoU with what lies outside the class activation.
        scored: Images that have a precision.
        looked: Mean share of the pixels inside the class activation.
        forwards: Mean number of forward passes of an image.
    """

    key: str
    set: str
    network: str
    images: int
    steps: int
    stopped: bool
    attack: str
    budget: float
    quantise: str
    fooling_rate: float
    ssim: float
    psnr: float
    identical: int
    precision: float
    pixels: float
    recall: float
    iou_outside: float
    scored: int
    looked: float
    forwards: float


class Reading(NamedTuple):
    """The fooling rate read at a level of quality.

    Args:
        rate: In [0, 1]; nan where no two neighbouring budgets enclose the level.
        unchanged: Share of the images that are the clean ones bit for bit at the weaker of the two budgets; their PSNR
            is the cap's, so that a reading with many of them says little.
    """

    rate: float
    unchanged: float = 0.0


def curve(points: Sequence[Point], attack: str, quantise: str) -> list[Point]:
    """The points of one attack, by ascending budget."""
    return sorted((p for p in points if (p.attack, p.quantise) == (attack, quantise)), key=lambda p: p.budget)


def rate_at(points: Sequence[Point], quality: str, level: float) -> Reading:
    """Reads the fooling rate where the curve passes a level of ``ssim`` or ``psnr``, by linear interpolation.

    Nothing is extrapolated. Where the curve passes the level more than once, the highest rate counts, since an attacker
    chooses the budget.

    Args:
        points: One curve, by ascending budget.
        quality: ``ssim`` or ``psnr``.
        level: Where to read.
    """
    found = [Reading(p.fooling_rate, p.identical / p.images) for p in points if getattr(p, quality) == level]
    for one, two in pairwise(points):
        low, high = getattr(one, quality), getattr(two, quality)
        if (low - level) * (high - level) < 0:
            share = (level - low) / (high - low)
            rate = one.fooling_rate + share * (two.fooling_rate - one.fooling_rate)
            found.append(Reading(rate, max(one.identical, two.identical) / one.images))
    return max(found, key=lambda reading: reading.rate, default=Reading(math.nan))


def smallest_fooling(points: Sequence[Point], rate: float) -> Point:
    """The point of the smallest budget that fools so many; where none does, the one that fools most."""
    reached = [p for p in points if p.fooling_rate >= rate]
    if reached:
        return min(reached, key=lambda p: p.budget)
    return max(points, key=lambda p: (p.fooling_rate, -p.budget))


def budget_at(points: Sequence[Point], rate: float) -> float:
    """The smallest budget at which the curve reaches a fooling rate, by linear interpolation; nan if it never does.

    Args:
        points: One curve, by ascending budget; before it lies the budget 0, which fools none.
        rate: Above 0.
    """
    budget, fooled = 0.0, 0.0
    for point in points:
        if point.fooling_rate >= rate:
            return budget + (rate - fooled) / (point.fooling_rate - fooled) * (point.budget - budget)
        budget, fooled = point.budget, point.fooling_rate
    return math.nan


def next_budget(
    points: Sequence[Point],
    start: float,
    largest: float,
    levels: Mapping[str, float],
    rate: float,
    most: int,
    factor: float = 2.0,
) -> float | None:
    """The budget to try next, or None when the curves hold all that is to be read.

    First downwards until the quality is better than both levels and at most half of the images are fooled, and upwards
    until it is worse and the fooling rate is reached. Then, as long as points are left, between neighbours where a
    level is passed and the fooling rate jumps, or where the fooling rate is reached.

    Args:
        points: All points of one attack so far, with and without rounding.
        start: The first budget.
        largest: The largest budget.
        levels: By quality, ``ssim`` and ``psnr``: where the fooling rate will be read.
        rate: Fooling rate that is to be reached without rounding.
        most: Most budgets. The way up and down goes on to twice as many, since nothing is extrapolated.
        factor: From one budget to the next on the way up and down.
    """
    curves = [curve(points, p.attack, p.quantise) for p in {p.quantise: p for p in points}.values()]
    plain = next((c for c in curves if c[0].quantise == "none"), [])
    if not plain:
        return start
    if len(plain) < 2 * most:
        low = plain[0]
        if any(getattr(low, name) < level for name, level in levels.items()) or low.fooling_rate > 0.5:
            return low.budget / factor
        tops = [c[-1] for c in curves]
        unread = any(getattr(top, name) > level for top in tops for name, level in levels.items())
        if plain[-1].budget < largest and (unread or max(p.fooling_rate for p in plain) < rate):
            return min(plain[-1].budget * factor, largest)
    if len(plain) >= most:
        return None
    gaps: list[tuple[float, float]] = []
    for line in curves:
        for one, two in pairwise(line):
            jump = abs(two.fooling_rate - one.fooling_rate)
            passed = any(
                (getattr(one, name) - level) * (getattr(two, name) - level) < 0 for name, level in levels.items()
            )
            if passed and jump > 0.1 and two.budget / one.budget > 1.1:
                gaps.append((jump, math.sqrt(one.budget * two.budget)))
    if gaps:
        return max(gaps)[1]
    reached = next((i for i, p in enumerate(plain) if p.fooling_rate >= rate), 0)
    if reached and plain[reached].budget / plain[reached - 1].budget > 1.3:
        return math.sqrt(plain[reached - 1].budget * plain[reached].budget)
    return None


def read(path: Path) -> list[Point]:
    """The points of a file, none if there is no such file.

    Raises:
        ValueError: The file has other columns.
    """
    if not path.is_file():
        return []
    names = [field.name for field in fields(Point)]
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise ValueError(f"'{path}' has the columns {reader.fieldnames}, not {names} (move it away)")
        return [_point(line) for line in reader]


def write(path: Path, points: Sequence[Point]) -> None:
    """All points as CSV; the file is there whole or as it was."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        for point in points:
            writer.writerow({name: f"{v:.9g}" if isinstance(v, float) else v for name, v in asdict(point).items()})


def _point(line: Mapping[str, str]) -> Point:
    cast: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": lambda text: text == "True"}
    return Point(**{field.name: cast[str(field.type)](line[field.name]) for field in fields(Point)})
