"""Structural similarity: the map, its mean over an image, and its mean over a data set."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_pairs, ratio_dtype

Window = Literal["gaussian", "block8"]


class MeanSSIM(Metric):
    """Structural similarity of images and their perturbed versions, averaged over a data set (see `ssim`).

    Nothing seen yet gives nan.

    Args:
        window: ``gaussian`` or ``block8``, see `ssim_map`.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If there is no such window.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    similarity: Tensor
    total: Tensor

    def __init__(self, window: Window = "gaussian", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_window("MeanSSIM", window)
        self.window = window
        self.add_state("similarity", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, clean: Tensor, adversarial: Tensor) -> None:
        """Count a batch of images ``(B, C, H, W)`` in [0, 1]; an empty one is fine.

        Raises:
            ValueError: If the shapes are of another kind or differ.
        """
        self.similarity = self.similarity + ssim(clean, adversarial, self.window).to(self.similarity.dtype).sum()
        self.total = self.total + len(clean)

    def compute(self) -> Tensor:
        """Return the mean SSIM, a scalar."""
        return self.similarity / self.total


def ssim(x: Tensor, y: Tensor, window: Window = "gaussian") -> Tensor:
    """SSIM of each image: the mean of `ssim_map` over channels and over the pixels whose window lies inside the image.

    An image smaller than the window has no such pixels: there the mean is taken over the whole map.

    Args:
        x: ``(B, C, H, W)`` in [0, 1].
        y: The same shape.
        window: As in `ssim_map`.

    Returns:
        ``(B,)`` in [-1, 1], in float64 (float32 where the device has no float64).
    """
    values = _map("ssim", x, y, window)
    taps, before = _WINDOWS[window]
    after = len(taps) - 1 - before
    if min(values.shape[-2:]) >= len(taps):
        values = values[..., before : values.shape[-2] - after, before : values.shape[-1] - after]
    return values.flatten(1).mean(1)


def ssim_map(x: Tensor, y: Tensor, window: Window = "gaussian") -> Tensor:
    """The SSIM index of every pixel and channel (Wang et al. 2004, equation 13), for images in [0, 1].

    ``((2 mu_x mu_y + c1) (2 s_xy + c2)) / ((mu_x^2 + mu_y^2 + c1) (s_x^2 + s_y^2 + c2))`` with c1 = 0.01^2, c2 = 0.03^2
    and population moments of a window around the pixel. Images are mirrored at the border, so that the map has their
    size; any size will do. Computed in float64, since E[x^2] - E[x]^2 cancels; it is exactly 1 where x and y agree.

    Args:
        x: ``(B, C, H, W)`` in [0, 1].
        y: The same shape.
        window: ``gaussian``, 11 x 11 with sigma 1.5, or ``block8``, uniform 8 x 8 from 3 pixels before to 4 behind.

    Returns:
        ``(B, C, H, W)`` in [-1, 1], in the precision of x but float32 at least.

    Raises:
        ValueError: If the shapes are of another kind or differ, or there is no such window.
    """
    return _map("ssim_map", x, y, window).to(torch.promote_types(x.dtype, torch.float32))


def check_window(owner: str, window: str) -> None:
    """Raises ValueError unless there is such a window."""
    if window not in _WINDOWS:
        raise ValueError(f"{owner}: window must be one of {', '.join(get_args(Window))}, got {window!r}")


def _map(owner: str, x: Tensor, y: Tensor, window: Window) -> Tensor:
    check_pairs(owner, {"x": x, "y": y})
    check_window(owner, window)
    dtype = ratio_dtype(x.device)
    x, y = x.to(dtype), y.to(dtype)
    taps, before = _WINDOWS[window]
    rows, columns = (_averaging(taps, before, size, x) for size in x.shape[-2:])

    def mean(values: Tensor) -> Tensor:
        return rows @ values @ columns.T

    c1, c2 = 0.01**2, 0.03**2
    mu_x, mu_y = mean(x), mean(y)
    var_x = (mean(x * x) - mu_x**2).clamp(min=0)
    var_y = (mean(y * y) - mu_y**2).clamp(min=0)
    # by Cauchy and Schwarz no larger; what rounding adds would make flat areas of equal images differ
    bound = (var_x * var_y).sqrt()
    covariance = (mean(x * y) - mu_x * mu_y).clamp(-bound, bound)
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_x + var_y + c2)).clamp(max=1)


def _averaging(taps: list[float], before: int, size: int, like: Tensor) -> Tensor:
    """The matrix ``(size, size)`` that takes weighted means along an axis, mirrored at both ends."""
    place = torch.arange(size)[:, None] - before + torch.arange(len(taps))
    period = max(2 * (size - 1), 1)
    place = place % period
    place = torch.where(place < size, place, period - place)
    weights = torch.tensor(taps, dtype=torch.float64).expand(size, -1)
    # made on the CPU: sums into one cell have no fixed order on a GPU
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, place, weights).to(like)


def _gaussian(radius: int, sigma: float) -> list[float]:
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


# weights along an axis, and how many of them lie before the pixel
_WINDOWS: dict[str, tuple[list[float], int]] = {"gaussian": (_gaussian(5, 1.5), 5), "block8": ([1 / 8] * 8, 3)}
