"""How often the attack behind an image is named correctly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_adv.metrics.checks import ratio_dtype
from lit_adv.metrics.confusion import ConfusionCounts


class RecognitionAccuracy(ConfusionCounts):
    """Accuracy of attack recognition: per class, micro, macro, weighted, and the confusion matrix.

    A class of which no image was seen has accuracy nan and is left out of the macro and the weighted mean. Where all
    classes were seen, macro is the balanced accuracy. The weighted mean is `sum_c w_c acc_c / sum_c w_c`; with the
    weights 1:12:4:8:12:24 of clean, PGD, DeepFool, CW-L2, CW-Linf and Patch, the numbers of variants of an image, it is
    the "Total" of Souri et al. 2021 (REDRL, arXiv:2106.11280, Table 3) however many variants were shown here.

    Args:
        classes: Names of the A attack classes, in the order of their indices.
        weights: One weight >= 0 per class, by name or in the order of `classes`; None for no weighted mean.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `classes` repeats a name or `weights` does not fit it.
    """

    def __init__(
        self, classes: Sequence[str], weights: Mapping[str, float] | Sequence[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(classes, **kwargs)
        self.weights = None if weights is None else _weights(self.classes, weights)

    def compute(self) -> dict[str, Tensor | None]:
        """Return the accuracies of all images so far.

        Returns:
            micro: scalar, share of images recognised; nan if there are none.
            macro: scalar, mean of `per_class` over the classes seen; nan if there are none.
            weighted: scalar, weighted mean of `per_class` over the classes seen; None without `weights`.
            per_class: (A,) in [0, 1], nan where a class was never seen.
            counts: (A,) int64, images of each class.
            confusion: (A, A) int64, row: true class, column: recognised class.
        """
        dtype = ratio_dtype(self.confusion.device)
        counts, correct = self.confusion.sum(1), self.confusion.diagonal()
        per_class = correct.to(dtype) / counts.to(dtype)
        weighted = None
        if self.weights is not None:
            weights = torch.tensor(self.weights, dtype=dtype, device=counts.device) * (counts > 0)
            weighted = (weights * per_class.nan_to_num()).sum() / weights.sum()
        return {
            "micro": correct.sum().to(dtype) / counts.sum().to(dtype),
            "macro": per_class.nanmean(),
            "weighted": weighted,
            "per_class": per_class,
            "counts": counts,
            "confusion": self.confusion.clone(),
        }


def _weights(classes: tuple[str, ...], weights: Mapping[str, float] | Sequence[float]) -> tuple[float, ...]:
    if isinstance(weights, Mapping):
        if set(weights) != set(classes):
            raise ValueError(
                f"RecognitionAccuracy: weights must name every class once, got {sorted(weights)} "
                f"(the classes are {', '.join(classes)})"
            )
        weights = [weights[name] for name in classes]
    values = tuple(float(weight) for weight in weights)
    if len(values) != len(classes):
        raise ValueError(
            f"RecognitionAccuracy: weights must be as many as classes, got {len(values)} and {len(classes)} "
            f"(give one each for {', '.join(classes)})"
        )
    if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
        raise ValueError(
            f"RecognitionAccuracy: weights must be finite, >= 0 and not all 0, got {list(values)} "
            "(give numbers of images or shares)"
        )
    return values
