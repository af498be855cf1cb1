"""Which image of an adversarial set lies in which shard: known from the data alone, so that ranks agree unasked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from lit_adv.data.batches import EpochBatches, Keys


class SetPlan:
    """All versions of a split's images in one order, cut into shards of equal size.

    Versions follow each other, the clean one first, each with its images in their order: a shard's images are then
    crafted in large groups.

    Args:
        versions: Each variant (-1 for clean) and the positions of its images in the clean data set, `(n,)`.
        images_per_shard: Size of every shard but the last.
    """

    def __init__(self, versions: Sequence[tuple[int, np.ndarray]], images_per_shard: int) -> None:
        self.versions = list(versions)
        self.images_per_shard = images_per_shard
        self._ends = np.cumsum([len(rows) for _, rows in self.versions])

    @property
    def images(self) -> int:
        """How many images there are, clean ones included."""
        return int(self._ends[-1])

    @property
    def shards(self) -> int:
        """How many shards they fill."""
        return -(-self.images // self.images_per_shard)

    def size(self, shard: int) -> int:
        """How many images a shard has."""
        return min(self.images_per_shard, self.images - shard * self.images_per_shard)

    def keys(self, shard: int) -> Keys:
        """(index, variant) of each image of a shard."""
        start = shard * self.images_per_shard
        places = np.arange(start, min(start + self.images_per_shard, self.images))
        numbers = np.searchsorted(self._ends, places, side="right")
        found = []
        for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
            variant, rows = self.versions[number]
            found.append((int(rows[place - self._ends[number]]), variant))
        return found


class SetBatches(EpochBatches):
    """The batches of some shards of a set, none across two shards, so that they do not depend on the ranks.

    Args:
        dataset: Gives a batch for a list of keys.
        plan: The set.
        shards: Those to show, in this order; another rank has others.
        batch_size: Most images a batch.
    """

    def __init__(self, dataset: Dataset[Any], plan: SetPlan, shards: Sequence[int], batch_size: int) -> None:
        super().__init__(dataset, 1, 0)
        self.set, self.shards, self.batch_size = plan, list(shards), batch_size

    def __len__(self) -> int:
        return sum(-(-self.set.size(shard) // self.batch_size) for shard in self.shards)

    def __iter__(self) -> Iterator[Keys]:
        for shard in self.shards:
            keys = self.set.keys(shard)
            for start in range(0, len(keys), self.batch_size):
                yield keys[start : start + self.batch_size]
