"""Gradients to the pixels: of a class, of a neuron, and with other rules at the rectifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.explain.cam import _check
from lit_adv.explain.layers import layer_output
from lit_adv.explain.rectifiers import Rule, rectifier_rule


def gradient_saliency(model: nn.Module, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """``max over channels of |d Z_c / dx|`` of the logit (Simonyan et al. 2014, arXiv:1312.6034, section 3).

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1]; each is treated by itself.
        classes: ``(B,)`` int64, the classes explained; None takes the predictions.

    Returns:
        ``(B, H, W)``, at least 0, in the precision of the images but float32 at least.

    Raises:
        ValueError: An argument is of another kind, or the gradient is not finite.
    """
    return _of_class("gradient_saliency", model, images, classes, "gradient").abs().amax(1)


def deconvnet(model: nn.Module, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """The logit projected back to the pixels by a deconvolutional network (Zeiler and Fergus 2014, arXiv:1311.2901).

    As the gradient, but a ReLU lets through what is positive on the way back, wherever it was closed on the way there.

    Args:
        model: As in `gradient_saliency`; not scripted.
        images: As in `gradient_saliency`.
        classes: As in `gradient_saliency`.

    Returns:
        ``(B, C, H, W)``, signed.

    Raises:
        ValueError: As `gradient_saliency`.
    """
    return _of_class("deconvnet", model, images, classes, "deconvnet")


def guided_backpropagation(model: nn.Module, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """The logit's gradient, of which ReLUs let through only what is positive (Springenberg et al. 2015,
    arXiv:1412.6806, section 3.4).

    Args:
        model: As in `gradient_saliency`; not scripted.
        images: As in `gradient_saliency`.
        classes: As in `gradient_saliency`.

    Returns:
        ``(B, C, H, W)``, signed.

    Raises:
        ValueError: As `gradient_saliency`.
    """
    return _of_class("guided_backpropagation", model, images, classes, "guided")


def neuron_gradient(model: nn.Module, images: Tensor, layer: str, units: Tensor, *, rule: Rule = "gradient") -> Tensor:
    """``d a / dx`` of one neuron of a layer for each image.

    Args:
        model: From images to anything; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1].
        layer: Its name, see ``named_modules``.
        units: ``(B, 3)`` int64, channel, row and column of each image's neuron; ``(B, 1)`` in a layer of vectors.
        rule: At the rectifiers, see `rectifier_rule`.

    Returns:
        ``(B, C, H, W)``, signed.

    Raises:
        ValueError: There is no such layer or neuron, or an argument is of another kind.
    """
    owner = "neuron_gradient"
    _check(owner, images, None)
    if rule not in get_args(Rule):
        raise ValueError(f"{owner}: rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if not isinstance(units, Tensor) or units.dtype != torch.int64 or units.ndim != 2 or len(units) != len(images):
        got = f"{units.dtype} of shape {tuple(units.shape)}" if isinstance(units, Tensor) else type(units).__name__
        raise ValueError(f"{owner}: units must be int64 of shape ({len(images)}, 3) or ({len(images)}, 1), got {got}")

    def neurons(inner: nn.Module, x: Tensor) -> Tensor:
        output = layer_output(owner, inner, x, layer)[1]
        sides = torch.tensor(output.shape[1:], device=units.device)
        if units.shape[1] != len(sides) or bool(((units < 0) | (units >= sides)).any()):
            raise ValueError(
                f"{owner}: units must be places in {tuple(output.shape[1:])}, the output of {layer}, got "
                f"{units.amin(0).tolist()} to {units.amax(0).tolist()}"
            )
        rows = torch.arange(len(output), device=output.device)
        return output[(rows, *units.to(output.device, copy=True).unbind(1))]

    return _gradient(owner, model, images, neurons, rule)


def _of_class(owner: str, model: nn.Module, images: Tensor, classes: Tensor | None, rule: Rule) -> Tensor:
    _check(owner, images, classes)

    def scores(inner: nn.Module, x: Tensor) -> Tensor:
        return class_scores(owner, _call(inner, x), classes, len(x))[0]

    return _gradient(owner, model, images, scores, rule)


def _gradient(
    owner: str, model: nn.Module, images: Tensor, scores: Callable[[nn.Module, Tensor], Tensor], rule: Rule
) -> Tensor:
    dtype = torch.promote_types(images.dtype, torch.float32)
    if not len(images):
        return images.new_zeros(images.shape, dtype=dtype)
    with _untouched(model) as inner:
        # cloned, as a tensor made in inference mode cannot enter autograd
        x = images.detach().to(dtype, copy=True).requires_grad_()
        with rectifier_rule(owner, inner, rule):
            explained = scores(inner, x)
        (gradient,) = torch.autograd.grad(explained.sum(), x, allow_unused=True, materialize_grads=True)
    # a rectifier's gradient at NaN is 0
    bad = ~(gradient.isfinite().flatten(1).all(1) & explained.isfinite())
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"{owner}: image {row} gives NaN or infinity (look at the image and at the network)")
    return gradient


def class_scores(owner: str, logits: object, classes: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Each image's logit of its class, and the classes: those given or the predictions.

    Raises:
        ValueError: The answer is no ``(count, K)``, or a class is none of the K.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{owner}: the model must give logits ({count}, K), got {got}")
    if classes is None:
        classes = logits.argmax(1)
    elif bool(((classes < 0) | (classes >= logits.shape[1])).any()):
        raise ValueError(
            f"{owner}: classes must be in [0, {logits.shape[1]}), got {int(classes.min())} to {int(classes.max())}"
        )
    classes = classes.to(logits.device, copy=True)
    return logits.gather(1, classes[:, None])[:, 0], classes
