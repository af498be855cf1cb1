"""Regions for attacks out of what a classifier looks at."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.attacks.regions import Mask
from lit_adv.explain.cam import _check, grad_cam, grad_cam_plus_plus

SaliencyMethod = Literal["grad_cam", "grad_cam_plus_plus", "gradient"]


def saliency_mask(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    fraction: float,
    *,
    method: SaliencyMethod = "grad_cam",
    layer: str | None = None,
    least: bool = False,
) -> Mask:
    """The most salient pixels of each image as a region, exactly ``round(fraction * H * W)`` of them.

    What Ozbulak et al. (regional perturbations) name as future work. Of equally salient pixels the upper left ones
    come first.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1]; each is treated by itself.
        labels: ``(B,)`` int64, the classes whose evidence is looked for.
        fraction: Share of the pixels, in [0, 1].
        method: A class activation map, or ``gradient``: of the cross-entropy, the largest absolute value over the
            channels (Simonyan et al. 2014, arXiv:1312.6034, section 3, there of the logit).
        layer: Of the activation map; None takes the last maps; see `grad_cam`.
        least: Take the least salient pixels instead, for comparison.

    Returns:
        A region for these images in this order, with a mask ``(B, 1, H, W)``.

    Raises:
        ValueError: An argument is out of range or of another kind, or a map is not finite.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"saliency_mask: fraction must be in [0, 1], got {fraction} (a share of the pixels)")
    if method not in get_args(SaliencyMethod):
        raise ValueError(f"saliency_mask: method must be one of {', '.join(get_args(SaliencyMethod))}, got {method!r}")
    if method == "gradient" and layer is not None:
        raise ValueError(f"saliency_mask: layer must be None for method 'gradient', got {layer!r} (it has no layer)")
    _check("saliency_mask", images, labels)
    if method == "gradient":
        maps = _gradient(model, images, labels)
    else:
        maps = (grad_cam if method == "grad_cam" else grad_cam_plus_plus)(model, images, labels, layer=layer)
    flat = maps.flatten(1)
    # a stable sort: topk would choose freely among the many zeros of an activation map
    order = flat.argsort(dim=1, descending=not least, stable=True)[:, : round(fraction * flat.shape[1])]
    return Mask(torch.zeros_like(flat).scatter_(1, order, 1).view(len(images), 1, *images.shape[2:]))


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``|dCE/dx|``, the largest of the channels, ``(B, H, W)``."""
    if not len(images):
        return images.new_zeros(0, *images.shape[2:])
    with _untouched(model) as inner:
        # clones, as tensors made in inference mode cannot enter autograd
        x = images.detach().to(torch.promote_types(images.dtype, torch.float32), copy=True).requires_grad_()
        logits = _call(inner, x).to(x.dtype)
        if bool(((labels < 0) | (labels >= logits.shape[1])).any()):
            raise ValueError(
                f"saliency_mask: labels must be in [0, {logits.shape[1]}), got {int(labels.min())} to"
                f" {int(labels.max())}"
            )
        loss = F.cross_entropy(logits, labels.to(x.device, copy=True), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    if not bool(gradient.isfinite().all()):
        raise ValueError("saliency_mask: the gradient must be finite, got NaN or infinity (look at the network)")
    return gradient.abs().amax(1)
