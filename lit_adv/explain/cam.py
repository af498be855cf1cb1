"""Class activation maps: where a convolutional classifier looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.metrics.checks import check_tensors


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor | None = None, *, layer: str | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2), enlarged and scaled to [0, 1].

    With A the maps of a layer and g = dY/dA the gradient of the class' logit, ``relu(sum_k w_k A_k)`` with w_k the mean
    of g over the map.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1]; each is treated by itself.
        classes: ``(B,)`` int64, the classes explained; None takes the predictions.
        layer: Name of the layer (see ``named_modules``) whose output is A; None takes the last maps, as they leave for
            the pooling or the classifier: of all layers and blocks called from the last convolution on, the last one
            whose output has its height and width. That is behind normalisation, activation and addition wherever the
            network has modules for them or gathers them in a block. Of convolutions whose maps have but one place the
            last before them counts, where there is one.

    Returns:
        ``(B, H, W)`` from 0 to 1, each image scaled by itself; all 0 where the map is constant. In the precision of the
        images but float32 at least.

    Raises:
        ValueError: There is no such layer, no convolution, or an argument is of another kind.
    """

    def weights(maps: Tensor, gradient: Tensor) -> Tensor:
        return gradient.mean((2, 3))

    return _cam("grad_cam", model, images, classes, layer, weights)


def grad_cam_plus_plus(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | None = None,
    *,
    layer: str | None = None,
    normalise_alpha: bool = True,
) -> Tensor:
    """Grad-CAM++ (Chattopadhyay et al. 2018, arXiv:1710.11063, equations 9 to 19), enlarged and scaled to [0, 1].

    As `grad_cam`, with ``w_k = sum_ij alpha_kij relu(g_kij)`` and ``alpha = g^2 / (2 g^2 + g^3 sum_ab A_kab)``, 0 where
    the gradient is 0.

    Args:
        model: As in `grad_cam`.
        images: As in `grad_cam`.
        classes: As in `grad_cam`.
        layer: As in `grad_cam`.
        normalise_alpha: Divide alpha by its sum over the map, as tf-keras-vis does; the paper does not.

    Returns:
        As `grad_cam`.

    Raises:
        ValueError: As `grad_cam`.
    """

    def weights(maps: Tensor, gradient: Tensor) -> Tensor:
        # g^2 taken out of the fraction, since it underflows where a classifier is sure
        denominator = 2 + gradient * maps.sum((2, 3), keepdim=True)
        alpha = (gradient != 0) / torch.where(denominator == 0, 1.0, denominator)
        if normalise_alpha:
            total = alpha.sum((2, 3), keepdim=True)
            alpha = alpha / torch.where(total == 0, 1.0, total)
        return (alpha * gradient.relu()).sum((2, 3))

    return _cam("grad_cam_plus_plus", model, images, classes, layer, weights)


