"""What transfers, as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter


def transfer_figure(
    shares: Sequence[Sequence[float | None]] | npt.NDArray[Any],
    sources: Sequence[str],
    victims: Sequence[str],
    title: str | None = None,
    groups: bool = False,
) -> Figure:
    """Draw a matrix of transferability: colours and whole per cent in the cells.

    A frame marks equal names: the white box, or, of techniques, other classifiers of the same one. A dash stands where
    there was nothing to attack.

    Args:
        shares: ``(S, T)`` in [0, 1], row: source, column: victim; None or NaN where nothing is known.
        sources: Names of the rows.
        victims: Names of the columns.
        title: Line above the matrix.
        groups: Lines part neighbours whose names differ before the first ``/``.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: If `shares` does not fit the names.
    """
    values = np.array(shares, dtype=float)
    if values.shape != (len(sources), len(victims)):
        raise ValueError(
            f"transfer_figure: shares must have shape ({len(sources)}, {len(victims)}), one row a source and one column"
            f" a victim, got {values.shape}"
        )
    small = max(values.shape) > 8
    width, height = (0.42, 0.36) if small else (0.85, 0.7)
    label = 0.09 * max(map(len, sources))
    size = (2.2 + label + width * len(victims), 1.7 + label / 2 + height * len(sources))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(np.ma.masked_invalid(values), cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        words = "–" if np.isnan(value) else f"{100 * value:.0f}"
        colour = "white" if value > 0.6 else "#1f2933"
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "fontsize": 7.5 if small else 11}
        axes.text(column, row, words, **style)
        if sources[row] == victims[column]:
            box: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.2, "zorder": 4}
            axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, **box))
    axes.set_xticks(range(len(victims)), victims, parse_math=False)
    axes.set_yticks(range(len(sources)), sources, parse_math=False)
    if small or max(map(len, victims)) > 8:
        axes.tick_params(axis="x", labelrotation=60)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, labelsize=8 if small else 10)
    if groups:
        for names, draw in ((sources, axes.axhline), (victims, axes.axvline)):
            for place in range(1, len(names)):
                if _group(names[place]) != _group(names[place - 1]):
                    draw(place - 0.5, color="#52606d", linewidth=1.2, zorder=3)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("tested on", fontsize=11)
    axes.set_ylabel("crafted on", fontsize=11)
    if title is not None:
        axes.set_title(title, fontsize=12, pad=10, parse_math=False)
    bar = figure.colorbar(picture, ax=axes, format=PercentFormatter(xmax=1, decimals=0), fraction=0.04, pad=0.02)
    bar.set_label("share that fools the victim, numbers in per cent", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def _group(name: str) -> str:
    return name.partition("/")[0]
