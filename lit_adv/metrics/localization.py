"""Does a perturbation sit where the classifier looks? Scores of the noise map against the class activation map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_tensors, ratio_dtype

Channel = Literal["mean", "any", "each"]
Undefined = Literal["skip", "zero"]

# 0.01, 0.02, ..., 0.5
THRESHOLDS = tuple(step / 100 for step in range(1, 51))


class LocalizationScores(Metric):
    """SSIM precision: how the pixels that an attack perturbs lie to those that the classifier looks at.

    N are the pixels whose noise ``1 - SSIM`` is above a threshold, G those whose class activation is above
    `cam_threshold`. With TP = \\|N & G\\|, FP = \\|N & ~G\\|, FN = \\|~N & G\\|, TN the rest, each image has

    - ``precision`` TP / (TP + FP), undefined where N is empty,
    - ``recall`` TP / (TP + FN), undefined where G is empty,
    - ``iou`` TP / (TP + FP + FN), undefined where both are empty,
    - ``iou_outside`` FP / (TP + FP + TN), the IoU of N and ~G, 0 where N is empty and G is everything,
    - ``pixels`` (TP + FP) / (H W),

    at every threshold, all counted in one pass over the pixels. The metric averages them over the images seen.

    Args:
        thresholds: Of the noise, ascending; None takes 0.01, 0.02, ..., 0.5.
        cam_threshold: Of the class activation, in [0, 1).
        channel: The noise of a pixel is the ``mean`` of its channels' or the largest (``any`` channel above the
            threshold); with ``each``, every channel is scored by itself and counts as an image of its own.
        undefined: ``skip`` leaves undefined scores out of their mean, ``zero`` counts them as 0.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If an argument is out of range.
    """

    SCORES = ("precision", "recall", "iou", "iou_outside", "pixels")

    full_state_update = False
    is_differentiable = False
    sums: Tensor
    defined: Tensor
    total: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] | None = None,
        cam_threshold: float = 0.75,
        channel: Channel = "mean",
        undefined: Undefined = "skip",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.thresholds = check_localization("LocalizationScores", thresholds, cam_threshold, channel, undefined)
        self.cam_threshold = cam_threshold
        self.channel = channel
        self.undefined = undefined
        size = len(self.thresholds), len(self.SCORES)
        self.add_state("sums", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("defined", torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, ssim: Tensor, cam: Tensor) -> None:
        """Count a batch; an empty one is fine.

        Args:
            ssim: ``(B, C, H, W)`` from `ssim_map`.
            cam: ``(B, H, W)`` in [0, 1], from `grad_cam_plus_plus`.

        Raises:
            ValueError: If a shape is of another kind or they do not fit.
        """
        found = localization_scores(ssim, cam, self.thresholds, self.cam_threshold, self.channel)
        scores = torch.stack([found[name] for name in self.SCORES], -1)
        self.sums = self.sums + scores.nan_to_num(0.0).to(self.sums.dtype).sum(0)
        self.defined = self.defined + (~scores.isnan()).sum(0)
        self.total = self.total + len(scores)

    def compute(self) -> dict[str, Any]:
        """Return the curves over the T thresholds.

        Returns:
            The five scores by name, ``(T,)`` in [0, 1], nan where there is nothing to take a mean of; ``thresholds``
            ``(T,)``; ``counts``, by the same names, ``(T,)`` int64: images whose score is defined; ``images``, a scalar
            int64: all images, times channels for ``channel="each"``. With a single threshold torchmetrics makes scalars
            of all of them.
        """
        images = self.defined if self.undefined == "skip" else self.total.expand_as(self.defined)
        means = self.sums / images
        return {
            "thresholds": torch.tensor(self.thresholds, dtype=self.sums.dtype, device=self.sums.device),
            **dict(zip(self.SCORES, means.unbind(1), strict=True)),
            "counts": dict(zip(self.SCORES, self.defined.clone().unbind(1), strict=True)),
            "images": self.total.clone(),
        }


def localization_scores(
    ssim: Tensor,
    cam: Tensor,
    thresholds: Sequence[float] = THRESHOLDS,
    cam_threshold: float = 0.75,
    channel: Channel = "mean",
) -> dict[str, Tensor]:
    """The scores of each image at every noise threshold; see `LocalizationScores`.

    Every pixel is put between two thresholds, and counts of pixels inside and outside G are summed from the highest
    threshold down: one pass over the pixels for all T together.

    Args:
        ssim: ``(B, C, H, W)``.
        cam: ``(B, H, W)``.
        thresholds: T ascending numbers.
        cam_threshold: Of the class activation.
        channel: ``mean``, ``any`` or ``each``.

    Returns:
        ``precision``, ``recall``, ``iou``, ``iou_outside``, ``pixels``: ``(B, T)``, or ``(B C, T)`` for ``each``; nan
        where a score is undefined.
    """
    _check_maps(ssim, cam)
    noise = 1 - ssim
    looked = cam > cam_threshold
    if channel == "each":
        noise, looked = noise.flatten(0, 1), looked.repeat_interleave(ssim.shape[1], 0)
    else:
        noise = noise.mean(1) if channel == "mean" else noise.amax(1)
    steps, dtype = len(thresholds), ratio_dtype(noise.device)
    level = _exceeded(noise, thresholds)
    image = torch.arange(len(noise), dtype=torch.int32, device=noise.device)[:, None, None]
    cells = (2 * image + looked) * (steps + 1) + level
    counts = torch.bincount(cells.flatten(), minlength=2 * len(noise) * (steps + 1)).view(len(noise), 2, steps + 1)
    above = counts.flip(-1).cumsum(-1).flip(-1)  # pixels that exceed at least so many
    false, true = above[..., 1:].to(dtype).unbind(1)
    outside, inside = above[..., :1].to(dtype).unbind(1)
    return {
        "precision": true / (true + false),
        "recall": true / inside,
        "iou": true / (inside + false),
        # TP + FP + TN are N and what lies outside G together
        "iou_outside": torch.where(true + outside > 0, false / (true + outside), 0.0),
        "pixels": (true + false) / (inside + outside),
    }


def check_localization(
    owner: str, thresholds: Sequence[float] | None, cam_threshold: float, channel: str, undefined: str
) -> tuple[float, ...]:
    """Return the thresholds; ValueError where an argument of `LocalizationScores` is out of range."""
    if isinstance(thresholds, int | float):
        raise ValueError(f"{owner}: thresholds must be a sequence of numbers, got {thresholds} (put it into a list)")
    thresholds = THRESHOLDS if thresholds is None else tuple(float(value) for value in thresholds)
    if not thresholds or not all(0 <= value < 2 for value in thresholds) or list(thresholds) != sorted(set(thresholds)):
        raise ValueError(
            f"{owner}: thresholds must be one or more ascending numbers in [0, 2), got {list(thresholds)} "
            "(of the noise, 1 - SSIM)"
        )
    if not 0 <= cam_threshold < 1:
        raise ValueError(f"{owner}: cam_threshold must be in [0, 1), got {cam_threshold} (class activations are)")
    for field, value, known in (("channel", channel, Channel), ("undefined", undefined, Undefined)):
        if value not in get_args(known):
            raise ValueError(f"{owner}: {field} must be one of {', '.join(get_args(known))}, got {value!r}")
    return thresholds


def _exceeded(noise: Tensor, thresholds: Sequence[float], cells: int = 1024) -> Tensor:
    """How many thresholds each pixel's noise exceeds, int32; as a binary search would tell, but by tables.

    Noise and thresholds are put into the same cells of [0, 2] by one monotonic function: thresholds of lower cells are
    exceeded, and those of the pixel's own cell, seldom more than one, are compared.
    """

    def cell(values: Tensor) -> Tensor:
        # the second clamp is for NaN, which exceeds nothing
        return (values * (cells / 2)).clamp(0, cells - 1).int().clamp_(0, cells - 1)

    bounds = torch.tensor(thresholds, dtype=noise.dtype)
    place = cell(bounds).long()
    lower = torch.searchsorted(place, torch.arange(cells))
    order = torch.arange(len(bounds)) - lower[place]
    own = torch.full((int(order.max()) + 1, cells), torch.inf, dtype=noise.dtype)
    own[order, place] = bounds
    here = cell(noise).flatten()
    level = lower.int().to(noise.device).index_select(0, here).view_as(noise)
    for limits in own.to(noise.device):
        level += noise > limits.index_select(0, here).view_as(noise)
    return level


def _check_maps(ssim: Tensor, cam: Tensor) -> None:
    check_tensors("LocalizationScores", {"ssim": ssim, "cam": cam})
    if ssim.ndim != 4 or not ssim.is_floating_point() or 0 in ssim.shape[1:]:
        raise ValueError(
            f"LocalizationScores: ssim must be a floating-point map (B, C, H, W), got {ssim.dtype} of shape "
            f"{tuple(ssim.shape)} (as ssim_map makes it)"
        )
    if cam.shape != ssim[:, 0].shape or not cam.is_floating_point():
        raise ValueError(
            f"LocalizationScores: cam must be a floating-point map {tuple(ssim[:, 0].shape)}, got {cam.dtype} of shape "
            f"{tuple(cam.shape)} (as grad_cam makes it, for the same images)"
        )
