"""Decision boundaries: how far, at what angle, how bent; sections of regions; which classes fill space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from lit_adv.plots.feature_space import class_colour
from lit_adv.plots.panels import DARK, GREY, as_array

BLUE, ORANGE = "#0072b2", "#d55e00"
_MOST = 20  # classes that a figure of bars has room for


class Section(NamedTuple):
    """One section of decision regions.

    Args:
        classes: ``(n, n)``, as drawn.
        radius: Half of its side, in multiples of the distance to the boundary.
        image: Where the image lies in it, in the same unit; None where outside.
        point: Where the boundary point lies in it; None where outside.
        caption: Line below it.
    """

    classes: Any
    radius: float
    image: tuple[float, float] | None = None
    point: tuple[float, float] | None = None
    caption: str = ""


def boundary_geometry_figure(
    attack_ratios: Any, ratios: Any, cosines: Any, random: Any, top: Any, least: float, title: str | None = None
) -> Figure:
    """Draw distances, angles and curvatures of some images' boundary points.

    Args:
        attack_ratios: ``(N,)``, ``||r|| / ||x||`` of what the attack found.
        ratios: ``(N,)``, of the nearest point found.
        cosines: ``(N,)``, between r and the normal.
        random: ``(N, n)``, curvature times distance in random directions; may hold NaN.
        top: ``(N,)``, in the direction of the power iteration; may hold NaN.
        least: Cosine below which the nearest point was not found.
        title: Line above.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: There is no image.
    """
    attack_ratios, ratios, cosines, random, top = (
        as_array(each).astype(float) for each in (attack_ratios, ratios, cosines, random, top)
    )
    if not len(ratios):
        raise ValueError("boundary_geometry_figure: ratios must hold at least one image, got none")
    figure = Figure(figsize=(12.2, 3.9), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    first, second, third = (_panel(figure, 3, place) for place in range(3))
    for values, name, colour, line in (
        (attack_ratios, "found by the attack", ORANGE, "--"),
        (ratios, "nearest point found", BLUE, "-"),
    ):
        _shares(first, values, name, colour, line)
    first.set_xlim(left=0)
    first.set_xlabel(r"$\|r\|\;/\;\|x\|$", fontsize=9)
    first.set_ylabel("share of the images, at most that", fontsize=9)
    first.set_title(f"Distance: mean ratio {np.nanmean(ratios):.3g}", fontsize=10, color=DARK)
    first.legend(loc="lower right", fontsize=8.5, frameon=False)
    _shares(second, cosines, None, BLUE, "-")
    left = min(0.85, float(np.nanmin(cosines)) - 0.02)
    second.set_xlim(left, 1.005)
    second.axvspan(left, least, color="#eceff3", zorder=0)
    right = float((cosines >= least).mean())
    second.text(left + 0.03 * (1.005 - left), 0.96, "not converged", fontsize=8.5, color=GREY, va="top")
    second.set_xlabel("cosine between r and the normal at x + r", fontsize=9)
    second.set_title(f"Angle: {right:.0%} converged (cosine ≥ {least:g})", fontsize=10, color=DARK)
    order = np.argsort(np.where(np.isnan(top), np.inf, top))
    ranks = np.arange(1, len(top) + 1)
    grey: dict[str, Any] = {"s": 7, "color": GREY, "alpha": 0.45, "linewidths": 0}
    third.scatter(np.repeat(ranks, random.shape[1]), random[order].ravel(), label="random directions", **grey)
    third.scatter(ranks, top[order], s=14, color=ORANGE, marker="D", linewidths=0, label="most bent one found")
    third.axhline(0, color=DARK, linewidth=0.8)
    third.set_xlabel("images, sorted", fontsize=9)
    third.set_ylabel(r"$\kappa\,\|r\|$   (0: flat)", fontsize=9)
    third.set_title("Curvature at the boundary, times the distance", fontsize=10, color=DARK)
    values = np.concatenate([random.ravel(), top])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (-1.0, 1.0)
    room = 0.06 * max(high - low, 1e-3)
    # the legend lies above all points
    third.set_ylim(min(low, 0) - room, max(high, 0) + 5 * room)
    third.legend(loc="upper right", fontsize=8.5, frameon=False, ncols=2, handletextpad=0.2, columnspacing=1.0)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=DARK, parse_math=False)
    return figure


def decision_regions_figure(
    rows: Sequence[tuple[str, Any, Sequence[Section]]],
    columns: Sequence[str],
    classes: Mapping[int, str],
    title: str | None = None,
) -> Figure:
    """Draw images beside sections of the regions around them; colours are classes.

    Args:
        rows: Name, image ``(1 or 3, H, W)`` in [0, 1] and sections of each.
        columns: Headings of the sections.
        classes: Names of the classes in the sections; of more than 20 colours repeat.
        title: Line above.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: There is no row, or sections do not fit the columns.
    """
    if not rows or any(len(sections) != len(columns) for _, _, sections in rows):
        got = [len(sections) for _, _, sections in rows]
        raise ValueError(
            f"decision_regions_figure: rows must hold at least one image and {len(columns)} sections each, got {got}"
        )
    numbers = {each: place for place, each in enumerate(classes)}
    colours = ListedColormap([class_colour(place, len(classes)) for place in range(len(classes))])
    side, gap, left = 2.35, 0.55, 0.35 + 0.085 * max(len(line) for name, _, _ in rows for line in name.split("\n"))
    across = -(-len(classes) // 16)
    legend = across * (0.55 + 0.085 * max(map(len, classes.values())))
    width = max(left + 1.5 + (side + gap) * len(columns) + legend + 0.5, 0.3 + 0.105 * len(title or ""))
    pitch = side + 0.62
    height = 0.95 + pitch * len(rows) + 0.15
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)

    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, words, parse_math=False, va="center", **style)

    if title:
        text(0.15, 0.27, title, fontsize=12, fontweight="bold", color=DARK)
    start = left + 1.5 + gap
    for number, words in enumerate(columns):
        text(start + number * (side + gap) + side / 2, 0.72, words, fontsize=9.5, ha="center", color=GREY)
    for line, (name, image, sections) in enumerate(rows):
        top = 0.92 + line * pitch
        text(left - 0.1, top + 0.65, name, fontsize=9.5, fontweight="bold", ha="right", color=DARK)
        picture = np.moveaxis(as_array(image), 0, -1)
        axes = figure.add_axes((left / width, 1 - (top + 1.3) / height, 1.3 / width, 1.3 / height))
        axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture.clip(0, 1), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        for number, section in enumerate(sections):
            x = start + number * (side + gap)
            axes = figure.add_axes((x / width, 1 - (top + side) / height, side / width, side / height))
            _regions(axes, section, numbers, colours)
            text(x + side / 2, top + side + 0.36, section.caption, fontsize=8.5, ha="center", color=DARK)
    handles = [Patch(color=colours(numbers[each]), label=name) for each, name in classes.items()]
    x = start + len(columns) * (side + gap) - 0.3
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(x / width, 1 - 0.85 / height),
        frameon=False,
        fontsize=8.5,
        title="seen as",
        alignment="left",
        ncols=across,
    )
    return figure


def dominant_labels_figure(
    counts: Mapping[str, Any], clean: Any, classes: Mapping[int, str], title: str | None = None
) -> Figure:
    """Draw what share of points each class takes, a panel a kind of point; lines mark the share of the clean images.

    Args:
        counts: By kind of point, ``(K,)``.
        clean: ``(K,)``, of the clean images' predictions.
        classes: Names of all classes; the 20 with the largest shares are shown.
        title: Line above.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: There is nothing to show.
    """
    if not counts:
        raise ValueError("dominant_labels_figure: counts must hold at least one kind of point, got none")
    shares = {name: _of_one(values) for name, values in counts.items()}
    before = _of_one(clean)
    largest = np.max([*shares.values(), before], axis=0)
    shown = sorted(np.argsort(-largest, kind="stable")[:_MOST].tolist())
    high = max(2.2, 0.26 * len(shown) + 1.3)
    figure = Figure(figsize=(4.1 * len(shares) + 1.4, high), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    places = np.arange(len(shown))
    for number, (name, values) in enumerate(shares.items()):
        axes = _panel(figure, len(shares), number)
        axes.barh(places, values[shown], color=BLUE, height=0.65, label="these points")
        axes.vlines(before[shown], places - 0.42, places + 0.42, color=ORANGE, linewidth=2, label="clean images")
        axes.set_yticks(places, [classes[each] for each in shown] if not number else [], parse_math=False)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02 * max(float(largest.max()), 0.05))
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.grid(axis="y", visible=False)
        total = int(as_array(counts[name]).sum())
        axes.set_title(f"{name} ({total})", fontsize=10, color=DARK, parse_math=False)
        axes.set_xlabel("share seen as the class", fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", fontsize=8.5, frameon=False, ncols=2)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=DARK, parse_math=False)
    return figure


def _panel(figure: Figure, count: int, place: int) -> Axes:
    axes = figure.add_subplot(1, count, place + 1)
    axes.grid(color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return axes


def _shares(axes: Axes, values: Any, name: str | None, colour: str, line: str) -> None:
    """The share of values up to each value."""
    values = np.sort(values[np.isfinite(values)])
    heights = np.arange(len(values) + 1) / max(len(values), 1)
    steps = np.concatenate([values[:1], values])
    axes.step(steps, heights, where="post", color=colour, linestyle=line, linewidth=1.8, label=name)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _regions(axes: Axes, section: Section, numbers: Mapping[int, int], colours: ListedColormap) -> None:
    classes = as_array(section.classes).astype(int)
    shown = np.vectorize(numbers.__getitem__)(classes)
    # half a cell, since the outermost points are the middles of their cells
    edge = section.radius * (1 + 1 / max(len(classes) - 1, 1))
    axes.imshow(
        shown,
        cmap=colours,
        vmin=-0.5,
        vmax=colours.N - 0.5,
        extent=(-edge, edge, -edge, edge),
        interpolation="nearest",
    )
    for at, marker, size in ((section.image, "o", 6), (section.point, "X", 7)):
        if at is not None:
            axes.plot(*at, marker=marker, markersize=size, color="white", markeredgecolor="black", markeredgewidth=1)
    axes.tick_params(labelsize=7, length=2, pad=1.5)


def _of_one(counts: Any) -> Any:
    values = as_array(counts).astype(float)
    return values / max(float(values.sum()), 1.0)
