"""Saliency profiles over the filters, and heat maps over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_adv.plots.panels import DARK, GREY, Panel, as_array, panel_grid


class Profile(NamedTuple):
    """The saliency profile of an attack.

    Args:
        curve: ``(K,)`` in standard deviations, the filters of each layer in the order in which they are shown.
        about: Words at the right of its panel.
    """

    curve: Any
    about: str = ""


class HeatMap(NamedTuple):
    """An image and its map.

    Args:
        image: ``(C, H, W)`` in [0, 1] with one or three channels.
        heat: ``(H, W)`` in [0, 1].
        name: Of the image, beside its row.
        caption: Line below the image.
    """

    image: Any
    heat: Any
    name: str = ""
    caption: str = ""


def profile_figure(
    profiles: Mapping[str, Profile],
    layers: Sequence[int],
    share_y: bool = True,
    absolute: bool = False,
    title: str | None = None,
) -> Figure:
    """Saliency over all filters, a panel an attack; layers lie behind it as bands, numbered in the first one.

    A few filters that hardly ever matter to clean images can be hundreds of deviations above them; where the largest
    is more than ten times the 99th percentile, the axis ends at twice that, and words say what lies above it.

    Args:
        profiles: By attack.
        layers: Filters of each layer, in order.
        share_y: One y-axis for all, so that sizes can be compared, or one for each, so that small ones can be seen.
        absolute: For the label of the y-axis.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.

    Raises:
        ValueError: There is no profile, or one that does not fit the layers.
    """
    filters = sum(layers)
    curves = {name: as_array(each.curve).astype(float) for name, each in profiles.items()}
    for name, curve in curves.items():
        if curve.shape != (filters,):
            raise ValueError(
                f"profile_figure: {name} must have one number for each of {filters} filters, got {curve.shape}"
            )
    if not curves:
        raise ValueError("profile_figure: there must be something to show, got nothing")
    figure = Figure(figsize=(9, 1.15 + 1.25 * len(curves)), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), 1, sharex=True, sharey=share_y, squeeze=False)[:, 0]
    bounds = [0, *accumulate(layers)]
    ends = {name: _ends(curve) for name, curve in curves.items()}
    if share_y:
        lows, tops = zip(*ends.values(), strict=True)
        ends = dict.fromkeys(ends, (min(lows), max(tops)))
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        for start, end in zip(bounds[:-1:2], bounds[1::2], strict=False):
            axes.axvspan(start, end, color="#eef2f6", linewidth=0, zorder=0)
        axes.axhline(0, color="#9aa5b1", linewidth=0.6, zorder=1)
        # each filter as wide as its share of the axis, so that a layer of few is seen where it is
        axes.stairs(curve, np.arange(filters + 1), color="#0072b2", fill=True, linewidth=0, zorder=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_title(name, fontsize=10, color=DARK, loc="left", fontweight="bold", pad=3, parse_math=False)
        axes.set_title(profiles[name].about, fontsize=8.5, color=GREY, loc="right", pad=3, parse_math=False)
        low, top = ends[name]
        margin = 0.05 * (top - low)
        above = np.flatnonzero(curve > top)
        axes.set_ylim(low - margin * (low < 0), top + margin * (not len(above)))
        if len(above):
            words = f"{len(above)} filter{'s' * (len(above) > 1)} up to {curve.max():,.0f}"
            place, left = above[0] / filters, above[0] / filters < 0.8
            style: dict[str, Any] = {"transform": axes.transAxes, "ha": "left" if left else "right", "va": "top"}
            axes.text(place + (0.012 if left else -0.005), 0.86, words, fontsize=7.5, color="#b42318", **style)
    panels[-1].set_xlim(0, filters)
    panels[-1].set_xlabel(f"filter (bands: the {len(layers)} layers)", fontsize=9)
    _number_layers(panels[0], bounds)
    what = "|saliency|" if absolute else "saliency"
    figure.supylabel(f"{what} (standard deviations)", fontsize=9, color=DARK)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=DARK, parse_math=False)
    return figure


def heat_map_figure(
    examples: Mapping[str, Mapping[str, HeatMap]], attacks: Sequence[str], title: str | None = None
) -> Figure:
    """Images under each attack, and below them their heat maps laid over them in the colours of jet.

    Args:
        examples: By image and attack; an attack may be missing.
        attacks: The columns.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    rows: list[tuple[str, list[Panel | None]]] = []
    for name, maps in examples.items():
        about = next((each.name for each in maps.values()), "")
        found = [maps.get(attack) for attack in attacks]
        rows.append((f"{name}\n{about}", [each and Panel(as_array(each.image), each.caption) for each in found]))
        rows.append(("saliency", [each and Panel(_overlaid(each)) for each in found]))
    return panel_grid(rows, list(attacks), title)


def _ends(curve: npt.NDArray[Any]) -> tuple[float, float]:
    """The smallest and the largest value that is shown, 0 always."""
    if not np.isfinite(curve).any():
        return 0.0, 1.0
    largest, usual = float(np.nanmax(curve)), float(np.nanquantile(curve, 0.99))
    return min(float(np.nanmin(curve)), 0.0), 2 * usual if 0 < 10 * usual < largest else max(largest, 1e-9)


def _number_layers(axes: Axes, bounds: Sequence[int]) -> None:
    """The layers' numbers from 1 below the panel's upper edge, as many as there is room for."""
    last = -np.inf
    for number, (start, end) in enumerate(pairwise(bounds), 1):
        middle = (start + end) / 2
        if middle - last < 0.022 * bounds[-1]:
            continue
        last = middle
        style: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text(middle, 0.98, str(number), fontsize=6.5, color="#7b8794", **style)


def _overlaid(each: HeatMap) -> npt.NDArray[Any]:
    picture, heat = as_array(each.image), as_array(each.heat)
    both = np.broadcast_to(picture, (3, *heat.shape)) + np.moveaxis(colormaps["jet"](heat)[..., :3], -1, 0)
    return both / both.max()
