"""Peak signal-to-noise ratio of perturbed images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_pairs, ratio_dtype


class MeanPSNR(Metric):
    """Peak signal-to-noise ratio of images and their perturbed versions, averaged over a data set in dB (see `psnr`).

    Identical images have no finite ratio: they are counted, and enter the mean, as does all above it, with `cap`.

    Args:
        cap: Largest ratio of an image in the mean, in dB, > 0.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `cap` is not above 0.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    ratio: Tensor
    identical: Tensor
    total: Tensor

    def __init__(self, cap: float = 100.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < cap < float("inf"):
            raise ValueError(f"MeanPSNR: cap must be finite and above 0 dB, got {cap}")
        self.cap = cap
        self.add_state("ratio", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("identical", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, clean: Tensor, adversarial: Tensor) -> None:
        """Count a batch of images ``(B, C, H, W)`` in [0, 1]; an empty one is fine.

        Raises:
            ValueError: If the shapes are of another kind or differ.
        """
        ratio = psnr(clean, adversarial)
        self.ratio = self.ratio + ratio.clamp(max=self.cap).to(self.ratio.dtype).sum()
        self.identical = self.identical + ratio.isposinf().sum()
        self.total = self.total + len(clean)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean and what it is of.

        Returns:
            psnr: scalar in dB; nan if there are no images.
            identical: scalar int64, images that are equal to their perturbed version, bit for bit.
            images: scalar int64.
        """
        return {"psnr": self.ratio / self.total, "identical": self.identical.clone(), "images": self.total.clone()}


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """``10 log10(1 / MSE)`` of each image, with the mean over channels and pixels, for images in [0, 1].

    Args:
        x: ``(B, C, H, W)`` in [0, 1].
        y: The same shape.

    Returns:
        ``(B,)`` in dB, inf for identical images; in float64 (float32 where the device has no float64).

    Raises:
        ValueError: If the shapes are of another kind or differ.
    """
    check_pairs("psnr", {"x": x, "y": y})
    dtype = ratio_dtype(x.device)
    return -10 * (x.to(dtype) - y.to(dtype)).square().flatten(1).mean(1).log10()
