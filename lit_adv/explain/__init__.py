"""Pure functions from (model, images) to maps; what they need of a network they find by themselves."""

from lit_adv.explain.cam import grad_cam, grad_cam_plus_plus

__all__ = ["grad_cam", "grad_cam_plus_plus"]
