"""Which image goes into which batch, on which rank: known from the seed alone, resumable, and nothing counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

Keys = list[Any]


class EpochBatches(DistributedSampler[Keys]):
    """Whole batches of one epoch, as lists of keys, each made when it is asked for; a subclass says which keys.

    Every rank knows the batches of all ranks and takes its share, so that what is drawn does not depend on their number
    as long as the ranks' batches add up to the same size. It is a DistributedSampler by name only, which is what tells
    Lightning to leave it alone and to give it the epoch.
    """

    def __init__(self, dataset: Dataset[Any], ranks: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank)
        self.start = 0

    def plan(self, start: int) -> Iterator[Keys]:
        """This rank's batches in the current epoch, from one on."""
        raise NotImplementedError(f"{type(self).__name__} must say which batches an epoch has")

    def __iter__(self) -> Iterator[Keys]:
        # a generator, since a loader with workers asks for an iterator twice and uses the second
        start, self.start = self.start, 0  # only the epoch that was interrupted starts in its middle
        yield from self.plan(start if start < len(self) else 0)


class ShuffledBatches(EpochBatches):
    """Every index once an epoch, shuffled by (seed, epoch); at its end, fewer keys than ranks are left out.

    Args:
        dataset: Has the indices.
        batch_size: Most keys a batch of one rank has.
        seed: Of the order.
        ranks: Number of ranks.
        rank: This one.
        versions: How many keys a subclass makes of each index.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, seed: int, ranks: int = 1, rank: int = 0, versions: int = 1
    ) -> None:
        super().__init__(dataset, ranks, rank)
        self.count = _length(dataset)
        self.step = batch_size * ranks // versions
        self.versions = versions
        self.shuffle_seed = seed

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.step)
        return full + (rest * self.versions >= self.num_replicas)

    def plan(self, start: int) -> Iterator[Keys]:
        order = np.random.default_rng([self.shuffle_seed, self.epoch, 0]).permutation(self.count)
        for number in range(start, len(self)):
            keys = self.keys(order[number * self.step : (number + 1) * self.step], number)
            yield keys[self.rank :: self.num_replicas]

    def keys(self, indices: np.ndarray, batch: int) -> Keys:
        """The keys of one batch of all ranks together."""
        return list(indices.tolist())


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
        least, most = self.count // self.num_replicas, -(-self.count // self.num_replicas)
        # no batch may be empty on a rank that has one sample less: at batch size 1, one batch of another rank has 2
        return min(-(-most // self.batch_size), least)

    def plan(self, start: int) -> Iterator[Keys]:
        mine = range(self.rank, self.count, self.num_replicas)
        # as numpy.array_split does it, without the array: the first batches have one sample more
        each, longer = divmod(len(mine), len(self))
        for number in range(start, len(self)):
            first = number * each + min(number, longer)
            part = mine[first : first + each + (number < longer)]
            yield self.keys(np.arange(part.start, part.stop, part.step))

    def keys(self, positions: np.ndarray) -> Keys:
        """The keys at some positions of the whole list."""
        return list(positions.tolist())


class ResumableLoader(DataLoader[Any]):
    """A loader of `EpochBatches` that a run can resume in the middle of an epoch.

    Batches are planned when the first one is asked for, not when the iterator is made: Lightning makes it before it has
    restored the epoch and its progress, and with `estimated_stepping_batches` even before it has read the checkpoint.

    Args:
        dataset: Gives a collated batch for a list of keys.
        sampler: The batches.
        num_workers: As in DataLoader.
        progress: How many batches of the running epoch have been trained on; None where no trainer knows it: then
            `load_state_dict` says where the next epoch starts.
        pin_memory: As in DataLoader.
        rebuilt: Nothing; what Lightning gives where it would replace the sampler.

    Raises:
        ValueError: Lightning wants another order (`overfit_batches`).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        sampler: EpochBatches,
        num_workers: int = 0,
        progress: Callable[[], int] | None = None,
        pin_memory: bool = False,
        **rebuilt: Any,
    ) -> None:
        if rebuilt:
            raise ValueError(
                "trainer: overfit_batches must be 0, since batches are made from the seed (use limit_train_batches, or "
                "train_limit of the clean data)"
            )
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
        )
        self.progress = progress

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.progress is not None:
            self.sampler.start = self.progress()  # type: ignore[attr-defined]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.progress() if self.progress is not None else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.start = int(state["batches"])  # type: ignore[attr-defined]


class PredictionLoader:
    """Loaders' batches, and nothing that Lightning would take apart: it builds any DataLoader anew for prediction."""

    def __init__(self, *loaders: DataLoader[Any]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        # Lightning refuses a rank that has no batch where another has some
        return max(1, sum(len(loader) for loader in self.loaders))

    def __iter__(self) -> Iterator[Any]:
        for loader in self.loaders:
            yield from loader


def batches_trained(trainer: Any) -> int:
    """Batches of the running epoch whose training step has ended, as Lightning counts them when it resumes."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed)


def _length(dataset: Dataset[Any]) -> int:
    if not isinstance(dataset, Sized):
        raise ValueError(f"{type(dataset).__name__} must have a length (iterable data sets cannot be shuffled by seed)")
    return len(dataset)
