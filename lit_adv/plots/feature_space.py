"""Clean and adversarial images as points of feature space, and beside their neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_adv.plots.panels import DARK, GREY, as_array

MARKERS = "o^sDvP*X<>"


class Cloud(NamedTuple):
    """Points in two dimensions.

    Args:
        points: ``(N, 2)``.
        labels: ``(N,)``, classes, which are the colours.
        kinds: ``(N,)``, places in the names of the kinds of images, which are the markers.
        name: Line above.
        axes: Labels of the two axes; empty ones have no ticks.
    """

    points: Any
    labels: Any
    kinds: Any
    name: str
    axes: tuple[str, str] = ("", "")


def feature_space_figure(
    clouds: Sequence[Cloud], kinds: Sequence[str], classes: Mapping[int, str], title: str | None = None
) -> Figure:
    """Draw clouds side by side: colours are classes, markers kinds of images, clean ones filled.

    Args:
        clouds: At least one.
        kinds: Names, the clean images first.
        classes: Names of the classes shown; of more than 20 colours repeat.
        title: Line above all.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: There is no point, or there are more kinds than markers.
    """
    if not clouds or not len(as_array(clouds[0].points)):
        raise ValueError("feature_space_figure: clouds must hold at least one point, got none")
    if len(kinds) > len(MARKERS):
        raise ValueError(f"feature_space_figure: kinds must be at most {len(MARKERS)}, got {len(kinds)}")
    colours = {each: class_colour(place, len(classes)) for place, each in enumerate(classes)}
    # a column of the legend has room for so many lines
    across = math.ceil(len(classes) / 17)
    longest = max(len(name) for name in (*classes.values(), *kinds))
    legend = 0.35 + 0.085 * longest + 0.08 * (len(classes) > 17)
    width = 4.4 * len(clouds) + 0.3 + max(across * legend, 0.45 + 0.085 * max(map(len, kinds)))
    figure = Figure(figsize=(width, 4.9), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    for number, cloud in enumerate(clouds):
        axes = figure.add_axes(((0.45 + 4.4 * number) / width, 0.5 / 4.9, 3.85 / width, 3.65 / 4.9))
        _scatter(axes, cloud, len(kinds), colours)
    if title:
        figure.text(0.15 / width, 1 - 0.25 / 4.9, title, fontsize=12, fontweight="bold", color=DARK, parse_math=False)
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colours[each], markersize=6, label=name)
        for each, name in classes.items()
    ]
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "handletextpad": 0.3, "borderaxespad": 0}
    style |= {"title_fontproperties": {"weight": "bold", "size": 9}, "alignment": "left"}
    x = (0.1 + 4.4 * len(clouds)) / width
    marks = [
        Line2D([], [], linestyle="", marker=MARKERS[place], markersize=6, label=name, **_face(place, GREY))
        for place, name in enumerate(kinds)
    ]
    figure.legend(handles=marks, loc="upper left", bbox_to_anchor=(x, 4.2 / 4.9), title="images", **style)
    below = (4.2 - 0.35 - 0.2 * len(kinds)) / 4.9
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(x, below), title="true class", ncols=across, **style
    )
    return figure


def class_colour(place: int, count: int) -> str:
    """Up to 10 classes have colours that are told apart without red and green, of more than 20 colours repeat."""
    if count <= len(_PETROFF):
        return _PETROFF[place]
    return to_hex(colormaps["tab20"](place % 20))


# Petroff 2021, arXiv:2107.02270, sequence of ten
_PETROFF = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)


def _scatter(axes: Axes, cloud: Cloud, kinds: int, colours: Mapping[int, str]) -> None:
    points, labels, which = as_array(cloud.points), as_array(cloud.labels), as_array(cloud.kinds)
    size = float(np.clip(9000 / len(points), 8, 40))
    for kind in range(kinds):
        for label, colour in colours.items():
            mine = (which == kind) & (labels == label)
            style: dict[str, Any] = {"marker": MARKERS[kind], "s": size, "linewidths": 0.8, "alpha": 0.8}
            face: dict[str, Any] = {"facecolors": colour, "edgecolors": "none"} if not kind else {"facecolors": "none"}
            face |= {"edgecolors": colour} if kind else {}
            axes.scatter(points[mine, 0], points[mine, 1], **style, **face)
    axes.set_title(cloud.name, fontsize=10, color=DARK, loc="left", pad=5, parse_math=False)
    if any(cloud.axes):
        axes.set_xlabel(cloud.axes[0], fontsize=8.5)
        axes.set_ylabel(cloud.axes[1], fontsize=8.5, labelpad=1)
        axes.tick_params(labelsize=7.5, length=2)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)


def _face(place: int, colour: str) -> dict[str, Any]:
    return {"color": colour} if not place else {"markerfacecolor": "none", "markeredgecolor": colour}
