"""Adversarial noise of a given size beside the image, as Parseval networks are judged by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched


def noise_at_snr(model: nn.Module, images: Tensor, labels: Tensor, decibels: Sequence[float], steps: int = 1) -> Tensor:
    """FGSM with the radius at which the signal-to-noise ratio is as asked, for each image by itself.

    SNR = 20 log10(||x|| / ||d||) in the 2-norm of pixels in [0, 1], where d is what is left of the noise after clipping
    to [0, 1] (Cisse et al. 2017, section 5.2, say nothing about clipping). With several steps the ball is the same, and
    PGD looks in it, without a random start and with steps of 2.5 radii over their number.

    Args:
        model: Maps images to logits; left as it was.
        images: ``(B, C, H, W)`` in [0, 1], float32 or float64.
        labels: ``(B,)`` int64, the classes to leave.
        decibels: S ratios; less is more noise. Where even black and white pixels are not enough, these are taken.
        steps: 1 for FGSM, more for PGD in the ball of that FGSM.

    Returns:
        ``(S, B, C, H, W)``, as the images.

    Raises:
        ValueError: There is no ratio, or no step.
    """
    if not len(decibels) or steps < 1:
        raise ValueError(f"noise_at_snr: decibels and steps must be at least one, got {list(decibels)} and {steps}")
    with _untouched(model) as inner:
        # copies made here: tensors of inference mode, in which Lightning tests, cannot enter autograd
        x, labels = images.detach().clone(), labels.clone()
        direction = _direction(inner, x, labels)
        found = []
        for ratio in decibels:
            radius = _radius(x, direction, float(ratio))
            noisy = (x + radius * direction).clamp(0, 1)
            if steps > 1:
                noisy = x
                for _ in range(steps):
                    moved = noisy + 2.5 / steps * radius * _direction(inner, noisy, labels)
                    noisy = torch.minimum(torch.maximum(moved, x - radius), x + radius).clamp(0, 1)
            found.append(noisy)
    return torch.stack(found)


def _direction(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    if not len(x):
        return torch.zeros_like(x)
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        loss = F.cross_entropy(_call(model, leaf).to(x.dtype), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient.nan_to_num(0.0).sign()


def _radius(x: Tensor, direction: Tensor, ratio: float) -> Tensor:
    """``(B, 1, 1, 1)``: how far to go for the ratio, by bisection, since pixels near the border go less far."""
    room = torch.where(direction > 0, 1 - x, torch.where(direction < 0, x, 0)).flatten(1)
    wanted = x.flatten(1).norm(dim=1) * 10 ** (-ratio / 20)
    low = torch.zeros_like(wanted)
    high = torch.ones_like(wanted)
    for _ in range(40):
        middle = (low + high) / 2
        short = torch.minimum(room, middle[:, None]).norm(dim=1) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return high[:, None, None, None]
