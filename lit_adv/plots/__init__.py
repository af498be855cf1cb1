"""Figures from values; what is shown was computed elsewhere."""

from lit_adv.plots.confusion import confusion_figure
from lit_adv.plots.explanations import (
    Explained,
    gradient_maps_figure,
    maximization_figure,
    neighbors_figure,
    occlusion_figure,
    patches_figure,
)
from lit_adv.plots.feature_space import Cloud, feature_space_figure
from lit_adv.plots.geometry import Section, boundary_geometry_figure, decision_regions_figure, dominant_labels_figure
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
from lit_adv.plots.tiles import Tiles, tile_figure
from lit_adv.plots.transfer import transfer_figure

__all__ = [
    "Cloud",
    "Example",
    "Explained",
    "HeatMap",
    "Localization",
    "Panel",
    "Profile",
    "RegionExample",
    "Representatives",
    "Scale",
    "Section",
    "Tiles",
    "boundary_geometry_figure",
    "budget_figure",
    "budget_grid_figure",
    "confusion_figure",
    "decision_regions_figure",
    "dominant_labels_figure",
    "example_grid",
    "feature_space_figure",
    "gradient_maps_figure",
    "heat_map_figure",
    "iterations_figure",
    "learning_figure",
    "localization_figure",
    "maximization_figure",
    "methods_figure",
    "neighbors_figure",
    "neutralization_figure",
    "noise_figure",
    "occlusion_figure",
    "panel_grid",
    "patches_figure",
    "profile_figure",
    "quality_figure",
    "regions_figure",
    "representatives_figure",
    "robustness_report_figure",
    "singular_value_figure",
    "threshold_figure",
    "tile_figure",
    "transfer_figure",
]
