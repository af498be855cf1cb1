"""Pictures and maps in rows and columns, with words around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

DARK, GREY = "#1f2933", "#52606d"


class Panel(NamedTuple):
    """One picture or map.

    Args:
        values: A picture ``(1 or 3, H, W)`` in [0, 1], or a map ``(H, W)``.
        caption: Line below it.
        scale: Of a map: its colours, one of the names in `panel_grid`'s ``scales``.
    """

    values: npt.NDArray[Any]
    caption: str = ""
    scale: str | None = None


class Scale(NamedTuple):
    """Colours of maps.

    Args:
        label: Written beside the colour bar.
        colours: Name of a colour map of matplotlib.
        low: Value of its first colour.
        high: Value of its last colour.
    """

    label: str
    colours: str
    low: float = 0.0
    high: float = 1.0


def panel_grid(
    rows: Sequence[tuple[str, Sequence[Panel | None]]],
    columns: Sequence[str] = (),
    title: str | None = None,
    scales: dict[str, Scale] | None = None,
    row_label: str = "",
    column_label: str = "",
    panel: float = 1.4,
) -> Figure:
    """Draw rows of panels, a name at the left of each row and a heading above each column.

    Small pictures are enlarged without smoothing, so that single pixels can be seen.

    Args:
        rows: Name and panels of each row; None leaves a place empty.
        columns: Headings; none, or as many as panels in a row.
        title: Line above all.
        scales: By name, the colours that maps refer to; each gets a colour bar below the panels.
        row_label: What the rows' names are values of, at the far left.
        column_label: What the columns' headings are values of, above them.
        panel: Width of a panel in inches, at 150 dots an inch.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: If there is no panel, rows differ in length, or values are of another shape.
    """
    scales = scales or {}
    across = max((len(panels) for _, panels in rows), default=0)
    shown = [each for _, panels in rows for each in panels if each is not None]
    if not shown:
        raise ValueError("panel_grid: rows must hold at least one panel, got none (pass what is to be shown)")
    if any(len(panels) != across for _, panels in rows) or len(columns) not in (0, across):
        got = [len(panels) for _, panels in rows]
        raise ValueError(
            f"panel_grid: rows and columns must have the same number of panels, got {got} and {len(columns)}"
        )
    ratio = max(_height(each) / each.values.shape[-1] for each in shown)

    # every length in inches, so that the panels keep their size however many there are
    longest = max(len(line) for name, _ in rows for line in name.split("\n"))
    left = 0.15 + (0.3 if row_label else 0) + 0.085 * longest
    head = 0.12 + (0.4 if title else 0) + (0.28 if column_label else 0) + (0.3 if columns else 0)
    gap, caption = 0.07, 0.25 if any(each.caption for each in shown) else 0.0
    used = [name for name in scales if any(each.scale == name for each in shown)]
    foot = 0.7 if used else 0.1
    pitch_x, pitch_y = panel + gap, panel * ratio + gap + caption
    # room for the title, which a narrow grid would cut off
    width = max(
        left + across * pitch_x + 0.15, 0.3 + 0.105 * max(map(len, (title or "").split("\n"))), left + 2.6 * len(used)
    )
    height = head + len(rows) * pitch_y + foot
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)

    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, words, parse_math=False, **style)

    if title:
        text(0.15, 0.27, title, fontsize=12, fontweight="bold", va="center", color=DARK)
    middle = left + across * pitch_x / 2
    if column_label:
        y = head - (0.43 if columns else 0.14)
        text(middle, y, column_label, fontsize=10.5, ha="center", va="center", color=DARK)
    if row_label:
        y = head + len(rows) * pitch_y / 2
        text(0.2, y, row_label, fontsize=10.5, ha="center", va="center", rotation=90, color=DARK)
    for j, words in enumerate(columns):
        style = {"ha": "center", "va": "center", "color": GREY}
        text(left + j * pitch_x + panel / 2, head - 0.14, words, fontsize=9.5, **style)
    for i, (name, panels) in enumerate(rows):
        top = head + i * pitch_y
        style = {"fontweight": "bold", "ha": "right", "va": "center", "color": DARK}
        text(left - 0.08, top + panel * ratio / 2, name, fontsize=9.5, **style)
        for j, each in enumerate(panels):
            if each is None:
                continue
            x = left + j * pitch_x
            axes = figure.add_axes(
                (x / width, 1 - (top + panel * ratio) / height, panel / width, panel * ratio / height)
            )
            _show(axes, each, scales, panel * figure.dpi)
            text(x + panel / 2, top + panel * ratio + 0.13, each.caption, fontsize=8.5, ha="center", va="center")
    for number, name in enumerate(used):
        scale = scales[name]
        x = left + number * 2.6
        colour_bar(figure, (x / width, 0.42 / height, 2.2 / width, 0.13 / height), scale)
    return figure


def colour_bar(figure: Figure, box: tuple[float, float, float, float], scale: Scale) -> None:
    """A horizontal colour bar with its label; the box is left, bottom, width and height as shares of the figure."""
    colours = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
    bar = figure.colorbar(colours, cax=figure.add_axes(box), orientation="horizontal")
    bar.set_label(scale.label, fontsize=8.5, labelpad=2)
    bar.ax.tick_params(labelsize=8, length=2)


def as_array(values: Any) -> npt.NDArray[Any]:
    """Numbers of a tensor on any device, or of anything that NumPy takes."""
    detach = getattr(values, "detach", None)
    return np.asarray(values if detach is None else detach().cpu().float().numpy())


def _height(each: Panel) -> int:
    shape = np.shape(each.values)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise ValueError(f"panel_grid: values must have shape (1, H, W), (3, H, W) or, for a map, (H, W), got {shape}")
    return int(shape[-2])


def _show(axes: Axes, each: Panel, scales: dict[str, Scale], dots: float) -> None:
    values = each.values
    scale = scales[each.scale] if each.scale is not None else Scale("", "gray")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_linewidth(0.4)
    axes.spines[:].set_color("#9aa5b1")
    axes.imshow(
        values if values.ndim == 2 else values[0] if len(values) == 1 else np.moveaxis(values, 0, -1).clip(0, 1),
        cmap=scale.colours,
        vmin=scale.low,
        vmax=scale.high,
        interpolation="nearest" if values.shape[-1] <= dots else "antialiased",
    )
