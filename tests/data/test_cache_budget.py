"""Disk: what a cache takes and may take, against what it takes."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_adv.attacks import FGSM, PGD
from lit_adv.data import AdversarialDataModule, Digits
from lit_adv.data import adversarial as module_of_data
from lit_adv.data.cache_budget import disk_bytes, parse_size, share_that_fits, size_text, taken
from lit_adv.models import Classifier

BLOCK = 4096


def data(cache, **given):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        victims = {
            "a": Classifier("small_cnn", 10, 8, in_channels=1),
            "b": Classifier("small_cnn", 10, 8, in_channels=1),
        }
    attacks = {"fgsm": FGSM(eps=0.1), "pgd/1": PGD(eps=0.1, steps=1), "pgd/2": PGD(eps=0.1, steps=2)}
    source = Digits(image_size=8, train_limit=300, test_limit=200)
    return AdversarialDataModule(source, victims, attacks, cache_dir=str(cache), **given)


def on_disk(cache):
    """Whole blocks of all files, the one description a version included."""
    files = [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "plans"]
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in files)


def started(module):
    """As a trainer would set it up."""
    module.trainer = SimpleNamespace(
        fast_dev_run=False,
        current_epoch=0,
        strategy=SimpleNamespace(root_device=torch.device("cpu"), barrier=lambda name: None),
    )
    module.prepare_data()
    module.setup("test")
    return module


@pytest.mark.parametrize(
    ("text", "count"),
    [("20 GB", 20e9), ("20GiB", 20 * 2**30), ("1.5 mb", 1.5e6), ("4096", 4096), (17, 17), ("7 kB", 7000)],
)
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "much", "20 XB", "-3", 0, "0 GB", True, "1 GB more"])
def test_bad_sizes_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="AdversarialDataModule: cache_limit must be"):
        data(tmp_path, cache_limit=text)


def test_sizes_for_people():
    assert [size_text(count) for count in (12, 4096, 1.5e6, 2e10)] == ["12 B", "4.1 kB", "1.5 MB", "20 GB"]


@given(st.lists(st.integers(0, 200), unique=True, max_size=40), st.integers(1, 9000))
def test_blocks_are_those_that_the_rows_touch(rows, size):
    rows = sorted(rows)
    touched = {byte // BLOCK for row in rows for byte in range(row * size, (row + 1) * size)}
    assert disk_bytes(np.array(rows), size) == BLOCK * len(touched)


def test_the_estimate_of_the_disk_is_what_prefill_takes(tmp_path):
    module = started(data(tmp_path / "cache"))
    needed = module.cache_bytes(["test"])
    assert not (tmp_path / "cache").exists()
    module.prefill(("test",))
    assert on_disk(tmp_path / "cache") == needed
    found = module.estimate(("test",))
    assert [(one.images, one.cached) for one in found] == [(200, 200)] * 6
    assert {one.name for one in found} >= {"fgsm on a", "pgd/2 on b"}
    assert all(one.seconds_per_image > 0 for one in found)


def test_an_estimate_leaves_nothing_behind(tmp_path):
    module = data(tmp_path / "cache")
    module.prepare_data()
    found = module.estimate(("test", "val"))
    assert [one.cached for one in found] == [0] * 12
    assert not (tmp_path / "cache").exists()


def test_an_estimate_counts_what_is_left(tmp_path):
    module = started(data(tmp_path / "cache"))
    for number, _ in enumerate(module.batches("test")):
        if number == 4:
            break
    found = {one.name: one for one in module.estimate(("test",))}
    crafted = {name: one.cached for name, one in found.items()}
    assert crafted["pgd/2 on b"] == 0
    assert 0 < sum(crafted.values()) < 6 * 200
    # each was seen to be in the cache: a further run crafts the others alone
    rows = [cache.written(np.arange(200)) for (split, _), cache in sorted(module._caches.items()) if split == "test"]
    assert sum(map(len, rows)) == sum(crafted.values())


def test_rows_of_other_images_do_not_count_as_cached(tmp_path):
    started(data(tmp_path / "cache")).prefill(("test",))
    other = data(tmp_path / "cache")
    other.source = Digits(image_size=8, train_limit=300, test_limit=200, seed=1)
    other.prepare_data()
    there = {one.cached for one in other.estimate(("test",))}
    # another seed chooses other images, a few of them in their old places
    assert max(there) <= 40


def test_rows_that_a_job_does_not_want_do_not_count(tmp_path):
    everything = started(data(tmp_path / "cache"))
    everything.read_splits(("train",))
    cache = everything._cache("train", 0)
    clean, labels = module_of_data._read(everything._sets["train"], list(range(0, 300, 2)))
    pixels = clean.numpy()
    cache.write(range(0, 300, 2), pixels, labels.numpy(), pixels, np.zeros(150, np.uint8))
    assert cache.written(np.arange(1, 300, 2)).tolist() == []
    assert cache.written(np.array([1, 2, 3, 4, 298, 299])).tolist() == [2, 4, 298]


def test_an_estimate_attacks_as_many_at_once_as_the_run(tmp_path):
    sizes = {"eval_batch_size": 30, "batch_size": 40}
    module = started(data(tmp_path / "cache", **sizes))
    assert {len(one.sample) for one in module.estimate(("test",))} == {30}
    assert {len(one.sample) for one in module.estimate(("train",))} == {13}  # 3 classes
    few = data(tmp_path / "cache", variants=3, **sizes)
    assert {len(one.sample) for one in few.estimate(("train",))} == {5}  # 6 versions and the clean one
    assert {len(one.sample) for one in started(data(tmp_path / "c", prefill=True)).estimate(("test",))} == {200}


def test_gaps_take_no_disk(tmp_path):
    module = data(tmp_path / "cache", variants=3)
    module.prepare_data()
    module.read_splits(("train",))
    everything = data(tmp_path / "cache")
    everything.read_splits(("train",))
    assert module.cache_bytes(("train",)) <= everything.cache_bytes(("train",))
    module.prefill(("train",))
    # what the file system says, where it says anything; it may take more for its own lists
    assert os.name != "posix" or taken(tmp_path / "cache") <= 1.2 * module.cache_bytes(("train",))


def test_prefill_refuses_what_the_limit_cannot_hold_before_it_crafts(tmp_path, monkeypatch):
    monkeypatch.setattr(AdversarialDataModule, "_craft", lambda *given, **named: pytest.fail("crafted"))
    with pytest.raises(ValueError, match=r"prefill needs 147 kB in cache_dir .*cache_limit is 100 kB .raise it"):
        started(data(tmp_path / "cache", cache_limit="100 kB", prefill=True))
    assert not (tmp_path / "cache").exists()


def test_other_jobs_count(tmp_path):
    other = tmp_path / "cache" / "other"
    other.mkdir(parents=True)
    (other / "images.bin").write_bytes(os.urandom(80_000))
    os.sync()
    with pytest.raises(ValueError, match=r"where other jobs keep or plan 81.9 kB, and cache_limit is 200 kB"):
        started(data(tmp_path / "cache", cache_limit="200 kB", prefill=True))
    started(data(tmp_path / "cache", cache_limit="300 kB", prefill=True))


def test_without_prefill_the_cache_keeps_what_fits_and_the_images_are_the_same(tmp_path, capsys):
    limited, free = started(data(tmp_path / "cache", cache_limit="100 kB")), started(data(tmp_path / "free"))
    assert "100 kB" in capsys.readouterr().out
    for _ in range(2):
        for one, other in zip(limited.batches("test"), free.batches("test"), strict=True):
            assert all(torch.equal(mine, yours) for mine, yours in zip(one, other, strict=True))
    assert 50_000 < on_disk(tmp_path / "cache") <= 100_000 < on_disk(tmp_path / "free")


def test_a_limit_that_suffices_changes_nothing(tmp_path, capsys):
    started(data(tmp_path / "cache", cache_limit="1 MB", prefill=True))
    assert "cache_limit" not in capsys.readouterr().out
    assert on_disk(tmp_path / "cache") == 147_456


def test_prefill_refuses_a_full_disk_before_it_crafts(tmp_path, monkeypatch):
    monkeypatch.setattr(module_of_data, "free_disk", lambda folder: 50_000)
    with pytest.raises(ValueError, match=r"prefill needs 147 kB more in cache_dir .*, and its disk has 50 kB free"):
        started(data(tmp_path / "cache", prefill=True))
    assert not (tmp_path / "cache").exists()


def test_the_share_that_fits_is_the_largest():
    files = [(np.arange(1000), 1000), (np.arange(0, 500, 3), 500)]
    share = share_that_fits(files, (100, 16), 60_000)

    def needed(share):
        return sum(disk_bytes(rows[rows < int(share * length)], size) for rows, length in files for size in (100, 16))

    assert needed(share) <= 60_000 < needed(share + 2 / 4096) + BLOCK
    assert share_that_fits(files, (100, 16), 10**9) == 1
    assert share_that_fits(files, (100, 16), 0) * 500 < 1
