"""Test images, each once."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DistributedSampler

from lit_adv.evaluation import pair


def fresh_pair(
    owner: str, trainer: pl.Trainer, batch: Any, batch_idx: int, dataloader_idx: int = 0
) -> tuple[Tensor, Tensor]:
    """Images and labels of a test batch, without those that a process has had before.

    Args:
        owner: Who asks; opens the error message.
        trainer: In a test.
        batch: The pair.
        batch_idx: Its number in its process.
        dataloader_idx: Its loader.

    Raises:
        ValueError: The batch is no pair of images and labels.
    """
    images, labels = pair(owner, batch)
    fresh = fresh_rows(trainer, len(images), batch_idx, dataloader_idx)
    return images[:fresh], labels[:fresh]


def fresh_rows(trainer: pl.Trainer, size: int, batch_idx: int, dataloader_idx: int = 0) -> int:
    """How many of a test batch's rows, from the first on, are images that no process has had before.

    With several processes Lightning gives a plain DataLoader a `DistributedSampler`, which repeats images until all
    processes have equally many: process r has every so many-th image from r on, and what lies beyond the last image is
    a repetition.

    Args:
        trainer: In a test.
        size: B, rows of the batch.
        batch_idx: Its number in its process.
        dataloader_idx: Its loader.
    """
    loaders: Any = trainer.test_dataloaders
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    loader = loaders[dataloader_idx] if isinstance(loaders, list | tuple) else loaders
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    rows = getattr(batches, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or rows is None:
        return size
    mine = -(-(len(sampler.dataset) - sampler.rank) // sampler.num_replicas)  # type: ignore[arg-type]
    return min(max(mine - batch_idx * rows, 0), size)
