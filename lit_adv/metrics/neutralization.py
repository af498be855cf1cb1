"""What neutralised pixels do to a classifier's accuracy, with and without an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_names, ratio_dtype


class NeutralizationScore(Metric):
    """Accuracies of one classifier on several versions of the same images, each with its Wilson interval.

    The versions are named by what was done to the images, by default `SCORES`; see the callback ``Neutralization``.
    Counts are summed, so that several processes give the numbers of one.

    Args:
        scores: Names of the versions.
        confidence: Of the intervals, in (0, 1).
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: No scores, a name that is there twice, or a confidence out of range.
    """

    SCORES = ("clean", "adversarial", "modified", "modified_adversarial", "reneutralised")

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    right: Tensor
    images: Tensor

    def __init__(self, scores: Sequence[str] = SCORES, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scores = check_names("NeutralizationScore", "scores", scores)
        _check_confidence("NeutralizationScore", confidence)
        self.confidence = confidence
        for name in ("right", "images"):
            self.add_state(name, torch.zeros(len(self.scores), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, right: Mapping[str, Tensor]) -> None:
        """Count a batch; a score may be missing, or be of other images than the rest.

        Args:
            right: By score, ``(B,)`` bool: on which images the classifier is right.

        Raises:
            ValueError: An unknown score, or something else than a bool vector.
        """
        for name, hits in right.items():
            if name not in self.scores:
                raise ValueError(f"NeutralizationScore: right must be of {', '.join(self.scores)}, got {name!r}")
            if not isinstance(hits, Tensor) or hits.dtype != torch.bool or hits.ndim != 1:
                got = f"{hits.dtype} of shape {tuple(hits.shape)}" if isinstance(hits, Tensor) else type(hits).__name__
                raise ValueError(
                    f"NeutralizationScore: right[{name!r}] must be bool of shape (B,), got {got} (logits.argmax(1) == "
                    "labels)"
                )
        none = self.images.new_zeros(())
        counted = {name: each.sum() for name, each in right.items()}
        sizes = {name: none + len(each) for name, each in right.items()}
        # not in place: Lightning may have reset these in inference mode
        self.right = self.right + torch.stack([counted.get(name, none) for name in self.scores])
        self.images = self.images + torch.stack([sizes.get(name, none) for name in self.scores])

    def compute(self) -> dict[str, dict[str, Any]]:
        """By score ``accuracy``, ``low`` and ``high`` in [0, 1], None where there was no image, and ``images``."""
        low, high = wilson_interval(self.right, self.images, self.confidence)
        found = {}
        for place, name in enumerate(self.scores):
            images = int(self.images[place])
            numbers = (int(self.right[place]) / images, float(low[place]), float(high[place])) if images else [None] * 3
            found[name] = {**dict(zip(("accuracy", "low", "high"), numbers, strict=True)), "images": images}
        return found


def wilson_interval(right: Tensor, images: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Wilson's score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209), which holds near 0 and 1 too.

    With p = k/n and z the normal quantile, ``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``.

    Args:
        right: k, counts of any shape.
        images: n, the same shape.
        confidence: In (0, 1).

    Returns:
        The lower and the upper end, in [0, 1]; NaN where n is 0.

    Raises:
        ValueError: The confidence is out of range.
    """
    _check_confidence("wilson_interval", confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    dtype = ratio_dtype(images.device)
    n = images.to(dtype)
    share = right.to(dtype) / n
    middle = share + z**2 / (2 * n)
    half = z * (share * (1 - share) / n + (z / (2 * n)) ** 2).sqrt()
    scale = 1 + z**2 / n
    # rounding must not push an end over the share itself
    low = torch.where(right == 0, 0.0, (middle - half) / scale)
    high = torch.where(right == images, 1.0, (middle + half) / scale)
    unknown = images == 0
    return low.masked_fill(unknown, torch.nan), high.masked_fill(unknown, torch.nan)


def _check_confidence(owner: str, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"{owner}: confidence must be in (0, 1), got {confidence} (0.95 is usual)")
