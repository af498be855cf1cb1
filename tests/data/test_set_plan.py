"""The order of a set's images, and who writes which."""

import numpy as np
import pytest

from lit_adv.data.set_plan import SetBatches, SetPlan

VERSIONS = [(-1, np.arange(7)), (0, np.array([1, 4])), (3, np.array([], int)), (5, np.arange(7))]
KEYS = [(index, variant) for variant, rows in VERSIONS for index in rows.tolist()]


@pytest.mark.parametrize("size", [1, 3, 5, 16, 100])
def test_shards_hold_every_image_once_in_order(size):
    plan = SetPlan(VERSIONS, size)
    assert plan.images == len(KEYS) == 16
    shards = [plan.keys(shard) for shard in range(plan.shards)]
    assert [key for shard in shards for key in shard] == KEYS
    assert all(len(shard) == size for shard in shards[:-1])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_batches_are_the_same_for_any_number_of_ranks(ranks):
    plan = SetPlan(VERSIONS, 5)
    dealt = [SetBatches(range(7), plan, range(plan.shards)[rank::ranks], 3) for rank in range(ranks)]
    found = [list(batches) for batches in dealt]
    assert [len(batches) for batches in dealt] == [len(one) for one in found]
    one = list(SetBatches(range(7), plan, range(plan.shards), 3))
    assert sorted(batch for rank in found for batch in rank) == sorted(one)
    assert [len(batch) for batch in one] == [3, 2, 3, 2, 3, 2, 1]


def test_sizes_are_known_without_the_keys():
    for size in (1, 3, 5, 16, 100):
        plan = SetPlan(VERSIONS, size)
        assert [plan.size(shard) for shard in range(plan.shards)] == [
            len(plan.keys(shard)) for shard in range(plan.shards)
        ]