def _cam(
    owner: str,
    model: nn.Module,
    images: Tensor,
    classes: Tensor | None,
    layer: str | None,
    weights: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    _check(owner, images, classes)
    dtype = torch.promote_types(images.dtype, torch.float32)
    with _untouched(model) as inner:
        _check_layer(owner, inner, layer)
        if not len(images):
            return images.new_zeros(0, *images.shape[2:], dtype=dtype)
        # cloned, as a tensor made in inference mode cannot enter autograd
        images = images.detach().clone()
        maps, gradient = _maps_and_gradient(owner, inner, images, classes, layer)
    maps, gradient = maps.to(dtype), gradient.to(dtype)
    raw = (weights(maps, gradient)[..., None, None] * maps).sum(1).relu()
    if not bool(raw.isfinite().all()):
        row = int((~raw.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"{owner}: image {row} gives NaN or infinity (look at the image and at the network)")
    enlarged = F.interpolate(raw[:, None], images.shape[2:], mode="bilinear", align_corners=True)[:, 0]
    return _scaled(enlarged)


def _maps_and_gradient(
    owner: str, model: nn.Module, images: Tensor, classes: Tensor | None, layer: str | None
) -> tuple[Tensor, Tensor]:
    """The maps A, ``(B, K, h, w)``, and the gradient of the classes' logits to them."""
    cut = _Cut(owner, layer, len(images))
    modules = [(name, module) for name, module in model.named_modules() if name and layer in (None, name)]
    if layer is None:
        # they take no hooks
        modules = [(name, module) for name, module in modules if not isinstance(module, torch.jit.ScriptModule)]
    hooks = [module.register_forward_hook(cut) for _, module in modules]
    try:
        logits = _call(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    if cut.maps is None:
        unused = layer or ", ".join(name for name, module in modules if isinstance(module, nn.Conv2d))
        raise ValueError(f"{owner}: the model does not call {unused} (name a layer that it uses)")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{owner}: the model must give logits ({len(images)}, K), got {got}")
    if classes is None:
        classes = logits.argmax(1)
    elif bool(((classes < 0) | (classes >= logits.shape[1])).any()):
        raise ValueError(
            f"{owner}: classes must be in [0, {logits.shape[1]}), got {int(classes.min())} to {int(classes.max())}"
        )
    total = logits.gather(1, classes[:, None].clone()).sum()
    (gradient,) = torch.autograd.grad(total, cut.maps, allow_unused=True, materialize_grads=True)
    return cut.maps.detach(), gradient


class _Cut:
    """A forward hook for all layers: keeps the maps looked for, and cuts the graph in front of them.

    Args:
        owner: In messages.
        layer: The layer looked for; None looks for the last maps.
        count: B.

    Attributes:
        maps: ``(B, K, h, w)``, a leaf of the graph; None until there are some.
    """

    def __init__(self, owner: str, layer: str | None, count: int) -> None:
        self.owner, self.layer, self.count = owner, layer, count
        self.maps: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor | None:
        if not self._wanted(module, output):
            return None
        # the graph is cut here, so that only what comes behind is differentiated and kept in memory
        self.maps = output.detach().requires_grad_()
        # a copy, since an activation behind it may work in place
        return self.maps.clone()

    def _wanted(self, module: nn.Module, output: Any) -> bool:
        maps = isinstance(output, Tensor) and output.ndim == 4
        named = self.layer is not None
        if named or isinstance(module, nn.Conv2d):
            if not maps:
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"{self.owner}: layer must give maps (B, K, h, w), got {got} from"
                    f" {self.layer or type(module).__name__} (name a convolution)"
                )
            # one place tells nothing; gates such as squeeze-and-excitation's have no more
            return named or self.maps is None or output.shape[2:].numel() > 1 or self.maps.shape[2:].numel() == 1
        if not maps or self.maps is None:
            return False
        # other tensors of four dimensions are the weights that a parametrisation makes, and integers
        alike = output.shape[2:] == self.maps.shape[2:] and len(output) == self.count
        return alike and output.is_floating_point()


def _check_layer(owner: str, model: nn.Module, layer: str | None) -> None:
    modules = {name: module for name, module in model.named_modules() if name}
    convolutions = [name for name, each in modules.items() if isinstance(each, nn.Conv2d)]
    if layer is not None and layer not in modules:
        known = ", ".join(convolutions or modules) or "none"
        what = "convolutions" if convolutions else "layers"
        raise ValueError(f"{owner}: layer must name a layer of the model, got {layer!r} (its {what} are {known})")
    if layer is None and not convolutions:
        raise ValueError(
            f"{owner}: the model must have a convolution, got {type(model).__name__} without one (name another layer "
            f"that gives maps; there are {', '.join(modules) or 'none'})"
        )


def _scaled(maps: Tensor) -> Tensor:
    """Each map from 0 to 1; 0 where it is constant up to rounding."""
    low, high = maps.flatten(1).aminmax(dim=1)
    span = high - low
    # relative to the map's size: logits have no scale, so that 1e-7 may be all there is
    constant = span <= 8 * torch.finfo(maps.dtype).eps * high
    scaled = (maps - low[:, None, None]) / torch.where(constant, 1.0, span)[:, None, None]
    return torch.where(constant[:, None, None], 0.0, scaled)


def _check(owner: str, images: Tensor, classes: Tensor | None) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{owner}: images must be a floating-point tensor (B, C, H, W) in [0, 1], got {got}")
    check_tensors(owner, {"images": images})
    if len(images) and not images.numel():
        raise ValueError(f"{owner}: images must have pixels, got shape {tuple(images.shape)}")
    if classes is None:
        return
    if not isinstance(classes, Tensor) or classes.shape != images.shape[:1] or classes.dtype != torch.int64:
        kind = f"{classes.dtype} of shape {tuple(classes.shape)}" if isinstance(classes, Tensor) else type(classes)
        raise ValueError(f"{owner}: classes must be an int64 tensor of shape ({len(images)},), got {kind}")
    check_tensors(owner, {"classes": classes})
