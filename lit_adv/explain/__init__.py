"""Pure functions from (model, images) to maps; what they need of a network they find by themselves."""

from lit_adv.explain.activation_maximization import PRESETS, Regularizers, activation_maximization
from lit_adv.explain.boundary import Boundary, boundary_angle, boundary_distance
from lit_adv.explain.boundary_curvature import Curvature, boundary_curvature
from lit_adv.explain.cam import grad_cam, grad_cam_plus_plus
from lit_adv.explain.class_paths import ClassPaths, class_paths, points_on_path
from lit_adv.explain.decision_sections import (
    Plane,
    adversarial_plane,
    bend_of_boundary,
    decision_section,
    random_plane,
)
from lit_adv.explain.dominant_labels import sphere_labels
from lit_adv.explain.feature_space import Components, nearest_neighbors, pca, tsne
from lit_adv.explain.gradient_maps import deconvnet, gradient_saliency, guided_backpropagation, neuron_gradient
from lit_adv.explain.input_saliency import heat_map, input_saliency
from lit_adv.explain.layers import Filters, activations, features, filters
from lit_adv.explain.occlusion import occlusion_map, spread_occlusion
from lit_adv.explain.parameter_saliency import filter_layers, parameter_saliency, saliency_statistics
from lit_adv.explain.receptive_field import ReceptiveField, receptive_field
from lit_adv.explain.regions import (
    Regions,
    attack_only_counts,
    blob_of_masks,
    blob_of_representatives,
    four_regions,
    gradient_map,
    importance_map,
    mask_counts,
    perturbation_map,
    region_of_attack,
    region_of_importance,
    representative,
)
from lit_adv.explain.saliency_mask import saliency_mask
from lit_adv.explain.top_patches import Patches, top_patches

__all__ = [
    "Boundary",
    "ClassPaths",
    "Components",
    "Curvature",
    "Filters",
    "PRESETS",
    "Patches",
    "Plane",
    "ReceptiveField",
    "Regions",
    "Regularizers",
    "activation_maximization",
    "activations",
    "adversarial_plane",
    "attack_only_counts",
    "bend_of_boundary",
    "blob_of_masks",
    "blob_of_representatives",
    "boundary_angle",
    "boundary_curvature",
    "boundary_distance",
    "class_paths",
    "decision_section",
    "deconvnet",
    "features",
    "filter_layers",
    "filters",
    "four_regions",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_map",
    "gradient_saliency",
    "guided_backpropagation",
    "heat_map",
    "importance_map",
    "input_saliency",
    "mask_counts",
    "nearest_neighbors",
    "neuron_gradient",
    "occlusion_map",
    "parameter_saliency",
    "pca",
    "perturbation_map",
    "points_on_path",
    "random_plane",
    "receptive_field",
    "region_of_attack",
    "region_of_importance",
    "representative",
    "saliency_mask",
    "saliency_statistics",
    "sphere_labels",
    "spread_occlusion",
    "top_patches",
    "tsne",
]
