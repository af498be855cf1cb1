"""What the classifier looks at, what the attack changes, and what is blocked: the figures of neutralisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lit_adv.plots.panels import DARK, GREY, Panel, Scale, as_array, panel_grid

# both, importance only, attack only, neither
REGION_COLOURS = {
    "both (UV)": "#7b3294",
    "RoI only (UV⁻)": "#0072b2",
    "RoA only (U⁻V)": "#e69f00",
    "neither (U⁻V⁻)": "#e5e9ee",
}
_BLOCKED = "#d7263d"
_SCALES = {
    "importance": Scale("class activation", "viridis"),
    "attack": Scale("perturbation / its maximum", "magma"),
    "share": Scale("share of the images", "cividis"),
}


class RegionExample(NamedTuple):
    """An image, its maps and regions, and what the defence makes of it.

    Args:
        name: Words beside its row, in lines.
        image: ``(C, H, W)`` in [0, 1], one or three channels, as the other pictures.
        adversarial: Under attack.
        importance: ``(H, W)`` in [0, 1].
        attack: ``(H, W)``.
        roi: ``(H, W)`` bool.
        roa: ``(H, W)`` bool.
        blob: ``(H, W)`` bool.
        modified: The image with the blob blocked.
        modified_adversarial: The modified image under attack.
        captions: Four: below the image, the adversarial one, the modified one and the last.
    """

    name: str
    image: Any
    adversarial: Any
    importance: Any
    attack: Any
    roi: Any
    roa: Any
    blob: Any
    modified: Any
    modified_adversarial: Any
    captions: Sequence[str]


class Representatives(NamedTuple):
    """What a class' images have in common.

    Args:
        importance: R_I, ``(H, W)`` in [0, 1].
        attack: R_A, the same.
        blob: ``(H, W)`` bool.
        image: A picture of the class, ``(C, H, W)`` in [0, 1], under the blob.
        caption: Below the blob.
    """

    importance: Any
    attack: Any
    blob: Any
    image: Any
    caption: str = ""


def regions_figure(examples: Sequence[RegionExample], title: str | None = None) -> Figure:
    """Images with their activation, perturbation, RoI, RoA, the four regions in colours, and the blocked versions.

    Args:
        examples: One or more.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    columns = ["image", "activation", "RoI", "attacked", "perturbation", "RoA", "regions", "blocked", "then attacked"]
    rows: list[tuple[str, list[Panel | None]]] = []
    for each in examples:
        image, attacked, blocked, last = each.captions
        largest = float(as_array(each.attack).max()) or 1.0
        rows.append(
            (
                each.name,
                [
                    Panel(as_array(each.image), image),
                    Panel(as_array(each.importance), scale="importance"),
                    Panel(_tinted(each.image, each.roi, "#0072b2")),
                    Panel(as_array(each.adversarial), attacked),
                    Panel(as_array(each.attack) / largest, scale="attack"),
                    Panel(_tinted(each.image, each.roa, "#e69f00")),
                    Panel(_coloured(each.roi, each.roa)),
                    Panel(_tinted(each.modified, each.blob, _BLOCKED), blocked),
                    Panel(as_array(each.modified_adversarial), last),
                ],
            )
        )
    return _with_legend(panel_grid(rows, columns, title, {name: _SCALES[name] for name in ("importance", "attack")}))


def representatives_figure(rows: Mapping[str, Representatives], title: str | None = None) -> Figure:
    """Class representatives of RoI and RoA, the regions where they are at least one half, and the blob.

    Args:
        rows: By name.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    columns = ["RoI", "RoA", "regions at ½", "blob"]
    panels: list[tuple[str, list[Panel | None]]] = []
    for name, each in rows.items():
        roi, roa = as_array(each.importance), as_array(each.attack)
        panels.append(
            (
                name,
                [
                    Panel(roi, scale="share"),
                    Panel(roa, scale="share"),
                    Panel(_coloured(roi >= 0.5, roa >= 0.5)),
                    Panel(_tinted(each.image, each.blob, _BLOCKED), each.caption),
                ],
            )
        )
    return _with_legend(panel_grid(panels, columns, title, {"share": _SCALES["share"]}, panel=1.6))


def neutralization_figure(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]], scores: Mapping[str, str], title: str | None = None
) -> Figure:
    """Accuracies with their intervals, a panel a row.

    Args:
        rows: By name, in one line or several, and score ``accuracy``, ``low`` and ``high`` in [0, 1]; None leaves a
            score out.
        scores: Name to words of the scores shown, from top to bottom.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    across = min(3, len(rows))
    down = -(-len(rows) // across)
    lines = max(len(name.split("\n")) for name in rows)
    size = (1.6 + 2.7 * across, 0.9 + down * (0.4 + 0.15 * lines + 0.23 * len(scores)))
    figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(rows) :]:
        axes.set_visible(False)
    places = {name: len(scores) - 1 - place for place, name in enumerate(scores)}
    for axes, (name, found) in zip(panels.flat, rows.items(), strict=False):
        for score, place in places.items():
            value, low, high = (found[score][key] for key in ("accuracy", "low", "high"))
            if value is None:
                continue
            colour = "#d7263d" if score in ("adaptive", "strong") else "#0072b2"
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2.2, alpha=0.45)
            axes.plot([100 * value], [place], "o", color=colour, markersize=4)
        axes.set_title(name, fontsize=9, color=DARK, loc="left", fontweight="bold", parse_math=False)
        axes.set_yticks(list(places.values()), [scores[score] for score in places], fontsize=8)
        axes.set_xlim(-3, 103)
        axes.tick_params(labelsize=8, colors=GREY)
        axes.grid(axis="x", color="#e5e9ee")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel("accuracy in per cent, with its interval", fontsize=9, color=DARK)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold", color=DARK, parse_math=False)
    return figure


def _coloured(roi: Any, roa: Any) -> npt.NDArray[Any]:
    """``(3, H, W)``: each region in its colour."""
    roi, roa = as_array(roi).astype(bool), as_array(roa).astype(bool)
    table = np.array([to_rgb(colour) for colour in REGION_COLOURS.values()])
    number = np.where(roi & roa, 0, np.where(roi, 1, np.where(roa, 2, 3)))
    return np.moveaxis(table[number], -1, 0)


def _tinted(image: Any, mask: Any, colour: str) -> npt.NDArray[Any]:
    """The picture with a mask laid over it in a colour."""
    picture = np.broadcast_to(as_array(image), (3, *as_array(image).shape[1:]))
    tint = np.array(to_rgb(colour))[:, None, None]
    return np.where(as_array(mask).astype(bool), 0.35 * picture + 0.65 * tint, picture)


def _with_legend(figure: Figure) -> Figure:
    """Names the regions' colours at the right of the foot."""
    handles = [Patch(color=colour, label=name) for name, colour in REGION_COLOURS.items()]
    style: dict[str, Any] = {"fontsize": 7.5, "frameon": False, "ncols": 2, "labelcolor": DARK}
    figure.legend(handles=handles, loc="lower right", borderaxespad=0.4, handlelength=1.1, columnspacing=1.2, **style)
    return figure
