"""The plan of an epoch: everything once, the same for any number of ranks, resumable."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.data.batches import OrderedBatches, ResumableLoader, ShuffledBatches


class Keys:
    """A data set that gives back the keys it is asked for."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, keys):
        return keys


def shuffled(count, batch_size, ranks=1, rank=0, epoch=0, seed=0):
    batches = ShuffledBatches(Keys(count), batch_size, seed, ranks, rank)
    batches.set_epoch(epoch)
    return batches


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 16), st.integers(0, 3))
def test_one_epoch_shows_every_index_once(count, batch_size, epoch):
    batches = shuffled(count, batch_size, epoch=epoch)
    plan = list(batches)
    assert len(plan) == len(batches)
    assert sorted(flat(plan)) == list(range(count))


@settings(max_examples=60)
@given(st.integers(4, 60), st.integers(1, 8), st.sampled_from([2, 4]))
def test_ranks_share_the_batches_of_one_process(count, batch_size, ranks):
    whole = list(shuffled(count, batch_size * ranks))
    parts = [list(shuffled(count, batch_size, ranks, rank)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    for number, one in enumerate(zip(*parts, strict=True)):
        assert sorted(flat(one)) == sorted(whole[number])


def test_epochs_and_seeds_differ_and_repeat():
    assert list(shuffled(50, 10, epoch=1)) == list(shuffled(50, 10, epoch=1))
    assert list(shuffled(50, 10, epoch=1)) != list(shuffled(50, 10, epoch=2))
    assert list(shuffled(50, 10, seed=1)) != list(shuffled(50, 10, seed=2))


@settings(max_examples=80)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_deals_each_key_once_and_as_many_batches_to_each_rank(count, batch_size, ranks):
    if count < ranks:
        with pytest.raises(ValueError, match="at least one sample for each rank"):
            OrderedBatches(Keys(count), count, batch_size, ranks)
        return
    plans = [list(OrderedBatches(Keys(count), count, batch_size, ranks, rank)) for rank in range(ranks)]
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(flat(flat(plans))) == list(range(count))
    sizes = [len(batch) for plan in plans for batch in plan]
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch_size, 2 if ranks > 1 else 1)


def flat(batches):
    return [key for batch in batches for key in batch]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_goes_on_where_its_state_says_for_one_epoch(workers):
    def loader(progress=None):
        return ResumableLoader(Keys(20), sampler=shuffled(20, 4), num_workers=workers, progress=progress)

    whole = list(loader())
    resumed = loader()
    resumed.load_state_dict(loader(lambda: 3).state_dict())
    assert list(resumed) == whole[3:]
    assert list(resumed) == whole  # only the interrupted epoch starts in its middle
    resumed.load_state_dict({"batches": 5})  # saved at an epoch's end
    assert list(resumed) == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_epoch_and_progress_count_when_the_first_batch_is_asked_for(workers):
    done = [0]
    loader = ResumableLoader(Keys(20), sampler=shuffled(20, 4), num_workers=workers, progress=lambda: done[0])
    early = iter(loader)
    loader.sampler.set_epoch(3)
    done[0] = 2
    assert list(early) == list(shuffled(20, 4, epoch=3))[2:]
    done[0] = 0
    fetched = iter(loader)
    next(fetched), next(fetched)
    assert loader.state_dict() == {"batches": 0}  # what was fetched ahead is not done
    done[0] = 1
    assert loader.state_dict() == {"batches": 1}


def test_indices_are_uniform_over_positions():
    places = np.stack([np.argsort(flat(shuffled(8, 8, epoch=epoch))) for epoch in range(800)])
    # each index is equally often at each place: 100 times, standard deviation 9.4
    counts = np.stack([np.bincount(column, minlength=8) for column in places.T])
    assert np.abs(counts - 100).max() < 5 * 9.4


@settings(max_examples=80)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5), st.integers(0, 40))
def test_batches_made_one_by_one_are_those_of_the_whole_plan(count, batch_size, ranks, start):
    for rank in range(ranks):
        order = np.random.default_rng([0, 2, 0]).permutation(count)
        whole = [order[at : at + batch_size * ranks].tolist() for at in range(0, count, batch_size * ranks)]
        expected = [batch[rank::ranks] for batch in whole if len(batch) >= ranks]
        mine = shuffled(count, batch_size, ranks, rank, epoch=2)
        assert list(mine) == expected
        mine.start = start
        assert list(mine) == expected[start if start < len(expected) else 0 :]
        if count < ranks:
            continue
        ordered = OrderedBatches(Keys(count), count, batch_size, ranks, rank)
        parts = np.array_split(np.arange(rank, count, ranks), len(ordered))
        assert list(ordered) == [part.tolist() for part in parts]


def test_a_plan_of_a_hundred_million_takes_no_memory():
    tracemalloc.start()
    try:
        batches = OrderedBatches(Keys(10**8), 10**8, 256, ranks=2, rank=1)
        assert (len(batches), next(iter(batches))[:3]) == (195_313, [1, 3, 5])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
