"""What attacks leave of a classifier's accuracy, and which signs of masked gradients there are."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_adv.plots.panels import DARK, GREY

_BLUE, _RED, _ORANGE = "#0072b2", "#d7263d", "#e69f00"
_COLOURS = {"beyond": _RED, "within": _ORANGE, "no": GREY}
_WORDS = {"beyond": "flag, whole interval", "within": "flag, value alone", "no": "no flag"}


def robustness_report_figure(
    accuracies: Mapping[str, Mapping[str, Any]],
    signs: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    title: str | None = None,
    verdict: str = "",
) -> Figure:
    """Draw accuracies with their intervals, the diagnostics against their thresholds and accuracies against the radius.

    Args:
        accuracies: By attack ``accuracy``, ``low`` and ``high`` in [0, 1], None where it is not known.
        signs: By diagnostic ``value``, ``low``, ``high`` and ``limit``, shares, and ``flag``: ``no``, ``within`` or
            ``beyond``.
        curves: By attack pairs of radius and accuracy; without them there is no third panel.
        title: Line above.
        verdict: Line below it.

    Returns:
        A figure that pyplot does not know of.
    """
    panels = 3 if curves else 2
    height = 1.5 + 0.3 * max(len(accuracies), len(signs))
    figure = Figure(figsize=(4.3 * panels + 0.9, height), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, width_ratios=[1, 1.15, 1][:panels])
    _accuracies(axes[0], accuracies)
    _signs(axes[1], signs)
    if curves:
        _curves(axes[2], curves)
    words = "\n".join([*([title] if title else []), *textwrap.wrap(verdict, 52 * panels)])
    if words:
        figure.suptitle(words, fontsize=10.5, color=DARK, parse_math=False)
    return figure


def _accuracies(axes: Axes, accuracies: Mapping[str, Mapping[str, Any]]) -> None:
    places = {name: len(accuracies) - 1 - place for place, name in enumerate(accuracies)}
    for name, found in accuracies.items():
        if found["accuracy"] is not None:
            _dot(axes, places[name], found["accuracy"], found["low"], found["high"], _BLUE)
            text: dict[str, Any] = {"fontsize": 7.5, "color": DARK, "va": "bottom", "ha": "center"}
            axes.annotate(
                f"{100 * found['accuracy']:.1f}", (100 * found["accuracy"], places[name]), (0, 3),
                textcoords="offset points", **text,
            )  # fmt: skip
    axes.set_yticks(list(places.values()), list(places), fontsize=8)
    axes.set_xlim(-4, 104)
    axes.set_ylim(-0.6, len(places) - 0.3)
    axes.set_xlabel("accuracy in per cent, with its interval", fontsize=8.5, color=DARK)
    _plain(axes, "x")


def _signs(axes: Axes, signs: Mapping[str, Mapping[str, Any]]) -> None:
    known = {name: found for name, found in signs.items() if found["value"] is not None}
    places = {name: len(signs) - 1 - place for place, name in enumerate(signs)}
    for name, found in known.items():
        _dot(axes, places[name], found["value"], found["low"], found["high"], _COLOURS[found["flag"]])
        axes.plot([100 * found["limit"]] * 2, [places[name] - 0.32, places[name] + 0.32], color=DARK, linewidth=1.4)
        if found.get("both_sides"):
            axes.plot(
                [-100 * found["limit"]] * 2, [places[name] - 0.32, places[name] + 0.32], color=DARK, linewidth=1.4
            )
    for name in signs.keys() - known.keys():
        axes.text(0, places[name], "not made", fontsize=7.5, color=GREY, va="center", style="italic")
    axes.axvline(0, color="#cbd2d9", linewidth=0.8, zorder=0)
    axes.set_yticks(list(places.values()), list(places), fontsize=8)
    axes.set_ylim(-0.6, len(places) - 0.3)
    axes.set_xlabel("per cent or points; flagged right of the tick", fontsize=8.5, color=DARK)
    handles = [
        *(Line2D([], [], color=_COLOURS[flag], marker="o", label=_WORDS[flag]) for flag in ("beyond", "within", "no")),
        Line2D([], [], color=DARK, marker="|", linestyle="", markersize=9, label="threshold"),
    ]
    style: dict[str, Any] = {"fontsize": 7.5, "frameon": False, "ncols": 4, "labelcolor": DARK, "handlelength": 1.2}
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.42, 1.0), columnspacing=0.9, **style)
    _plain(axes, "x")


def _curves(axes: Axes, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for (name, points), colour in zip(curves.items(), (_ORANGE, _BLUE, _RED, GREY), strict=False):
        ordered = sorted(points)
        axes.plot(
            [radius for radius, _ in ordered],
            [100 * accuracy for _, accuracy in ordered],
            "o-",
            color=colour,
            label=name,
            markersize=4,
        )
    axes.set_ylim(-3, 103)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("eps", fontsize=8.5, color=DARK)
    axes.set_ylabel("accuracy in per cent", fontsize=8.5, color=DARK)
    axes.legend(fontsize=8, frameon=False, labelcolor=DARK)
    _plain(axes, "both")


def _dot(axes: Axes, place: float, value: float, low: float, high: float, colour: str) -> None:
    axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2.4, alpha=0.45, solid_capstyle="butt")
    axes.plot([100 * value], [place], "o", color=colour, markersize=4.5)


def _plain(axes: Axes, grid: Any) -> None:
    axes.tick_params(labelsize=8, colors=GREY)
    axes.grid(axis=grid, color="#e5e9ee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
