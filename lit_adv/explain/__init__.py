"""Pure functions from (model, images) to maps; what they need of a network they find by themselves."""

from lit_adv.explain.cam import grad_cam, grad_cam_plus_plus
from lit_adv.explain.input_saliency import heat_map, input_saliency
from lit_adv.explain.parameter_saliency import filter_layers, parameter_saliency, saliency_statistics
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

__all__ = [
    "Regions",
    "attack_only_counts",
    "blob_of_masks",
    "blob_of_representatives",
    "filter_layers",
    "four_regions",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient_map",
    "heat_map",
    "importance_map",
    "input_saliency",
    "mask_counts",
    "parameter_saliency",
    "perturbation_map",
    "region_of_attack",
    "region_of_importance",
    "representative",
    "saliency_mask",
    "saliency_statistics",
]
