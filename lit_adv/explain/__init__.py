"""Pure functions from (model, images) to maps; what they need of a network they find by themselves."""

from lit_adv.explain.cam import grad_cam, grad_cam_plus_plus
from lit_adv.explain.input_saliency import heat_map, input_saliency
from lit_adv.explain.parameter_saliency import filter_layers, parameter_saliency, saliency_statistics
from lit_adv.explain.saliency_mask import saliency_mask

__all__ = [
    "filter_layers",
    "grad_cam",
    "grad_cam_plus_plus",
    "heat_map",
    "input_saliency",
    "parameter_saliency",
    "saliency_mask",
    "saliency_statistics",
]
