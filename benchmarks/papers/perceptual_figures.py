"""The figures of PGAP's paper, of our points and images."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.papers.perceptual_tables import LEVELS
from benchmarks.papers.sweeps import Point, budget_at, curve
from lit_adv.attacks import PGAP, Attack
from lit_adv.attacks.attack import predictions
from lit_adv.metrics import ssim
from lit_adv.plots import budget_figure, budget_grid_figure, iterations_figure, methods_figure, quality_figure

Make = Callable[[str, float, int, bool], Attack]
ITERATIONS = (10, 30, 50, 70)


@dataclass(frozen=True)
class Subject:
    """What the pictures are of.

    Attributes:
        name: Name of the image set.
        model: The network.
        images: ``(N, C, H, W)``, of which the first few are shown.
        labels: ``(N,)``, the clean predictions.
        steps: Most steps.
        stop: Whether attacks stop at success.
    """

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    steps: int
    stop: bool


def draw(
    points: Sequence[Point],
    subject: Subject,
    units: Mapping[str, str],
    iterative: Collection[str],
    make: Make,
    shown: int = 6,
) -> Iterator[tuple[str, Figure]]:
    """Name and figure, one after the other.

    Args:
        points: Of all attacks.
        subject: Network and images.
        units: By attack, what its budget is.
        iterative: Attacks that take more than one step.
        make: The attack of a name, a budget, most steps, and whether it stops at success.
        shown: Images in Fig. 4.
    """
    lines = {attack: curve(points, attack, "none") for attack in units if curve(points, attack, "none")}
    yield "methods", methods(lines, subject, make, shown)
    levels = LEVELS[subject.name]
    for quantise, words in (("none", "without rounding"), ("round", "rounded to 8 bits")):
        curves = {
            attack: {name: [getattr(p, name) for p in curve(points, attack, quantise)] for name in _COLUMNS}
            for attack in lines
        }
        yield f"quality_{quantise}", quality_figure(curves, **levels, title=f"{subject.name}, {words}")
    budgets = {attack: ([p.budget for p in line], [p.fooling_rate for p in line]) for attack, line in lines.items()}
    yield "budgets", budget_figure(budgets, units, title=subject.name)
    yield "budget_grid", budget_grid(subject)
    chosen = [attack for attack in lines if attack in iterative]
    if chosen:
        yield "iterations", iterations(lines, chosen, subject, make)


def methods(lines: Mapping[str, Sequence[Point]], subject: Subject, make: Make, shown: int) -> Figure:
    """Fig. 4: some images under every attack, at the highest fooling rate that all of them reach."""
    rate = min(max(p.fooling_rate for p in line) for line in lines.values())
    clean, labels = subject.images[:shown], subject.labels[:shown]
    rows = {}
    for attack, line in lines.items():
        budget = budget_at(line, rate)
        images = make(attack, budget, subject.steps, subject.stop)(subject.model, clean, labels)
        rows[f"{attack}\nbudget {budget:.3g}\nSSIM {float(ssim(clean, images).mean()):.4f}"] = images
    return methods_figure(clean, rows, f"{subject.name}, fooling rate {rate:.2f}")


def budget_grid(subject: Subject, eps1: Sequence[float] = (0, 0.1, 0.2, 0.4)) -> Figure:
    """Fig. 1: one image after one step of PGAP, for budgets of the mean and of the structure.

    As in the paper without the box: with it, means far from the image's seldom gain, and rows are alike.
    """
    eps2 = (0.05, 0.1, 0.2, 0.4)
    clean, labels = subject.images[:1], subject.labels[:1]
    images, captions = [], []
    for one in eps1:
        attacks = [PGAP(eps1=one, eps2=two, steps=1, box=False, fold=False) for two in eps2]
        line = torch.cat([attack(subject.model, clean, labels) for attack in attacks])
        fooled = predictions(subject.model, line) != labels
        similar = ssim(clean.expand_as(line), line)
        images.append(line)
        captions.append([f"SSIM {s:.3f}{', fooled' if f else ''}" for s, f in zip(similar, fooled, strict=True)])
    return budget_grid_figure(
        torch.stack(images), eps1, eps2, f"{subject.name}, one step of PGAP without the box", captions
    )


def iterations(lines: Mapping[str, Sequence[Point]], attacks: Sequence[str], subject: Subject, make: Make) -> Figure:
    """Figs. 19 to 26: the smallest budget that fools one image after 10, 30, 50 and 70 iterations."""
    clean, labels = subject.images[:1], subject.labels[:1]
    images, budgets = {}, {}
    for attack in attacks:
        found = [
            smallest_budget(
                subject.model, clean, labels, lambda b, s=steps, a=attack: make(a, b, s, True), lines[attack]
            )
            for steps in ITERATIONS
        ]
        images[attack], budgets[attack] = torch.cat([image for image, _ in found]), [budget for _, budget in found]
    return iterations_figure(clean[0], images, budgets, ITERATIONS, f"{subject.name}, smallest budgets that fool")


def smallest_budget(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    attack: Callable[[float], Attack],
    line: Sequence[Point],
    halvings: int = 7,
) -> tuple[Tensor, float]:
    """By bisection on a logarithmic scale, between a quarter of the smallest swept budget and the largest.

    Returns:
        The image and the budget; the clean image and nan where the largest does not fool.
    """
    low, high = line[0].budget / 4, line[-1].budget
    best = attack(high)(model, image, label)
    if bool((predictions(model, best) == label).all()):
        return image, math.nan
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        tried = attack(middle)(model, image, label)
        if bool((predictions(model, tried) != label).all()):
            best, high = tried, middle
        else:
            low = middle
    return best, high


_COLUMNS = ("fooling_rate", "ssim", "psnr")
