"""Input-space saliency: which pixels make the filters salient that are most so."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import _dtype
from lit_adv.explain.parameter_saliency import (
    Convolution,
    Unserved,
    Watch,
    check_finite,
    check_saliency,
    convolution_gradients,
    cross_entropy,
    named_filters,
    untouched_network,
)
from lit_adv.metrics import SaliencyStatistics
from lit_adv.metrics.checks import check_tensors
from lit_adv.metrics.saliency import check_floor

Channel = Literal["abs_then_max", "max_then_abs"]


def input_saliency(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    statistics: SaliencyStatistics,
    *,
    n: int = 10,
    boost: float = 100.0,
    channel: Channel = "abs_then_max",
    absolute: bool = False,
    floor: float = 0.0,
    chunk_size: int | None = None,
) -> Tensor:
    """``\\|grad_x D(s(x, y), s')\\|`` of the standardised profile s (Souri et al. 2021, section 5.2).

    D is 1 minus the cosine, and s' a constant copy of s in which the n largest entries are multiplied by ``boost``: how
    much a pixel would move the profile towards what stands out in it. Convolutions must be ordinary ones, as for the
    hooks of `parameter_saliency`; their gradients are differentiated once more.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1]; each is treated by itself.
        labels: ``(B,)`` int64, the true classes.
        statistics: Of this network, see `SaliencyStatistics`.
        n: How many filters are boosted, the largest by value, not by absolute value.
        boost: Factor; 1 gives 0 everywhere.
        channel: ``abs_then_max`` takes the channel where the gradient is largest in absolute value, ``max_then_abs``
            the absolute value of the channels' largest signed gradient, as the authors' code does for display.
        absolute: Absolute standardised saliency, equation 6; their code has the sign.
        floor: Least standard deviation, see `SaliencyStatistics.deviations`.
        chunk_size: Images a pass; None takes what keeps the filters' gradients below 256 MiB.

    Returns:
        ``(B, H, W)``, at least 0, in the precision of the model but float32 at least.

    Raises:
        ValueError: An argument is out of range or of another kind, statistics are of another network's layers, the
            network uses its filters in another way, or a result is not finite.
    """
    check_saliency("input_saliency", images, labels, chunk_size)
    if channel not in get_args(Channel):
        raise ValueError(f"input_saliency: channel must be one of {', '.join(get_args(Channel))}, got {channel!r}")
    if not boost >= 0:
        raise ValueError(f"input_saliency: boost must be >= 0, got {boost} (a factor; 100 in the authors' code)")
    check_floor("input_saliency", floor)
    labels = labels.to(images.device)
    with untouched_network(model, images) as inner:
        filters = named_filters("input_saliency", inner)
        layers = {name.removesuffix(".weight"): len(each) for name, each in filters.items()}
        if layers != statistics.layers:
            raise ValueError(
                f"input_saliency: statistics must be of the model's filters, got {sum(statistics.layers.values())} in "
                f"{len(statistics.layers)} layers and not {sum(layers.values())} in {len(layers)}"
            )
        if not 1 <= n <= sum(layers.values()):
            raise ValueError(f"input_saliency: n must be from 1 to {sum(layers.values())}, the filters, got {n}")
        dtype = torch.promote_types(_dtype(inner, images), torch.float32)
        if not len(images):
            return images.new_zeros(0, *images.shape[2:], dtype=dtype)
        usual = statistics.compute()["mean"], statistics.deviations(floor)
        mean, std = (each.to(images.device, dtype, copy=True) for each in usual)
        size = chunk_size or max(1, 2**28 // sum(4 * each.numel() for each in filters.values()))
        gradients = []
        for x, y in zip(images.detach().split(size), labels.split(size), strict=True):
            # clones, as a tensor made in inference mode cannot enter autograd
            x = x.to(dtype, copy=True).requires_grad_()
            try:
                raw = _differentiable(inner, x, y.clone())
            except Unserved as error:
                raise ValueError(f"input_saliency: the filters' gradients cannot be followed: {error}") from None
            profile = (raw.to(dtype) - mean) / std
            distance = _distance(profile.abs() if absolute else profile, n, boost)
            gradients += torch.autograd.grad(distance.sum(), x)
    gradient = torch.cat(gradients)
    check_finite("input_saliency", gradient)
    return gradient.abs().amax(1) if channel == "abs_then_max" else gradient.amax(1).abs()


def heat_map(maps: Tensor) -> Tensor:
    """Maps for display, as the authors' code has them: clipped, scaled and blurred.

    Args:
        maps: ``(B, H, W)``, from `input_saliency`.

    Returns:
        ``(B, H, W)`` in [0, 1]: each map clipped to its 90th and 99th percentile, scaled by itself, and smoothed by a
        Gaussian of 3 x 3 pixels; 0 where the percentiles are equal.
    """
    check_tensors("heat_map", {"maps": maps})
    if maps.ndim != 3 or not maps.is_floating_point():
        raise ValueError(
            f"heat_map: maps must be floating-point (B, H, W), got {maps.dtype} of shape {tuple(maps.shape)}"
        )
    if not maps.numel():
        return maps
    wide = torch.promote_types(maps.dtype, torch.float32)
    low, high = (
        torch.quantile(maps.flatten(1).to(wide), share, dim=1).to(maps)[:, None, None] for share in (0.9, 0.99)
    )
    span = high - low
    scaled = (maps.clamp(low, high) - low) / torch.where(span > 0, span, 1.0)
    taps = torch.tensor([0.25, 0.5, 0.25]).to(maps)
    padded = F.pad(scaled[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, (taps[:, None] * taps)[None, None])[:, 0]


def _differentiable(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """`parameter_saliency` that the images' gradient can be taken of."""
    filters = list(named_filters("input_saliency", model).values())
    seen: list[tuple[int, Tensor, Tensor, int, Any]] = []

    def keep(place: int, output: Tensor, inputs: Tensor, rest: Any) -> Tensor:
        if not output.requires_grad:
            output.requires_grad_()
        seen.append((place, output, inputs, inputs._version, rest))
        # a copy, since an activation behind it may work in place
        return output.clone()

    with Watch(model, len(images), keep):
        loss = cross_entropy("input_saliency", model, images, labels)
    if any(inputs._version != version for _, _, inputs, version, _ in seen):
        raise Unserved("the input of a convolution is overwritten after its use")
    outputs = [output for _, output, *_ in seen]
    gradients = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True, materialize_grads=True)
    calls: list[list[Convolution]] = [[] for _ in filters]
    dtype = loss.dtype
    for (place, _, inputs, _, rest), gradient in zip(seen, gradients, strict=True):
        calls[place].append(Convolution(inputs.to(dtype), gradient.to(dtype), *rest))
    means = []
    for weight, found in zip(filters, calls, strict=True):
        empty = loss.new_zeros(len(images), len(weight))
        means.append(convolution_gradients(found).abs().mean(2) if found else empty)
    return torch.cat(means, 1)


def _distance(profile: Tensor, n: int, boost: float) -> Tensor:
    """1 minus the cosine to the profile with its n largest entries boosted, ``(B,)``."""
    boosted = profile.detach().clone()
    largest = boosted.topk(n, dim=1).indices
    boosted.scatter_(1, largest, boost * boosted.gather(1, largest))
    return 1 - F.cosine_similarity(profile, boosted, dim=1)
