"""What a classifier's confidence is worth: temperature scaling, a threshold below which it says nothing, and scores."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_adv.metrics.checks import check_indices, check_tensors, ratio_dtype

# where the labels are farther from the logits than chance, no temperature is high enough
_HOTTEST = 100.0


class Calibration(NamedTuple):
    """How logits become probabilities, and which of them are answers.

    Attributes:
        temperature: Logits are divided by it, > 0.
        threshold: The least confidence (largest probability) of an answer, in [0, 1]; below it lies ``unknown``.
        coverage: The share of answers that was asked for.
        achieved: The share of answers among the images that it was fitted on, at least ``coverage``.
        images: How many those were.
    """

    temperature: float
    threshold: float
    coverage: float
    achieved: float
    images: int


class LogitCalibration(Metric):
    """Fits temperature and threshold to all logits seen: temperature scaling (Guo et al. 2017, arXiv:1706.04599, 4.2).

    Keeps the logits, and gathers them from all processes: the fit is that of one process.

    Args:
        coverage: The share of the images that shall be answered, in (0, 1].
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `coverage` is out of range.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, coverage: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < coverage <= 1:
            raise ValueError(f"LogitCalibration: coverage must be in (0, 1], got {coverage} (the share to be answered)")
        self.coverage = coverage
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keep a batch: logits (B, A) of any floating dtype, labels (B,) integers in [0, A)."""
        _check("LogitCalibration", "logits", logits, labels)
        self.logits.append(logits.detach().float())
        self.labels.append(labels.detach().long())

    def compute(self) -> Calibration:
        """Return the calibration.

        Raises:
            ValueError: If nothing was seen, or logits are not finite.
        """
        if isinstance(self.logits, list) and not self.logits:
            raise ValueError("LogitCalibration: needs logits to fit to, got none (call update first)")
        logits, labels = dim_zero_cat(self.logits), dim_zero_cat(self.labels)
        temperature = fit_temperature(logits, labels)
        confidence = calibrated(logits, temperature).amax(1)
        threshold = threshold_for(confidence, self.coverage)
        achieved = float((confidence >= threshold).double().mean())
        return Calibration(temperature, threshold, self.coverage, achieved, len(labels))


class AnsweredAccuracy(Metric):
    """Coverage, accuracy of the answers and calibration error, at a threshold on the confidence.

    The expected calibration error is the mean difference of confidence and accuracy over bins of equal width (Guo et
    al. 2017, equation 3), of all images, answered or not.

    Args:
        threshold: The least confidence of an answer.
        bins: Number of bins.
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor
    sums: Tensor

    def __init__(self, threshold: float = 0.0, bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bins < 1:
            raise ValueError(f"AnsweredAccuracy: bins must be at least 1, got {bins}")
        self.threshold = threshold
        self.bins = bins
        # images, right ones, answers, right answers, a bin
        self.add_state("counts", torch.zeros(bins, 4, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(bins, dtype=ratio_dtype(self.device)), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch: probabilities (B, A) with rows that sum to 1, labels (B,) integers in [0, A)."""
        _check("AnsweredAccuracy", "probabilities", probabilities, labels)
        confidence, prediction = probabilities.max(1)
        right, answered = prediction == labels, confidence >= self.threshold
        which = (confidence * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)
        columns = torch.stack([torch.ones_like(right), right, answered, right & answered], 1)
        self.counts = self.counts.index_add(0, which, columns.long())
        self.sums = self.sums.index_add(0, which, confidence.to(self.sums.dtype))

    def compute(self) -> dict[str, Tensor]:
        """Return scalars, nan where there is nothing to divide by.

        Returns:
            images: int64, how many were seen.
            coverage: share of the images that were answered.
            accuracy_answered: share of the answers that were right.
            accuracy: share of the images whose most likely class was right, answered or not.
            calibration_error: the expected calibration error, in [0, 1].
        """
        dtype = self.sums.dtype
        images, right, answered, right_answered = self.counts.sum(0).to(dtype)
        gaps = (self.counts[:, 1].to(dtype) - self.sums).abs().sum()
        return {
            "images": self.counts[:, 0].sum(),
            "coverage": answered / images,
            "accuracy_answered": right_answered / answered,
            "accuracy": right / images,
            "calibration_error": gaps / images,
        }


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the mean negative log-likelihood of the labels, by Newton's method in float64.

    The likelihood is convex in the inverse temperature, so that there is one minimum. Without a single mistake among
    the images it would lie at temperature 0; the labels are then smoothed by 1 / (N + 1), as if one more image had a
    label drawn by chance. Where the labels fit worse than chance, it is 100.

    Args:
        logits: (N, A).
        labels: (N,) integers in [0, A).

    Raises:
        ValueError: If there are no logits, or some are not finite.
    """
    if not len(logits) or not bool(torch.isfinite(logits).all()):
        what = "none" if not len(logits) else "inf or NaN"
        raise ValueError(f"fit_temperature: logits must be finite and at least one row, got {what} (train anew)")
    z = logits.detach().to("cpu", torch.float64)
    z = z - z.amax(1, keepdim=True)
    wanted = z.gather(1, labels.cpu().long()[:, None])[:, 0]
    if not bool(wanted.any()):
        smoothing = 1 / (len(z) + 1)
        wanted = smoothing * z.mean(1)
    goal = wanted.mean()

    def derivatives(inverse: float) -> tuple[float, float]:
        p = (inverse * z).softmax(1)
        mean = (p * z).sum(1)
        return float(mean.mean() - goal), float(((p * z * z).sum(1) - mean.square()).mean())

    low, high = 1 / _HOTTEST, 1.0
    if derivatives(low)[0] >= 0:
        return _HOTTEST
    while derivatives(high)[0] < 0:
        low, high = high, 2 * high
    inverse = (low + high) / 2
    for _ in range(200):
        slope, curvature = derivatives(inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.nan
        step = step if low <= step <= high else (low + high) / 2
        done = abs(step - inverse) <= 1e-14 * inverse
        inverse = step
        if done:
            break
    return 1 / inverse


def calibrated(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities (B, A), in the widest floating dtype of the device."""
    return (logits.detach().to(ratio_dtype(logits.device)) / temperature).softmax(1)


def threshold_for(confidence: Tensor, coverage: float) -> float:
    """The largest threshold at or above which at least a share `coverage` of the confidences (N,) lies."""
    ordered = confidence.sort().values
    # the rounding of 1 - 0.95 must not cost an image
    below = math.floor((1 - coverage) * len(ordered) + 1e-9)
    return float(ordered[min(below, len(ordered) - 1)])


def _check(owner: str, name: str, scores: Tensor, labels: Tensor) -> None:
    check_tensors(owner, {name: scores, "labels": labels})
    if labels.ndim != 1 or scores.ndim != 2 or not scores.is_floating_point() or len(scores) != len(labels):
        raise ValueError(
            f"{owner}: {name} must be floating-point (B, A) with one label a row, got {scores.dtype} of shape "
            f"{tuple(scores.shape)} and labels of shape {tuple(labels.shape)}"
        )
    check_indices(owner, {"labels": labels}, {"labels": (scores.shape[1], f"indices into the columns of {name}")})
