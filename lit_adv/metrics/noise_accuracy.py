"""Accuracy of several classifiers at several levels of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class NoiseAccuracy(Metric):
    """Shares of the images that each classifier gets right, without noise and at each level of each kind of noise.

    Args:
        classifiers: M names.
        kinds: N names of noise.
        levels: S of them, in any unit.
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    clean: Tensor
    noisy: Tensor
    total: Tensor

    def __init__(
        self, classifiers: Sequence[str], kinds: Sequence[str], levels: Sequence[float], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.classifiers, self.kinds, self.levels = list(classifiers), list(kinds), [float(each) for each in levels]
        shape = (len(self.classifiers), len(self.kinds), len(self.levels))
        self.add_state("clean", torch.zeros(shape[0], dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("noisy", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, clean: Tensor, noisy: Tensor) -> None:
        """Count a batch.

        Args:
            clean: ``(M, B)`` bool, which images are classified rightly.
            noisy: ``(M, N, S, B)`` bool, the same with noise.
        """
        self.clean = self.clean + clean.sum(-1)
        self.noisy = self.noisy + noisy.sum(-1)
        self.total = self.total + clean.shape[-1]

    def compute(self) -> dict[str, Any]:
        """Return shares in [0, 1], by classifier; None where there are no images.

        Returns:
            images: How many.
            levels: As given.
            classifiers: By name ``clean``, a number, and by kind of noise a list, one number a level.
        """
        images = int(self.total)
        found = {}
        for row, name in enumerate(self.classifiers):
            shares = {
                kind: [int(right) / images if images else None for right in self.noisy[row, column]]
                for column, kind in enumerate(self.kinds)
            }
            found[name] = {"clean": int(self.clean[row]) / images if images else None, **shares}
        return {"images": images, "levels": self.levels, "classifiers": found}
