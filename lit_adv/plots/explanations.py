"""Maps beside their images, and pictures that a network responds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from lit_adv.plots.panels import Panel, Scale, as_array, panel_grid


class Explained(NamedTuple):
    """An image and maps of it.

    Args:
        image: ``(1 or 3, H, W)`` in [0, 1].
        maps: By name ``(H, W)``, of at least 0 or signed, or ``(1 or 3, H, W)``, signed.
        name: Beside its row.
        captions: By name, lines below the image (``image``) and its maps.
    """

    image: Any
    maps: Mapping[str, Any]
    name: str = ""
    captions: Mapping[str, str] = {}


def gradient_maps_figure(examples: Sequence[Explained], title: str | None = None) -> Figure:
    """Draw images and their gradient maps, each map scaled by itself, as a gradient has no unit that a reader knows.

    Maps ``(H, W)`` go from 0, black, to their 99.5th percentile, white; those with channels are shown in their colours
    around grey, which is 0.

    Raises:
        ValueError: There is no image.
    """
    columns = _columns("gradient_maps_figure", examples)
    scales = {"size": Scale("share of each map's 99.5th percentile", "gray")}
    rows = []
    for example in examples:
        panels = [Panel(as_array(example.image), example.captions.get("image", ""))]
        for name in columns:
            values = as_array(example.maps[name])
            caption = example.captions.get(name, "")
            if values.ndim == 2:
                panels.append(Panel(_over(values, 99.5).clip(0, 1), caption, "size"))
            else:
                panels.append(Panel((0.5 + 0.5 * _over(values, 99.5)).clip(0, 1), caption))
        rows.append((example.name, panels))
    return panel_grid(rows, ["image", *columns], title, scales if _any_flat(examples) else {})


def occlusion_figure(examples: Sequence[Explained], label: str, title: str | None = None) -> Figure:
    """Draw images and their occlusion maps in orange, where covering lowers the score, and purple, where it lifts it.

    All maps have one scale, whose middle, white, is 0. Pixels that no square covers are grey.

    Args:
        examples: Images and maps ``(H, W)``, NaN where there is no value.
        label: Of the colour bar.
        title: Line above.

    Raises:
        ValueError: There is no image.
    """
    columns = _columns("occlusion_figure", examples)
    largest = max(float(np.nanmax(np.abs(as_array(each.maps[name])))) for each in examples for name in columns) or 1.0
    scales = {"drop": Scale(label, "PuOr_r", -largest, largest)}
    rows = []
    for example in examples:
        panels = [Panel(as_array(example.image), example.captions.get("image", ""))]
        panels += [Panel(as_array(example.maps[name]), example.captions.get(name, ""), "drop") for name in columns]
        rows.append((example.name, panels))
    return panel_grid(rows, ["image", *columns], title, scales)


def patches_figure(patches: Any, values: Any, names: Sequence[str], title: str | None = None) -> Figure:
    """Draw the patches that excite each channel most, a row a channel, with the activation below each.

    Args:
        patches: ``(C, n, 1 or 3, h, w)`` in [0, 1].
        values: ``(C, n)``; -inf leaves a place empty.
        names: Of the rows.
        title: Line above.
    """
    pictures, numbers = as_array(patches), as_array(values)
    rows = [
        (
            name,
            [
                Panel(picture, f"{value:.3g}") if np.isfinite(value) else None
                for picture, value in zip(pictures[row], numbers[row], strict=True)
            ],
        )
        for row, name in enumerate(names)
    ]
    ranks = [str(rank) for rank in range(1, pictures.shape[1] + 1)]
    return panel_grid(rows, ranks, title, row_label="channel", column_label="rank, activation below", panel=0.95)


def neighbors_figure(
    rows: Sequence[tuple[str, Sequence[tuple[Any, str]]]], columns: Sequence[str], title: str | None = None
) -> Figure:
    """Draw queries and their nearest neighbours, each picture with a line below.

    Args:
        rows: Name of each row, and its pictures ``(1 or 3, H, W)`` with their lines.
        columns: Headings.
        title: Line above.
    """
    return panel_grid(
        [(name, [Panel(as_array(picture), words) for picture, words in shown]) for name, shown in rows],
        columns,
        title,
        panel=1.2,
    )


def maximization_figure(
    pictures: Mapping[str, Any], names: Sequence[str], captions: Mapping[str, Sequence[str]], title: str | None = None
) -> Figure:
    """Draw images that classes or channels respond to, a row a way of making them and a column a class.

    Args:
        pictures: By way, ``(n, 1 or 3, H, W)`` in [0, 1].
        names: Of the columns.
        captions: By way, lines below.
        title: Line above.
    """
    rows = [
        (
            way.replace("_", "\n"),
            [Panel(picture, words) for picture, words in zip(as_array(made), captions[way], strict=True)],
        )
        for way, made in pictures.items()
    ]
    return panel_grid(rows, names, title, panel=1.2)


def _columns(owner: str, examples: Sequence[Explained]) -> list[str]:
    if not examples:
        raise ValueError(f"{owner}: examples must hold at least one image, got none (pass what is to be shown)")
    return list(examples[0].maps)


def _any_flat(examples: Sequence[Explained]) -> bool:
    return any(as_array(values).ndim == 2 for values in examples[0].maps.values())


def _over(values: npt.NDArray[Any], percentile: float) -> npt.NDArray[Any]:
    top = float(np.percentile(np.abs(values), percentile))
    # where nearly all is 0 the percentile may be too
    top = top or float(np.abs(values).max()) or 1.0
    return values / top
