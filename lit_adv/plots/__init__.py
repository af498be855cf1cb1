"""Figures from values; what is shown was computed elsewhere."""

from lit_adv.plots.confusion import confusion_figure
from lit_adv.plots.grid import Example, example_grid
from lit_adv.plots.panels import Panel, Scale, panel_grid
from lit_adv.plots.parseval import learning_figure, noise_figure, singular_value_figure
from lit_adv.plots.perceptual_curves import budget_figure, quality_figure, threshold_figure
from lit_adv.plots.perceptual_pictures import (
    Localization,
    budget_grid_figure,
    iterations_figure,
    localization_figure,
    methods_figure,
)
from lit_adv.plots.regions import (
    RegionExample,
    Representatives,
    neutralization_figure,
    regions_figure,
    representatives_figure,
)
from lit_adv.plots.robustness_report import robustness_report_figure
from lit_adv.plots.saliency import HeatMap, Profile, heat_map_figure, profile_figure
from lit_adv.plots.transfer import transfer_figure

__all__ = [
    "Example",
    "HeatMap",
    "Localization",
    "Panel",
    "Profile",
    "RegionExample",
    "Representatives",
    "Scale",
    "budget_figure",
    "budget_grid_figure",
    "confusion_figure",
    "example_grid",
    "heat_map_figure",
    "iterations_figure",
    "learning_figure",
    "localization_figure",
    "methods_figure",
    "neutralization_figure",
    "noise_figure",
    "panel_grid",
    "profile_figure",
    "quality_figure",
    "regions_figure",
    "representatives_figure",
    "singular_value_figure",
    "robustness_report_figure",
    "threshold_figure",
    "transfer_figure",
]
