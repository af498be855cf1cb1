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


def training_batches(owner: str, trainer: pl.Trainer, otherwise: str) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the training images, each once, without augmentation.

    Of a data module other than `ImageDataModule` it is the batches of ``train_dataloader()``, which must show each
    image once, as it is, and in the same order in all processes.

    Args:
        owner: Who asks; opens the error message.
        trainer: In a test.
        otherwise: What to do where there is no data module; closes the error message.

    Raises:
        ValueError: There is no data module, or its batches are of another kind.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if data is None:
        raise ValueError(
            f"{owner}: the data must be a data module with training images, which the regions are of, got loaders "
            f"(or {otherwise})"
        )
    data.setup("fit")
    rank, ranks = rank_and_world()
    dataset = getattr(data, "train_dataset", None)
    if isinstance(dataset, ImageDataset):
        # a subset is not augmented
        plain = dataset.subset(torch.arange(len(dataset)))
        mine = range(rank, len(plain), ranks)
        for start in range(0, len(mine), data.eval_batch_size):
            yield plain.batch(mine[start : start + data.eval_batch_size])
        return
    for number, batch in enumerate(data.train_dataloader()):
        if number % ranks == rank:
            yield pair(owner, batch)


def test_batches(owner: str, trainer: pl.Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the test images, each once."""
    loaders: Any = trainer.test_dataloaders
    for place, loader in enumerate(loaders if isinstance(loaders, list | tuple) else [loaders]):
        for number, batch in enumerate(loader):
            yield fresh_pair(owner, trainer, batch, number, place)
