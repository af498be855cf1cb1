"""Which classes fill image space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.attacks.norms import rows
from lit_adv.attacks.randomness import Draws, mix
from lit_adv.explain.boundary import unit


def sphere_labels(
    model: nn.Module,
    shape: tuple[int, int, int],
    radius: float,
    *,
    count: int = 1000,
    center: Tensor | None = None,
    seed: int = 0,
    chunk_size: int = 256,
) -> Tensor:
    """Histogram of the classes predicted for points uniform on a sphere, such as the one of the typical image norm.

    A network whose universal perturbations have dominant labels (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401,
    section 3) may also call most of the space between the images by few names. Most of these points are no images:
    about half of their pixels are below 0.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        shape: C, H and W of the images.
        radius: Of the sphere, L2, in pixel units of [0, 1].
        count: How many points.
        center: ``(C, H, W)``; None takes 0.
        seed: Of the points; a point depends on it and on its number alone.
        chunk_size: Points at once.

    Returns:
        ``(K,)`` int64.

    Raises:
        ValueError: An argument is out of range.
    """
    owner = "sphere_labels"
    if not 0 <= radius < math.inf:
        raise ValueError(f"{owner}: radius must be at least 0 and finite, got {radius:g}")
    for field, value in (("count", count), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{owner}: {field} must be at least 1, got {value}")
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    seeds = mix(torch.arange(count) ^ mix(torch.tensor(seed)))
    total: Tensor | None = None
    with _untouched(model) as inner, torch.no_grad():
        for part in seeds.split(chunk_size):
            drawn = unit(Draws(part.to(device)).normal(shape, torch.float64))
            points = rows(torch.full_like(drawn[:, 0, 0, 0], radius)) * drawn
            points = points if center is None else points + center.to(points)
            logits = _call(inner, points.float())
            found = logits.argmax(1).bincount(minlength=logits.shape[1]).cpu()
            total = found if total is None else total + found
    assert total is not None
    return total
