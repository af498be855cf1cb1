"""What makes a Parseval network: singular values over training, accuracy under noise, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lit_adv.plots.panels import DARK, as_array
from lit_adv.plots.perceptual_curves import _style


def singular_value_figure(
    epochs: Sequence[int], edges: Any, counts: Mapping[str, Any], title: str | None = None
) -> Figure:
    """Histograms of singular values over training, a panel a layer: epochs from left to right, shares as colours.

    Args:
        epochs: E of them, ascending; 0 is before training.
        edges: ``(n + 1,)`` of the histograms; what is above the last is in the last bin.
        counts: By layer, ``(E, n)``.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.

    Raises:
        ValueError: There is no layer or no epoch, or counts that do not fit.
    """
    edges = as_array(edges).astype(float)
    shares = {}
    for name, values in counts.items():
        found = as_array(values).astype(float)
        if found.shape != (len(epochs), len(edges) - 1):
            raise ValueError(
                f"singular_value_figure: {name} must have counts of shape ({len(epochs)}, {len(edges) - 1}), got"
                f" {found.shape}"
            )
        shares[name] = found / found.sum(1, keepdims=True)
    if not shares or not len(epochs):
        raise ValueError("singular_value_figure: there must be something to show, got nothing")
    used = np.flatnonzero(sum(each.sum(0) for each in shares.values()))
    top = edges[min(int(used[-1]) + 2, len(edges) - 1)]
    across = min(4, len(shares))
    down = math.ceil(len(shares) / across)
    figure, panels = _figure(down, across, (2.5 * across + 0.9, 1.9 * down + 0.9), title, len(shares))
    borders = _borders(epochs)
    for place, (axes, (name, share)) in enumerate(zip(panels, shares.items(), strict=True)):
        colours: dict[str, Any] = {"cmap": "magma_r", "vmin": 0, "vmax": 1}
        picture = axes.pcolormesh(borders, edges, np.sqrt(np.ma.masked_equal(share, 0)).T, rasterized=True, **colours)
        axes.axhline(1, color="#0072b2", linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_ylim(0, top)
        axes.set_title(name, fontsize=8.5, color=DARK, parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if place % across:
            axes.tick_params(labelleft=False)
        if place + across < len(shares):
            axes.tick_params(labelbottom=False)
    figure.supxlabel("epoch", fontsize=9, color=DARK)
    figure.supylabel("singular value", fontsize=9, color=DARK)
    marks = (0, 0.05, 0.25, 0.5, 1)
    bar = figure.colorbar(picture, ax=panels, ticks=np.sqrt(marks), fraction=0.03, pad=0.01)
    bar.ax.set_yticklabels([f"{mark:.0%}" for mark in marks])
    bar.set_label("share of the layer's values", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def noise_figure(
    decibels: Sequence[float], curves: Mapping[str, Mapping[str, Any]], title: str | None = None
) -> Figure:
    """Accuracy over the signal-to-noise ratio, a panel a kind of noise, a line a classifier; noise grows to the right.

    Args:
        decibels: ``(S,)``.
        curves: By kind of noise and classifier, ``(S,)`` shares in [0, 1].
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    order = np.argsort(-as_array(decibels).astype(float))
    ratios = as_array(decibels).astype(float)[order]
    figure, panels = _figure(1, len(curves), (4.2 * len(curves) + 0.3, 3.6), title, len(curves))
    for axes, (kind, lines) in zip(panels, curves.items(), strict=True):
        for number, (name, values) in enumerate(lines.items()):
            axes.plot(ratios, as_array(values).astype(float)[order], label=name, **_style(number))
        axes.invert_xaxis()
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(kind, fontsize=10, color=DARK, parse_math=False)
        axes.set_xlabel("signal-to-noise ratio (dB)", fontsize=9)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    panels[0].set_ylabel("accuracy", fontsize=9)
    _legend(panels[0])
    return figure


def learning_figure(
    curves: Mapping[str, Mapping[str, tuple[Any, Any]]], title: str | None = None, of_batches: bool = True
) -> Figure:
    """Learning curves of several runs, a panel a quantity.

    Args:
        curves: By quantity and run, epochs ``(n,)`` and values ``(n,)``; accuracies, whose name ends in ``acc``, on a
            scale that ends at 1, losses on a logarithmic one.
        title: Line above.
        of_batches: Say of what ``train/`` begins that it is of the last batch logged.

    Returns:
        A figure that pyplot does not know of.
    """
    figure, panels = _figure(1, len(curves), (4.2 * len(curves) + 0.3, 3.6), title, len(curves))
    for axes, (quantity, lines) in zip(panels, curves.items(), strict=True):
        for number, (name, (epochs, values)) in enumerate(lines.items()):
            style = _style(number) | ({"marker": None} if len(epochs) > 30 else {})
            axes.plot(as_array(epochs), as_array(values), label=name, **style)
        # what is logged while training is of one batch
        words = f"{quantity}, last batch logged" if of_batches and quantity.startswith("train/") else quantity
        axes.set_title(words, fontsize=10, color=DARK, parse_math=False)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if quantity.endswith("acc"):
            axes.set_ylim(top=1.01)
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        elif quantity.endswith("loss"):
            axes.set_yscale("log")
    shared = len({tuple(lines) for lines in curves.values()}) == 1
    for axes, (quantity, lines) in zip(panels[:1] if shared else panels, curves.items(), strict=False):
        # a line called like its panel needs no name
        if [name for name in lines if not f"/{quantity}".endswith(f"/{name}")]:
            _legend(axes)
    return figure


def _figure(
    down: int, across: int, size: tuple[float, float], title: str | None, count: int
) -> tuple[Figure, list[Axes]]:
    if not count:
        raise ValueError("plots.parseval: there must be something to show, got nothing")
    figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(down, across, place + 1) for place in range(count)]
    for axes in panels:
        axes.grid(color="#e4e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=DARK, parse_math=False)
    return figure, panels


def _borders(epochs: Sequence[int]) -> Any:
    """Where one epoch's column ends and the next begins."""
    values = np.asarray(epochs, dtype=float)
    between = (values[1:] + values[:-1]) / 2
    first = between[0] - values[0] if len(between) else 0.5
    last = values[-1] - between[-1] if len(between) else 0.5
    return np.concatenate([[values[0] - first], between, [values[-1] + last]])


def _legend(axes: Axes) -> None:
    for words in axes.legend(loc="best", fontsize=8.5, frameon=False).get_texts():
        words.set_parse_math(False)
