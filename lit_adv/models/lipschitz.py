"""Upper bounds of how much a network can enlarge a difference."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_adv.models.normalize import Normalize

LipschitzNorm = Literal["l2", "linf"]

_ONE = (nn.ReLU, nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Tanh, nn.Sigmoid)


@torch.no_grad()
def lipschitz_bound(module: nn.Module, norm: LipschitzNorm = "l2") -> float:
    """A number L with ||f(x) - f(y)|| <= L ||x - y|| for the module in eval mode: the product over its layers.

    Linear layers and, with ``linf``, convolutions count with their exact norm. With ``l2`` a convolution counts with
    the largest singular value of its flattened weight times sqrt(ceil(kh / s) ceil(kw / s)), since patches repeat a
    pixel, and more often where stride and dilation share a factor. BatchNorm counts with max |gamma| / sqrt(var + eps)
    of its running statistics; it is what makes the bound of a Parseval network with BatchNorm large. Residual sums add,
    convex ones average.

    Args:
        module: Layers of torch in `nn.Sequential`, a `Classifier` of a wide ResNet, or a module that has a method
            ``lipschitz(norm)`` of its own.
        norm: Of images (pixels in [0, 1] for a `Classifier`) and of logits.

    Raises:
        ValueError: There is no such norm, or nothing is known of a layer.
    """
    if norm not in get_args(LipschitzNorm):
        raise ValueError(f"lipschitz_bound: norm must be l2 or linf, got {norm!r}")
    own = getattr(module, "lipschitz", None)
    if own is not None:
        return float(own(norm))
    if isinstance(module, nn.Sequential):
        return math.prod(lipschitz_bound(layer, norm) for layer in module)
    if isinstance(module, nn.Conv2d | nn.Linear):
        return _linear(module, norm)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _batch_norm(module)
    if isinstance(module, Normalize):
        return 1 / float(module.std.min())
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        return _pool(module, norm)
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if isinstance(module, _ONE):
        return 1.0
    raise ValueError(
        f"lipschitz_bound: nothing is known of {type(module).__name__} (give it a method lipschitz(norm), or take a"
        " wide ResNet)"
    )


def effective_matrix(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The layer's weight as it acts, flattened to ``(O, the rest)``, float64 on the CPU."""
    return layer.weight.detach().double().cpu().flatten(1) * float(getattr(layer, "scale", 1.0))


def _linear(layer: nn.Conv2d | nn.Linear, norm: LipschitzNorm) -> float:
    matrix = effective_matrix(layer)
    if norm == "linf":
        return float(matrix.abs().sum(1).max())
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    if isinstance(layer, nn.Linear):
        return largest
    if layer.padding_mode != "zeros":
        raise ValueError(f"lipschitz_bound: padding must be with zeros, got {layer.padding_mode}")
    return largest * _repeats(layer.kernel_size, layer.stride, layer.dilation)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> float:
    if layer.running_var is None:
        raise ValueError("lipschitz_bound: BatchNorm must have running statistics, or it is no function of one image")
    gains = (layer.running_var.double() + layer.eps).rsqrt()
    return float((gains if layer.weight is None else gains * layer.weight.double().abs()).max())


def _pool(layer: nn.AvgPool2d | nn.MaxPool2d, norm: LipschitzNorm) -> float:
    kernel, stride = _two(layer.kernel_size), _two(layer.stride)
    if isinstance(layer, nn.MaxPool2d):
        return 1.0 if norm == "linf" else _repeats(kernel, stride, _two(layer.dilation))
    outside = layer.ceil_mode or (_two(layer.padding) != (0, 0) and not layer.count_include_pad)
    if layer.divisor_override is not None or (outside and norm == "l2"):
        raise ValueError(
            f"lipschitz_bound: AvgPool2d must divide by the size of its kernel at every place, got {layer} (leave out"
            " divisor_override and ceil_mode, and count the padding)"
        )
    # a mean of n numbers is a row of norm 1 / sqrt(n)
    return 1.0 if norm == "linf" else _repeats(kernel, stride) / math.sqrt(math.prod(kernel))


def _repeats(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...] = (1, 1)) -> float:
    """The square root of how many patches a pixel can be in."""
    # every s / gcd(s, d)-th of the taps, which are d apart, can meet a pixel at some place of the grid of step s
    apart = [s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    return math.sqrt(math.prod(math.ceil(k / each) for k, each in zip(kernel, apart, strict=True)))


def _two(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
