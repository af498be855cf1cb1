"""Many small pictures or maps of one kind, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from lit_adv.plots.panels import DARK, GREY, Scale, as_array, colour_bar


class Tiles(NamedTuple):
    """A block of tiles.

    Args:
        values: ``(N, 1 or 3, h, w)`` in [0, 1], pictures, or ``(N, h, w)``, maps.
        name: Line above the block.
        picture: ``(1 or 3, H, W)`` in [0, 1], shown at its left; None for none.
    """

    values: Any
    name: str = ""
    picture: Any | None = None


def tile_figure(
    blocks: Sequence[Tiles], title: str | None = None, scale: Scale | None = None, columns: int | None = None
) -> Figure:
    """Draw blocks of tiles below each other, row by row; the number at the left of a row is that of its first tile.

    Args:
        blocks: Of tiles of one size.
        title: Line above all.
        scale: Of maps: their colours; None takes viridis from the smallest to the largest value.
        columns: Tiles in a row; None makes a block about twice as wide as high.

    Returns:
        A figure with its own Agg canvas, which pyplot does not know of.

    Raises:
        ValueError: There is no tile, or values are of another shape.
    """
    arrays = [as_array(block.values) for block in blocks]
    for values in arrays:
        if not len(values) or values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[1] not in (1, 3)):
            raise ValueError(
                f"tile_figure: values must have shape (N, 1, h, w), (N, 3, h, w) or, for maps, (N, h, w) with N at "
                f"least 1, got {values.shape}"
            )
    if not arrays:
        raise ValueError("tile_figure: blocks must hold at least one block, got none (pass what is to be shown)")
    maps = arrays[0].ndim == 3
    if scale is None and maps:
        scale = Scale("activation", "viridis", min(map(_low, arrays)), max(map(_high, arrays)))
    count, (high, wide) = max(map(len, arrays)), arrays[0].shape[-2:]
    columns = min(columns or _columns(count, high / wide), count)

    # every length in inches
    block_width = min(8.0, max(3.0, 0.62 * columns))
    tile = block_width / columns
    pictures = any(block.picture is not None for block in blocks)
    side = 1.5 if pictures else 0.0
    left = 0.15 + (side + 0.2 if pictures else 0) + 0.35
    heights = [max(math.ceil(len(values) / columns) * tile * high / wide, side) for values in arrays]
    above = 0.3 if any(block.name for block in blocks) else 0.12
    head, foot = 0.55 if title else 0.1, 0.75 if maps else 0.15
    width = max(left + block_width + 0.2, 0.3 + 0.105 * len(title or ""))
    height = head + sum(heights) + above * len(blocks) + foot
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)

    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, words, parse_math=False, va="center", **style)

    if title:
        text(0.15, 0.27, title, fontsize=12, fontweight="bold", color=DARK)
    top = head
    for block, values, tall in zip(blocks, arrays, heights, strict=True):
        top += above
        text(left if block.picture is None else 0.15, top - 0.12, block.name, fontsize=9.5, color=DARK)
        if block.picture is not None:
            picture = as_array(block.picture)
            ratio = picture.shape[1] / picture.shape[2]
            shown = (side, side * ratio) if ratio <= 1 else (side / ratio, side)
            axes = figure.add_axes((0.15 / width, 1 - (top + shown[1]) / height, shown[0] / width, shown[1] / height))
            axes.set_axis_off()
            axes.imshow(_colours(picture[None], None)[0], interpolation="nearest")
        rows = math.ceil(len(values) / columns)
        used = (columns * tile, rows * tile * high / wide)
        axes = figure.add_axes((left / width, 1 - (top + used[1]) / height, used[0] / width, used[1] / height))
        axes.set_axis_off()
        axes.imshow(_mosaic(_colours(values, scale), columns), aspect="auto", interpolation="antialiased")
        pitch = tile * high / wide
        every = max(1, math.ceil(0.14 / pitch))
        for row in range(0, rows, every):
            y = top + (row + 0.5) * pitch
            text(left - 0.08, y, str(row * columns), fontsize=7, ha="right", color=GREY)
        top += tall
    if maps and scale is not None:
        colour_bar(figure, (left / width, 0.45 / height, 2.4 / width, 0.13 / height), scale)
    return figure


def _columns(count: int, ratio: float) -> int:
    """So many that the last row is as full as can be and the block between one and a half and four times as wide."""
    least, most = (max(1, math.ceil(math.sqrt(share * count * ratio))) for share in (1.5, 4.0))
    return min(range(least, most + 1), key=lambda columns: (-count % columns, columns))


def _low(values: npt.NDArray[Any]) -> float:
    return float(values.min())


def _high(values: npt.NDArray[Any]) -> float:
    return float(values.max())


def _colours(values: npt.NDArray[Any], scale: Scale | None) -> npt.NDArray[Any]:
    """``(N, h, w, 3)`` of pictures or maps."""
    if values.ndim == 4:
        return np.moveaxis(np.broadcast_to(values, (len(values), 3, *values.shape[2:])), 1, -1).clip(0, 1)
    assert scale is not None
    return colormaps[scale.colours](Normalize(scale.low, scale.high)(values))[..., :3]


def _mosaic(tiles: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """Tiles in rows with white lines between them."""
    # so that a line is a small part of a tile of a few pixels too
    times = max(1, math.ceil(32 / min(tiles.shape[1:3])))
    tiles = tiles.repeat(times, 1).repeat(times, 2)
    count, high, wide, _ = tiles.shape
    gap = max(2, round(0.06 * min(high, wide)))
    rows = math.ceil(count / columns)
    whole = np.ones((rows * (high + gap), columns * (wide + gap), 3))
    line = max(1, gap // 4)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        y, x = row * (high + gap) + gap // 2, column * (wide + gap) + gap // 2
        # a frame, since a tile may be as white as the paper
        whole[y - line : y + high + line, x - line : x + wide + line] = to_rgb("#9aa5b1")
        whole[y : y + high, x : x + wide] = tile
    return whole
