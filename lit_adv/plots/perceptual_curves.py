"""Curves of perceptual attacks: localisation over the noise threshold, quality and budget against the fooling rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from lit_adv.plots.panels import DARK, as_array

# Okabe and Ito's colours, which the colour-blind tell apart; then the same with other lines
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_SCORES = {
    "precision": "precision",
    "pixels": "pixels perturbed",
    "recall": "recall",
    "iou_outside": "IoU outside",
}


def threshold_figure(
    thresholds: Any,
    curves: Mapping[str, Mapping[str, Any]],
    threshold: float | None = None,
    title: str | None = None,
    scores: Mapping[str, str] | None = None,
) -> Figure:
    """Localisation scores over the noise threshold, a panel a score and a line an attack.

    A panel goes to 1, or, where all its curves stay below 0.4, to a quarter above the highest.

    Args:
        thresholds: ``(T,)``.
        curves: By attack and score, ``(T,)`` numbers in [0, 1]; nan leaves a gap.
        threshold: The one that a table is read at, marked in every panel.
        title: Line above.
        scores: Panels: name of a score to its label. None takes precision, pixels perturbed, recall, IoU outside.

    Returns:
        A figure that pyplot does not know of.
    """
    scores = scores or _SCORES
    figure, panels = _panels(len(scores), 2, curves, title, marks=False)
    for axes, (score, label) in zip(panels, scores.items(), strict=True):
        top = 0.0
        for number, found in enumerate(curves.values()):
            values = _floats(found[score])
            axes.plot(as_array(thresholds), values, **_style(number, marks=False))
            top = max(top, float(np.nan_to_num(values).max(initial=0)))
        if threshold is not None:
            axes.axvline(threshold, color="#9aa5b1", linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
        axes.set_xlabel("noise threshold (1 − SSIM)", fontsize=9)
        axes.set_ylabel(label, fontsize=10)
        # precision is often near the share of the pixels looked at: on the whole scale one line
        top = 1.25 * top if 0 < top < 0.4 else 1.0
        axes.set_ylim(-0.03 * top, 1.03 * top)
    return figure


def quality_figure(
    curves: Mapping[str, Mapping[str, Any]],
    ssim: float | None = None,
    psnr: float | None = None,
    title: str | None = None,
) -> Figure:
    """Mean SSIM and mean PSNR against the fooling rate, a line an attack.

    SSIM on a scale that is logarithmic in ``1 - SSIM``, as decibels are, since it is near 1 that attacks differ.

    Args:
        curves: By attack: ``fooling_rate``, ``ssim`` and ``psnr`` (dB), each ``(n,)``, a number for each budget in
            ascending order.
        ssim: The level that a table is read at, marked.
        psnr: The same.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    figure, panels = _panels(2, 2, curves, title)
    for axes, name, label, level in zip(
        panels, ("ssim", "psnr"), ("mean SSIM", "mean PSNR (dB)"), (ssim, psnr), strict=True
    ):
        for number, found in enumerate(curves.values()):
            axes.plot(as_array(found["fooling_rate"]), as_array(found[name]), **_style(number))
        if level is not None:
            axes.axhline(level, color="#9aa5b1", linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
        axes.set_xlabel("fooling rate", fontsize=9)
        axes.set_ylabel(label, fontsize=10)
        axes.set_xlim(-0.03, 1.03)
    _spread_near_one(panels[0], [value for found in curves.values() for value in as_array(found["ssim"]).tolist()])
    return figure


def budget_figure(
    curves: Mapping[str, tuple[Any, Any]],
    labels: Mapping[str, str] | None = None,
    logarithmic: bool = True,
    title: str | None = None,
) -> Figure:
    """Fooling rate over the budget, a panel an attack, since budgets of different norms have no common scale.

    Args:
        curves: By attack, budgets ``(n,)`` and fooling rates ``(n,)``.
        labels: For some attacks, what their budget is: "eps (Linf)".
        logarithmic: Budgets on a logarithmic scale.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    figure, panels = _panels(len(curves), 3, {}, title)
    for axes, (name, (budgets, rates)) in zip(panels, curves.items(), strict=True):
        axes.plot(as_array(budgets), as_array(rates), **_style(0))
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(_round_numbers(as_array(budgets))))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name, fontsize=10, color=DARK, parse_math=False)
        axes.set_xlabel((labels or {}).get(name, "budget"), fontsize=9)
        axes.set_ylabel("fooling rate", fontsize=9)
        axes.set_ylim(-0.03, 1.03)
    return figure


def _panels(
    count: int, across: int, lines: Sequence[str] | Mapping[str, Any], title: str | None, marks: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` empty axes, the lines' legend at its right."""
    if not count:
        raise ValueError("perceptual_curves: there must be something to show, got nothing")
    across = min(across, count)
    down = math.ceil(count / across)
    room = 0.5 + 0.085 * max((len(name) for name in lines), default=0) if lines else 0.0
    width, height = 3.7 * across + room, 2.8 * down + (0.4 if title else 0)
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(down, across, place + 1) for place in range(count)]
    for axes in panels:
        axes.grid(color="#e4e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    if lines:
        handles = [panels[0].plot([], [], **_style(number, marks), label=name)[0] for number, name in enumerate(lines)]
        legend = figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False, handlelength=2.6)
        for words in legend.get_texts():
            words.set_parse_math(False)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=DARK, parse_math=False)
    return figure, panels


def _spread_near_one(axes: Axes, values: Sequence[float]) -> None:
    """Makes the y axis logarithmic in 1 - y; what is nearer to 1 than a millionth is drawn there."""
    axes.set_yscale("function", functions=(lambda y: -np.log10(np.maximum(1 - y, 1e-6)), lambda v: 1 - 10.0**-v))
    low, high = min(values, default=0.0), min(max(values, default=1.0), 1 - 1e-6)
    ends = (-math.log10(1 - low), -math.log10(1 - high))
    room = max(0.05 * (ends[1] - ends[0]), 0.05)
    bottom, top = (1 - 10.0**-end for end in (ends[0] - room, ends[1] + room))
    axes.set_ylim(bottom, top)
    tens = 0.0, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999
    between = 0.5, 0.8, 0.95, 0.98, 0.995, 0.998, 0.9995, 0.9998
    marks = [mark for mark in tens if bottom <= mark <= top]
    if len(marks) < 4:
        marks += [mark for mark in between if bottom <= mark <= top]
    axes.yaxis.set_major_locator(FixedLocator(sorted(marks)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _round_numbers(values: Any) -> list[float]:
    """1, 2 and 5 times the powers of ten among the values; where there are not two of them, the ends themselves."""
    positive = values[values > 0]
    if not positive.size:
        return []
    low, high = float(positive.min()), float(positive.max())
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    numbers = [step * 10.0**power for power in powers for step in steps]
    found = [number for number in numbers if low <= number * (1 + 1e-9) and number <= high * (1 + 1e-9)]
    return found if len(found) > 1 else sorted({low, high})


def _floats(values: Any) -> Any:
    # None is what JSON has for nan
    return as_array(values).astype(float)


def _style(number: int, marks: bool = True) -> dict[str, Any]:
    turn, place = divmod(number, len(_COLOURS))
    style: dict[str, Any] = {"color": _COLOURS[place], "linestyle": _LINES[turn % len(_LINES)], "linewidth": 1.6}
    return {**style, "marker": _MARKS[place], "markersize": 3.5} if marks else style
