"""One blob of one class pair, and what has been found about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.explain.regions import shares
from lit_adv.metrics import MeanSSIM, NeutralizationScore, ssim

from .blob_search import Choice, Point
from .class_pairs import ClassPair


@dataclass
class BlobRow:
    """A row of the table of `Neutralization`.

    Args:
        pair: The classes.
        chosen: How the blob was: ``given``, ``pair`` or ``all``.
        choice: The blob.
        given: Thresholds of the regions shown where nothing is blocked.
        empty_maps: Share of the images, among those that the regions are taken of, without any class activation.
        blocks: Whether the blob has a pixel.
        scores: The accuracies.
        similarity: SSIM of RoI and RoA.
        masked: In how many images each pixel lies in RoI and in RoA, ``(2, H, W)`` int64.
    """

    pair: ClassPair
    chosen: str
    choice: Choice
    given: Point
    empty_maps: float
    blocks: bool
    scores: NeutralizationScore
    similarity: MeanSSIM
    masked: Tensor

    @classmethod
    def new(
        cls,
        pair: ClassPair,
        chosen: str,
        choice: Choice,
        given: Point,
        empty_maps: float,
        scores: Sequence[str],
        confidence: float,
        device: torch.device,
    ) -> BlobRow:
        """A row without any image, on a device."""
        counted = NeutralizationScore(scores, confidence).to(device)
        # a process may get no image of this class
        counted.update({})
        similarity = MeanSSIM().to(device)
        size = choice.blob.shape
        similarity.update(*torch.zeros(2, 0, 1, *size, device=device))
        masked = torch.zeros(2, *size, dtype=torch.int64, device=device)
        return cls(pair, chosen, choice, given, empty_maps, bool(choice.blob.any()), counted, similarity, masked)

    @property
    def about(self) -> str:
        """The thresholds in words."""
        point = self.choice.point
        return "nothing" if point is None else " ".join(f"{number:g}".removeprefix("0") or "0" for number in point)

    def masks(self, importance: Tensor, attack: Tensor) -> tuple[Tensor, Tensor]:
        """RoI and RoA of a batch; at the given thresholds where nothing is blocked."""
        point = self.choice.point or self.given
        return importance >= point.delta1, attack >= point.delta2

    def compare(self, roi: Tensor, roa: Tensor) -> None:
        """Counts the masks of a batch, ``(B, H, W)`` bool each."""
        self.similarity.update(roi[:, None].float(), roa[:, None].float())
        self.masked = self.masked + torch.stack([roi.sum(0), roa.sum(0)])

    def result(self, trainer: pl.Trainer, names: Sequence[str]) -> dict[str, Any]:
        """What all processes have found together, by field; a collective call.

        Args:
            trainer: In a test.
            names: Of the classes.
        """
        scores = self.scores.compute()
        similarity = float(self.similarity.compute())
        images = scores["clean"]["images"]
        masked = shares(total(trainer, self.masked), max(images, 1))
        point = self.choice.point
        return {
            "source": names[self.pair.source],
            "target": names[self.pair.target],
            "chosen": self.chosen,
            **dict(zip(("delta1", "delta2", "theta"), point or (None, None, None), strict=True)),
            "area": float(self.choice.blob.double().mean()),
            "empty_maps": self.empty_maps,
            "images": images,
            "target_images": scores["target_clean"]["images"],
            "scores": scores,
            "ssim_samples": similarity if images and point else None,
            "ssim_representatives": float(ssim(*masked[:, None, None])) if images and point else None,
        }


def same_blobs(rows: Sequence[BlobRow]) -> list[list[BlobRow]]:
    """The rows in lists, each of one pair and one blob."""
    groups: list[list[BlobRow]] = []
    for row in rows:
        alike = (
            group
            for group in groups
            if group[0].pair is row.pair and torch.equal(group[0].choice.blob, row.choice.blob)
        )
        group = next(alike, None)
        if group is None:
            groups.append([row])
        else:
            group.append(row)
    return groups


def total(trainer: pl.Trainer, tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    found: Tensor = trainer.strategy.reduce(tensor.clone(), reduce_op="sum")
    return found
