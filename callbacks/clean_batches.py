"""Clean images and labels of a data module's splits, outside the trainer's own loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.data.datasets import ImageDataset
from lit_adv.data.sampling import rank_and_world
from lit_adv.evaluation import pair

from .repeats import fresh_pair


class TrainingBatches:
    """This process's share of the training images, each once, without augmentation; may be gone through several times.

    Of a data module other than `ImageDataModule` they are those of ``train_dataloader()``, which must show each image
    once, as it is, and in the same order in all processes. A batch may hold no image of this process.

    Args:
        owner: Who asks; opens the error messages.
        trainer: In a test.
        otherwise: What to do where there is no data module; closes the error message.

    Raises:
        ValueError: There is no data module, or it is one of adversarial images; in the iteration, batches of another
            kind.
    """

    def __init__(self, owner: str, trainer: pl.Trainer, otherwise: str) -> None:
        self.owner = owner
        self.data: Any = getattr(trainer, "datamodule", None)
        if self.data is None:
            raise ValueError(
                f"{owner}: the data must be a data module with training images, which are needed here, got loaders "
                f"({otherwise})"
            )
        check_clean(owner, trainer)
        # once: a module that splits its images at random would deal anew
        self.data.setup("fit")
        dataset = getattr(self.data, "train_dataset", None)
        # a subset is not augmented
        self.dataset = dataset.subset(torch.arange(len(dataset))) if isinstance(dataset, ImageDataset) else None
        self.loader: Any = self.data.train_dataloader() if self.dataset is None else []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, ranks = rank_and_world()
        if self.dataset is not None:
            mine = range(rank, len(self.dataset), ranks)
            for start in range(0, len(mine), self.data.eval_batch_size):
                yield self.dataset.batch(mine[start : start + self.data.eval_batch_size])
            return
        before = 0
        for images, labels in self._pairs():
            # every so many-th image, so that a process has its part of a single batch too
            first = (rank - before) % ranks
            before += len(images)
            yield images[first::ranks], labels[first::ranks]

    def whole(self) -> tuple[Tensor, Tensor]:
        """The images and labels of all processes, on the CPU unless a loader has them elsewhere."""
        if self.dataset is not None:
            return self.dataset.batch(range(len(self.dataset)))
        images, labels = zip(*self._pairs(), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            yield pair(self.owner, batch)


def test_batches(owner: str, trainer: pl.Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the test images, each once, as many batches as the test itself takes."""
    loaders: Any = trainer.test_dataloaders
    limits = trainer.num_test_batches
    for place, loader in enumerate(loaders if isinstance(loaders, list | tuple) else [loaders]):
        for number, batch in enumerate(loader):
            if number >= limits[place]:
                break
            yield fresh_pair(owner, trainer, batch, number, place)


def check_clean(owner: str, trainer: pl.Trainer) -> None:
    """Raises ValueError where the data module is one of adversarial images."""
    if hasattr(getattr(trainer, "datamodule", None), "attack_classes"):
        raise ValueError(
            f"{owner}: the data must be clean pairs (images, labels), got an AdversarialDataModule (give its source: "
            "the callback attacks by itself)"
        )
