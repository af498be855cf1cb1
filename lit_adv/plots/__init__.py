"""Figures from values; what is shown was computed elsewhere."""

from lit_adv.plots.confusion import confusion_figure
from lit_adv.plots.grid import Example, example_grid
from lit_adv.plots.panels import Panel, Scale, panel_grid
from lit_adv.plots.perceptual_curves import budget_figure, quality_figure, threshold_figure
from lit_adv.plots.perceptual_pictures import (
    Localization,
    budget_grid_figure,
    iterations_figure,
    localization_figure,
    methods_figure,
)

__all__ = [
    "Example",
    "Localization",
    "Panel",
    "Scale",
    "budget_figure",
    "budget_grid_figure",
    "confusion_figure",
    "example_grid",
    "iterations_figure",
    "localization_figure",
    "methods_figure",
    "panel_grid",
    "quality_figure",
    "threshold_figure",
]
