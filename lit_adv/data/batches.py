"""Which image goes into which batch, on which rank: known from the seed alone, resumable, and nothing counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

Keys = list[Any]


class EpochBatches(DistributedSampler[Keys]):
    """Whole batches of one epoch, as lists of keys; a subclass says which keys.

    Every rank makes the plan of all ranks and takes its share, so that what is drawn does not depend on their number as
    long as the ranks' batches add up to the same size. It is a DistributedSampler by name only, which is what tells
    Lightning to leave it alone and to give it the epoch.
    """

    def __init__(self, dataset: Dataset[Any], ranks: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank)
        self.start = 0

    def plan(self) -> list[Keys]:
        """All batches of this rank in the current epoch."""
        raise NotImplementedError(f"{type(self).__name__} must say which batches an epoch has")

    def __iter__(self) -> Iterator[Keys]:
        batches = self.plan()
        start, self.start = self.start, 0  # only the epoch that was interrupted starts in its middle
        return iter(batches[start if start < len(batches) else 0 :])


class ShuffledBatches(EpochBatches):
    """Every index once an epoch, shuffled by (seed, epoch); at its end, fewer images than ranks are left out."""

    def __init__(self, dataset: Dataset[Any], batch_size: int, seed: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, ranks, rank)
        self.count = _length(dataset)
        self.batch_size = batch_size
        self.shuffle_seed = seed

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size * self.num_replicas)
        return full + (rest >= self.num_replicas)

    def plan(self) -> list[Keys]:
        order = np.random.default_rng([self.shuffle_seed, self.epoch, 0]).permutation(self.count)
        step = self.batch_size * self.num_replicas
        return [
            self.keys(order[g * step : (g + 1) * step], g)[self.rank :: self.num_replicas] for g in range(len(self))
        ]

    def keys(self, indices: np.ndarray, batch: int) -> Keys:
        """The keys of one batch of all ranks together."""
        return [int(index) for index in indices]


class OrderedBatches(EpochBatches):
    """Every key once over all ranks, none twice; every rank has the same number of batches, which may differ in size.

    With equal numbers of batches no rank waits for another in a collective, and without padding no sample counts twice.
    """

    def __init__(self, dataset: Dataset[Any], count: int, batch_size: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, ranks, rank)
        if count < ranks:
            raise ValueError(f"evaluation needs at least one sample for each rank, got {count} for {ranks} ranks")
        self.count = count
        self.batch_size = batch_size

    def __len__(self) -> int:
        most = -(-self.count // self.num_replicas)
        return -(-most // self.batch_size)

    def plan(self) -> list[Keys]:
        mine = np.arange(self.rank, self.count, self.num_replicas)
        return [self.keys(part) for part in np.array_split(mine, len(self))]

    def keys(self, positions: np.ndarray) -> Keys:
        """The keys at some positions of the whole list."""
        return [int(position) for position in positions]


class ResumableLoader(DataLoader[Any]):
    """A loader of `EpochBatches` that Lightning can resume in the middle of an epoch.

    Args:
        dataset: Gives a collated batch for a list of keys.
        sampler: The batches.
        num_workers: As in DataLoader.
        progress: How many batches of the running epoch have been trained on; what a checkpoint stores.
        pin_memory: As in DataLoader.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochBatches,
        num_workers: int = 0,
        progress: Callable[[], int] | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
        )
        self.progress = progress

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.progress() if self.progress is not None else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.start = int(state["batches"])  # type: ignore[attr-defined]


def batches_trained(trainer: Any) -> int:
    """Batches of the running epoch whose training step has ended, as Lightning counts them when it resumes."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed)


def _length(dataset: Dataset[Any]) -> int:
    if not isinstance(dataset, Sized):
        raise ValueError(f"{type(dataset).__name__} must have a length (iterable data sets cannot be shuffled by seed)")
    return len(dataset)
