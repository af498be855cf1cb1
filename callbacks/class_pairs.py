"""One class that is attacked towards another."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lit_adv.attacks import Attack
from lit_adv.attacks.attack import predictions

Decision = Literal["pair", "all"]


class ClassPair:
    """A classifier that has to tell a source class from a target class, or from all.

    Args:
        model: From images to logits of all classes.
        source: The class whose images are attacked.
        target: The class that the attack aims at.
        decision: ``pair`` reads the logits of the two classes alone, the binary problem of the paper; ``all`` reads
            every class and aims the attack at the target.

    Attributes:
        model: The classifier as it is read, to two logits or to all.
    """

    def __init__(self, model: nn.Module, source: int, target: int, decision: Decision = "pair") -> None:
        self.source = source
        self.target = target
        self.decision = decision
        self.model = _TwoLogits(model, source, target) if decision == "pair" else model

    def labels(self, images: Tensor, *, target: bool = False) -> Tensor:
        """The source class, or the target's, of every image as the model numbers them: ``(B,)`` int64."""
        number = int(target) if self.decision == "pair" else (self.target if target else self.source)
        return torch.full((len(images),), number, dtype=torch.int64, device=images.device)

    def attacked(self, attack: Attack, images: Tensor, seed: int, model: nn.Module | None = None) -> Tensor:
        """Images of the source class after an attack on the model, or on a ``model`` around it."""
        # of two classes leaving one is reaching the other
        targets = None if self.decision == "pair" else self.labels(images, target=True)
        return attack(model or self.model, images, self.labels(images), targets=targets, seed=seed)

    def right(self, images: Tensor, *, target: bool = False) -> Tensor:
        """Which images the model takes for the source class, or for the target's: ``(B,)`` bool."""
        return predictions(self.model, images) == self.labels(images, target=target)


class _TwoLogits(nn.Module):
    """The logits of two classes of a classifier, the source's first."""

    def __init__(self, model: nn.Module, source: int, target: int) -> None:
        super().__init__()
        self.model = model
        self.classes = [source, target]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)[:, self.classes]
        return logits
