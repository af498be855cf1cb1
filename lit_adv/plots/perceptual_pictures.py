"""Perturbations to look at: SSIM maps, methods side by side, budgets over iterations, the plane of two budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lit_adv.plots.panels import Panel, Scale, as_array, panel_grid


class Localization(NamedTuple):
    """What `localization_figure` shows of one attack.

    Args:
        adversarial: ``(C, H, W)`` in [0, 1], C 1 or 3.
        ssim: ``(C, H, W)`` at most 1, the SSIM map.
        cam: ``(H, W)`` in [0, 1], the class activation map.
        caption: Line below the adversarial image.
    """

    adversarial: Any
    ssim: Any
    cam: Any
    caption: str = ""


def localization_figure(rows: Mapping[str, Localization], title: str | None = None) -> Figure:
    """Adversarial image, SSIM map of each channel, and class activation map; one row an attack.

    Args:
        rows: By the attack's name.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    scales = {"ssim": Scale("SSIM (low: perturbed)", "viridis"), "cam": Scale("class activation", "inferno")}
    drawn = []
    channels = 0
    for name, row in rows.items():
        maps = as_array(row.ssim)
        channels = len(maps)
        panels = [Panel(as_array(row.adversarial), row.caption), *(Panel(each, "", "ssim") for each in maps)]
        drawn.append((name, [*panels, Panel(as_array(row.cam), "", "cam")]))
    names = ["SSIM"] if channels == 1 else [f"SSIM, {colour}" for colour in ("red", "green", "blue")[:channels]]
    return panel_grid(drawn, ["adversarial", *names, "class activation"], title, scales)


def methods_figure(clean: Any, images: Mapping[str, Any], title: str | None = None) -> Figure:
    """The same images under several attacks, say at equal fooling rate; one row an attack below the clean images.

    Args:
        clean: ``(N, C, H, W)`` in [0, 1].
        images: ``(N, C, H, W)`` by what is to be written at the left: the attack, its budget, its SSIM.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.
    """
    rows = [("clean", [Panel(image) for image in as_array(clean)])]
    rows += [(name, [Panel(image) for image in as_array(batch)]) for name, batch in images.items()]
    return panel_grid(rows, title=title)


def iterations_figure(
    clean: Any,
    images: Mapping[str, Any],
    budgets: Mapping[str, Sequence[float]],
    iterations: Sequence[int] = (10, 30, 50, 70),
    title: str | None = None,
) -> Figure:
    """The smallest budgets that fool after so many iterations: images, and differences to the clean image below them.

    A difference is shown as ``0.5 + factor * difference``, so that grey means unchanged, with the factor that uses the
    whole range; the captions tell it. An attack without a budget (nan) in some column has an empty place there.

    Args:
        clean: ``(C, H, W)`` in [0, 1].
        images: By attack, ``(n, C, H, W)``: the adversarial image for each number of iterations.
        budgets: By attack, n numbers.
        iterations: n numbers.
        title: Line above.

    Returns:
        A figure that pyplot does not know of.

    Raises:
        ValueError: If lengths differ.
    """
    original = as_array(clean)
    rows: list[tuple[str, list[Panel | None]]] = []
    for number, (name, batch) in enumerate(images.items()):
        found, sizes = as_array(batch), [float(size) for size in budgets[name]]
        if not len(found) == len(sizes) == len(iterations):
            raise ValueError(
                f"iterations_figure: {name} must have one image and one budget for each of {list(iterations)}, got "
                f"{len(found)} and {len(sizes)}"
            )
        first: Panel | None = Panel(original, "clean") if number == 0 else None
        above: list[Panel | None] = [first]
        below: list[Panel | None] = [None]
        for image, size in zip(found, sizes, strict=True):
            if math.isnan(size):
                above.append(None)
                below.append(None)
                continue
            difference = image - original
            factor = 0.5 / max(float(np.abs(difference).max()), 1e-6)
            above.append(Panel(image, f"budget {size:.3g}"))
            below.append(Panel((0.5 + factor * difference).clip(0, 1), f"difference × {factor:.3g}"))
        rows += [(name, above), ("", below)]
    return panel_grid(rows, ["", *(f"{number} iterations" for number in iterations)], title)


def budget_grid_figure(
    images: Any, eps1: Sequence[float], eps2: Sequence[float], title: str | None = None, captions: Any = None
) -> Figure:
    """One adversarial image for each pair of budgets: eps1 down, eps2 across.

    Args:
        images: ``(len(eps1), len(eps2), C, H, W)`` in [0, 1].
        eps1: Budgets of the rows.
        eps2: Budgets of the columns.
        title: Line above.
        captions: For each image, a line below it, in lists of the same order; None for none.

    Returns:
        A figure that pyplot does not know of.

    Raises:
        ValueError: If the number of images is another one.
    """
    pictures = as_array(images)
    if pictures.shape[:2] != (len(eps1), len(eps2)):
        raise ValueError(
            f"budget_grid_figure: images must have shape ({len(eps1)}, {len(eps2)}, C, H, W), got {pictures.shape}"
        )
    rows = [
        (f"{size:g}", [Panel(image, "" if captions is None else captions[i][j]) for j, image in enumerate(line)])
        for i, (size, line) in enumerate(zip(eps1, pictures, strict=True))
    ]
    return panel_grid(rows, [f"{size:g}" for size in eps2], title, row_label="eps1", column_label="eps2")
