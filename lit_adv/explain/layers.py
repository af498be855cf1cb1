"""What a layer gives: its filters, its activations, and the features in front of the classifier's last layer."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.explain.cam import _check

FilterScale = Literal["all", "each"]


class Filters(NamedTuple):
    """Filters of a layer, ready to be shown.

    Attributes:
        tiles: ``(n, C, k, k)`` in [0, 1].
        low: ``(n,)``, weight that is shown as 0.
        high: ``(n,)``, weight that is shown as 1.
        layer: Name of the layer.
    """

    tiles: Tensor
    low: Tensor
    high: Tensor
    layer: str


def filters(model: nn.Module, layer: str | None = None, *, scale: FilterScale = "all") -> Filters:
    """The weights of a convolution as pictures.

    Args:
        model: Any network.
        layer: Name of a convolution (see ``named_modules``); None takes the first one that the network lists, which
            is the first one called wherever layers are listed in their order.
        scale: ``all`` has one scale for all filters, so that they can be compared; ``each`` spreads every filter over
            [0, 1]. What is constant is 0.5.

    Raises:
        ValueError: There is no such convolution, or a weight is not finite.
    """
    if scale not in get_args(FilterScale):
        raise ValueError(f"filters: scale must be one of {', '.join(get_args(FilterScale))}, got {scale!r}")
    names = convolutions(model)
    if not names or layer not in (None, *names):
        known = ", ".join(names) or "none"
        raise ValueError(f"filters: layer must name a convolution of the model, got {layer!r} (there are {known})")
    name = names[0] if layer is None else layer
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    weight = module.weight.detach().float()
    if not bool(weight.isfinite().all()):
        raise ValueError(f"filters: the weights of {name} must be finite, got NaN or infinity")
    flat = weight.flatten(1)
    low, high = flat.aminmax(dim=1)
    if scale == "all":
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    span = (high - low)[:, None]
    tiles = torch.where(span > 0, (flat - low[:, None]) / torch.where(span > 0, span, 1.0), 0.5)
    return Filters(tiles.view_as(weight), low.clone(), high.clone(), name)


def activations(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """The output of a layer, ``(B, C, h, w)`` of a convolution, ``(B, D)`` of a linear layer.

    Args:
        model: From images to anything; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1].
        layer: Its name, see ``named_modules``. A layer that is called several times counts with its last call.

    Raises:
        ValueError: There is no such layer, it is not called, or its output is no tensor with a row an image.
    """
    _check("activations", images, None)
    with _untouched(model) as inner, torch.no_grad():
        return layer_output("activations", inner, images.detach().clone(), layer)[1]


def features(model: nn.Module, images: Tensor, layer: str | None = None) -> Tensor:
    """Features ``(B, D)`` of images, without a gradient.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1].
        layer: Whose output, flattened; None takes the penultimate features: what the last linear layer called gets.

    Raises:
        ValueError: There is no such layer, or no linear one.
    """
    _check("features", images, None)
    with _untouched(model) as inner, torch.no_grad():
        images = images.detach().clone()
        if layer is not None:
            return layer_output("features", inner, images, layer)[1].flatten(1)
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            # a copy, since what comes behind may work in place; only the last one is needed
            kept[:] = [inputs[0].detach().clone()]

        hooks = [each.register_forward_pre_hook(keep) for each in inner.modules() if isinstance(each, nn.Linear)]
        try:
            _call(inner, images)
        finally:
            for hook in hooks:
                hook.remove()
    if not kept:
        raise ValueError(
            f"features: the model must call a linear layer, got {type(model).__name__} without one (name the layer "
            "whose output the features are)"
        )
    return kept[0].flatten(1)


def convolutions(model: nn.Module) -> list[str]:
    """Names of the convolutions on images, in the order in which the network lists them."""
    return [name for name, each in model.named_modules() if isinstance(each, nn.Conv2d)]


def called_convolutions(model: nn.Module, images: Tensor) -> list[str]:
    """Names of the convolutions that a pass of the images calls, in the order of their first calls."""
    called: dict[str, None] = {}
    with _untouched(model) as inner, torch.no_grad():
        hooks = [
            inner.get_submodule(name).register_forward_hook(lambda *_, name=name: called.setdefault(name))
            for name in convolutions(inner)
        ]
        try:
            _call(inner, images.detach().clone())
        finally:
            for hook in hooks:
                hook.remove()
    return list(called)


def check_layer(owner: str, model: nn.Module, layer: str, field: str = "layer") -> None:
    """Raises ValueError unless the model has a layer of this name."""
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        known = convolutions(model) or names
        few = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        raise ValueError(f"{owner}: {field} must name a layer of the model, got {layer!r} (there are {few or 'none'})")


def layer_output(owner: str, model: nn.Module, images: Tensor, layer: str) -> tuple[Any, Tensor]:
    """The model's answer and a copy of the layer's output, both with their graph where autograd is on."""
    check_layer(owner, model, layer)
    kept: list[Any] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # a copy, since an activation behind it may work in place
        kept[:] = [output.clone() if isinstance(output, Tensor) else output]

    hook = model.get_submodule(layer).register_forward_hook(keep)
    try:
        answer = _call(model, images)
    finally:
        hook.remove()
    if not kept:
        raise ValueError(f"{owner}: the model does not call {layer} (name a layer that it uses)")
    if not isinstance(kept[0], Tensor) or kept[0].ndim < 2 or len(kept[0]) != len(images):
        got = tuple(kept[0].shape) if isinstance(kept[0], Tensor) else type(kept[0]).__name__
        raise ValueError(f"{owner}: layer must give a tensor with a row an image, got {got} from {layer}")
    return answer, kept[0]
