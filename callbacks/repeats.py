"""Which test images are there twice."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DistributedSampler


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
