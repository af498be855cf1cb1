"""Examples side by side as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class Example(NamedTuple):
    """One example of a grid.

    Args:
        panels: Pictures of (C, H, W) in [0, 1], C 1 (grey) or 3 (RGB); one for each column of the grid.
        caption: Line below the panels.
        correct: Colours the caption green or red; None leaves it black.
    """

    panels: tuple[npt.NDArray[Any], ...]
    caption: str
    correct: bool | None = None


def example_grid(
    rows: Mapping[str, Sequence[Example]], columns: Sequence[str], title: str | None = None, panel: float = 1.5
) -> Figure:
    """Draw a row of examples for each name, each example as one panel per column.

    Small images are enlarged without smoothing, so that single pixels can be seen.

    Args:
        rows: Name at the left of a row to its examples. Rows may have different numbers of examples.
        columns: Headings of an example's panels.
        title: Line above the grid.
        panel: Width of a panel in inches, at 150 dots an inch.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: If there is no example, an example has another number of panels than there are columns, or a
            picture does not have 1 or 3 channels.
    """
    across = max(map(len, rows.values()), default=0)
    if not across or not columns:
        raise ValueError("example_grid: rows must hold at least one example, got none (pass what is to be shown)")
    shapes = [np.shape(picture) for examples in rows.values() for example in examples for picture in example.panels]
    ratio = max(shape[1] / shape[2] for shape in map(_checked, shapes))

    # every length in inches, so that the panels keep their size however many there are
    left, right, bottom, gap, between, caption = 0.55, 0.2, 0.1, 0.06, 0.35, 0.42
    head = 0.4 + (0.45 if title is not None else 0)
    group = len(columns) * (panel + gap) - gap
    pitch = panel * ratio + caption
    width = left + across * (group + between) - between + right
    height = head + len(rows) * pitch + bottom
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)

    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, words, parse_math=False, **style)

    if title is not None:
        text(left, 0.28, title, fontsize=13, fontweight="bold", va="center")
    for i, (name, examples) in enumerate(rows.items()):
        top = head + i * pitch
        # long names shrink, so that they stay beside their own row
        size = min(12.0, 110 * panel * ratio / max(len(name), 1))
        style = {"rotation": 90, "ha": "center", "va": "center", "fontweight": "bold"}
        text(left - 0.25, top + panel * ratio / 2, name, fontsize=size, **style)
        for j, example in enumerate(examples):
            if len(example.panels) != len(columns):
                raise ValueError(
                    f"example_grid: panels must be as many as columns, got {len(example.panels)} and {len(columns)} "
                    f"(one picture each for {', '.join(columns)})"
                )
            start = left + j * (group + between)
            for k, (column, picture) in enumerate(zip(columns, example.panels, strict=True)):
                x = start + k * (panel + gap)
                box = (x / width, 1 - (top + panel * ratio) / height, panel / width, panel * ratio / height)
                _show(figure, box, picture, panel * figure.dpi)
                if i == 0:
                    text(x + panel / 2, head - 0.12, column, fontsize=10.5, ha="center", va="center", color="#52606d")
            colour = {None: "#1f2933", True: "#1a7f37", False: "#b42318"}[example.correct]
            text(start, top + panel * ratio + 0.15, example.caption, fontsize=10.5, va="center", color=colour)
    return figure


def _checked(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"example_grid: panels must have shape (1, H, W) or (3, H, W), got {shape} (choose the channels to show)"
        )
    return shape


def _show(figure: Figure, box: tuple[float, float, float, float], picture: npt.NDArray[Any], dots: float) -> None:
    axes = figure.add_axes(box)
    axes.set_axis_off()
    axes.imshow(
        picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest" if picture.shape[-1] <= dots else "antialiased",
    )
