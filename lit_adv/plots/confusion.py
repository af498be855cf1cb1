"""A confusion matrix as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


def confusion_figure(
    confusion: npt.ArrayLike,
    classes: Sequence[str],
    title: str | None = None,
    families: Sequence[str] | None = None,
) -> Figure:
    """Draw a confusion matrix: colours by share of the row, shares and counts in the cells.

    With more than ten classes the cells are small, and hold whole per cent alone.

    Args:
        confusion: (A, A) counts, row: true class, column: recognised class. A row without images stays empty.
        classes: Names of the A classes.
        title: Line above the matrix.
        families: Family of each class; lines part neighbours of different families.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: If `confusion` is not square, or it or `families` does not fit `classes`.
    """
    counts = np.asarray(confusion)
    size = len(classes)
    if counts.shape != (size, size):
        raise ValueError(
            f"confusion_figure: confusion must have shape ({size}, {size}), got {counts.shape} (one row per class)"
        )
    if families is not None and len(families) != size:
        raise ValueError(f"confusion_figure: families must be {size}, one for each class, got {len(families)}")
    images = counts.sum(1)
    small = size > 10
    shares = np.divide(counts, images[:, None], out=np.zeros(counts.shape), where=images[:, None] > 0)

    width, height = (0.5, 0.42) if small else (0.95, 0.8)
    figure = Figure(figsize=(2.6 + width * size, 1.9 + height * size), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(size, size):
        if not images[row]:
            continue
        share, colour = shares[row, column], "white" if shares[row, column] > 0.55 else "#1f2933"
        # nothing to read in an empty cell; a grey zero leaves the eye free for the mistakes
        if not counts[row, column] and not small:
            axes.text(column, row, "0", ha="center", va="center", fontsize=8, color="#9aa5b1")
        if not counts[row, column]:
            continue
        weight = "bold" if row == column else "normal"
        words = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": colour}
        if small:
            words = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            axes.text(column, row, words, fontsize=9, fontweight=weight, **style)
            continue
        axes.text(column, row - 0.1, words, fontsize=10, fontweight=weight, **style)
        axes.text(column, row + 0.2, f"{counts[row, column]:,d}", fontsize=7.5, **style)
    axes.set_xticks(range(size), classes, parse_math=False)
    axes.set_yticks(
        range(size),
        [f"{name} ({n:,d})" if small else f"{name}\n{n:,d} images" for name, n in zip(classes, images, strict=True)],
        parse_math=False,
    )
    if small or max(map(len, classes)) > 10:
        axes.tick_params(axis="x", labelrotation=60 if small else 30)
    if families is not None:
        for place in (n for n in range(1, size) if families[n] != families[n - 1]):
            # white would not part them on a white ground
            axes.axhline(place - 0.5, color="#52606d", linewidth=1, zorder=3)
            axes.axvline(place - 0.5, color="#52606d", linewidth=1, zorder=3)
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("recognised as", fontsize=11)
    axes.set_ylabel("made by (images)" if small else "made by", fontsize=11)
    if title is not None:
        axes.set_title(title, fontsize=12, pad=12, parse_math=False)
    bar = figure.colorbar(picture, ax=axes, format=PercentFormatter(xmax=1, decimals=0), fraction=0.04, pad=0.02)
    bar.set_label("share of the row in per cent" if small else "share of the row", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure
