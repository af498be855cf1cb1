"""Images that a class or a channel responds to most, by gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.attacks.randomness import Draws, row_seeds
from lit_adv.explain.gradient_maps import class_scores
from lit_adv.explain.layers import check_layer, layer_output


@dataclass(frozen=True, kw_only=True)
class Regularizers:
    """What keeps the image like a picture (Yosinski et al. 2015, arXiv:1506.06579, section 3).

    Args:
        decay: Share of the image that is taken away in each step, in [0, 1); the weight decay ``2 alpha lambda``.
        blur: Standard deviation of a Gaussian in pixels; 0 does not blur.
        every: Steps between two blurs.
        small_norm: Per cent of the pixels, those of the smallest norm, that are set to 0 in each step.
        small_contribution: The same, those of the smallest ``|sum over channels of x times gradient|``.
        total_variation: Weight of the sum of absolute differences between neighbours.

    Raises:
        ValueError: A field is out of range.
    """

    decay: float = 0.0
    blur: float = 0.0
    every: int = 4
    small_norm: float = 0.0
    small_contribution: float = 0.0
    total_variation: float = 0.0

    def __post_init__(self) -> None:
        for field, good, range_ in (
            ("decay", 0 <= self.decay < 1, "in [0, 1)"),
            ("blur", 0 <= self.blur < math.inf, "at least 0"),
            ("every", self.every >= 1, "at least 1"),
            ("small_norm", 0 <= self.small_norm <= 100, "in [0, 100]"),
            ("small_contribution", 0 <= self.small_contribution <= 100, "in [0, 100]"),
            ("total_variation", 0 <= self.total_variation < math.inf, "at least 0"),
        ):
            if not good:
                raise ValueError(f"Regularizers: {field} must be {range_}, got {getattr(self, field)}")


# recalled of the paper's table of four good combinations
PRESETS = {
    "blur_norm": Regularizers(blur=0.5, every=4, small_norm=50),
    "decay_norm": Regularizers(decay=0.3, small_norm=20),
    "decay_blur": Regularizers(decay=1e-4, blur=1.0, every=4),
    "blur_contribution": Regularizers(blur=0.5, every=4, small_contribution=90),
    "none": Regularizers(),
}


def activation_maximization(
    model: nn.Module,
    image_shape: Sequence[int],
    classes: Sequence[int],
    *,
    layer: str | None = None,
    regularizers: Regularizers | str = "decay_blur",
    steps: int = 200,
    step_size: float = 0.02,
    unit_gradient: bool = True,
    mean: float | Sequence[float] = 0.5,
    start: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """Gradient ascent on logits or channels: ``x <- (1 - decay) x + alpha d a / d x``, then the other regularisers.

    x is the image less its mean, so that 0 is no contrast. The last image is clamped to [0, 1].

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        image_shape: C, H and W.
        classes: Whose logits are ascended, one image each; with a ``layer`` its channels, at the middle of the map.
        layer: Its name, see ``named_modules``; None takes the logits.
        regularizers: See `Regularizers`, or the name of one of the ``PRESETS``: ``blur_norm``, ``decay_norm``,
            ``decay_blur``, ``blur_contribution``, ``none``.
        steps: How many.
        step_size: alpha; with ``unit_gradient`` the root mean square of the pixels' change in a step.
        unit_gradient: Divides each image's gradient by its root mean square, so that the step does not depend on the
            scale of the network and the number of pixels; the formula without it has fixed points that can be told.
        mean: Of the images, one number or one a channel.
        start: Standard deviation of the normal numbers that x starts with.
        seed: Of those; an image depends on the seed and its class alone.

    Returns:
        ``(len(classes), C, H, W)`` in [0, 1].

    Raises:
        ValueError: An argument is out of range, there is no such layer or class, or the gradient is not finite.
    """
    owner = "activation_maximization"
    rules = check_ascent(owner, image_shape, classes, regularizers, steps, step_size, start)
    if layer is not None:
        check_layer(owner, model, layer)
    with _untouched(model) as inner:
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        dtype = torch.float64 if parameter is not None and parameter.dtype == torch.float64 else torch.float32
        of = torch.tensor(list(classes), dtype=torch.int64, device=device)
        shift = torch.tensor(mean, dtype=dtype, device=device).reshape(-1, 1, 1)
        if shift.shape[0] not in (1, image_shape[0]):
            raise ValueError(
                f"{owner}: mean must be one number or {image_shape[0]}, one a channel, got {shift.shape[0]}"
            )
        empty = torch.zeros(len(of), *image_shape, device=device)
        x = start * Draws(row_seeds(empty, of * 1_000_003 + seed)).normal(tuple(image_shape), dtype)
        for step in range(1, steps + 1):
            gradient = _ascent(owner, inner, x, shift, of, layer)
            if unit_gradient:
                size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
                gradient = gradient / torch.where(size > 0, size, 1.0)
            if rules.total_variation:
                gradient = gradient - rules.total_variation * _variation_gradient(x)
            x = (1 - rules.decay) * x + step_size * gradient
            if rules.blur and step % rules.every == 0:
                x = blurred(x, rules.blur)
            x = without_smallest(x, x.norm(dim=1), rules.small_norm)
            x = without_smallest(x, (x * gradient).sum(1).abs(), rules.small_contribution)
        return (x + shift).clamp(0, 1)


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Images ``(B, C, H, W)`` under a Gaussian, cut at four deviations; what lies outside is as the edge is."""
    reach = max(1, math.ceil(4 * deviation))
    places = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (places / deviation) ** 2)
    kernel = kernel / kernel.sum()
    planes = images.flatten(0, 1)[:, None]
    # one direction after the other
    planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None, :])
    planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
    return planes[:, 0].view_as(images)


def without_smallest(x: Tensor, sizes: Tensor, per_cent: float) -> Tensor:
    """Images ``(B, C, H, W)`` with 0 in exactly this part of the pixels, those of the smallest ``(B, H, W)`` sizes."""
    count = round(per_cent / 100 * sizes[0].numel())
    if not count:
        return x
    smallest = sizes.flatten(1).argsort(dim=1, stable=True)[:, :count]
    kept = torch.ones_like(sizes.flatten(1)).scatter_(1, smallest, 0).view_as(sizes)
    return x * kept[:, None]


def check_ascent(
    owner: str,
    image_shape: Sequence[int],
    classes: Sequence[int],
    regularizers: Regularizers | str,
    steps: int,
    step_size: float,
    start: float,
) -> Regularizers:
    """Raises ValueError for what `activation_maximization` does not take; gives the regularisers."""
    if isinstance(regularizers, str) and regularizers not in PRESETS:
        raise ValueError(f"{owner}: regularizers must be one of {', '.join(PRESETS)}, got {regularizers!r}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"{owner}: image_shape must be (C, H, W), got {tuple(image_shape)}")
    if not classes or min(classes) < 0:
        raise ValueError(f"{owner}: classes must be one or more numbers >= 0, got {list(classes)}")
    for field, value, good, range_ in (
        ("steps", steps, steps >= 1, "at least 1"),
        ("step_size", step_size, 0 < step_size < math.inf, "above 0"),
        ("start", start, 0 <= start < math.inf, "at least 0"),
    ):
        if not good:
            raise ValueError(f"{owner}: {field} must be {range_}, got {value}")
    return PRESETS[regularizers] if isinstance(regularizers, str) else regularizers


def _ascent(owner: str, model: nn.Module, x: Tensor, shift: Tensor, of: Tensor, layer: str | None) -> Tensor:
    images = (x + shift).requires_grad_()
    if layer is None:
        scores = class_scores(owner, _call(model, images), of, len(x))[0]
    else:
        output = layer_output(owner, model, images, layer)[1]
        if output.ndim not in (2, 4):
            raise ValueError(
                f"{owner}: layer must give maps (B, C, h, w) or vectors (B, D), got {tuple(output.shape)} from {layer}"
            )
        if bool((of >= output.shape[1]).any()):
            raise ValueError(f"{owner}: classes must be channels in [0, {output.shape[1]}), got {int(of.max())}")
        scores = output[torch.arange(len(of), device=of.device), of].flatten(1)
        if output.ndim == 4:
            height, width = output.shape[2:]
            scores = scores[:, height // 2 * width + width // 2]
    (gradient,) = torch.autograd.grad(scores.sum(), images, allow_unused=True, materialize_grads=True)
    if not bool(gradient.isfinite().all()):
        raise ValueError(f"{owner}: the gradient must be finite, got NaN or infinity (take a smaller step_size)")
    return gradient.to(x.dtype)


def _variation_gradient(x: Tensor) -> Tensor:
    down, across = x.diff(dim=2).sign(), x.diff(dim=3).sign()
    return F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1)) + F.pad(across, (1, 0)) - F.pad(across, (0, 1))
