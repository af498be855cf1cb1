"""Jobs that start at the same time keep one limit together."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_adv.attacks import FGSM
from lit_adv.data import AdversarialDataModule, Digits
from lit_adv.data.cache_plans import CachePlans
from lit_adv.models import Classifier

pytest.importorskip("fcntl", reason="without locks there are no plans")
# 2 x 200 images of 64 bytes with records of 16: 16 and 4 kB each, and their descriptions
NEEDED = 2 * (16_384 + 4096 + 4096)


def job(cache, seed=0, **given):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        victims = {name: Classifier("small_cnn", 10, 8, in_channels=1) for name in ("a", "b")}
    source = Digits(image_size=8, train_limit=60, test_limit=200)
    module = AdversarialDataModule(source, victims, {"fgsm": FGSM(eps=0.1)}, cache_dir=str(cache), seed=seed, **given)
    strategy = SimpleNamespace(root_device=torch.device("cpu"), barrier=lambda name: None)
    module.trainer = SimpleNamespace(fast_dev_run=False, current_epoch=0, strategy=strategy)
    module.prepare_data()
    return module


def on_disk(cache):
    return sum(path.stat().st_blocks * 512 for path in cache.rglob("*") if path.is_file())


def test_two_jobs_that_start_together_keep_the_limit_between_them(tmp_path):
    jobs = [job(tmp_path, seed, cache_limit=NEEDED + 30_000) for seed in (0, 1)]
    for one in jobs:
        one.setup("test")  # before either has crafted anything
    assert jobs[0]._kept == {"test": 1.0}
    assert 0 <= jobs[1]._kept["test"] < 1
    for one in jobs:
        list(one.batches("test"))
    assert NEEDED <= on_disk(tmp_path) <= NEEDED + 30_000


def test_prefill_is_refused_where_another_job_has_planned(tmp_path):
    first = job(tmp_path, cache_limit=NEEDED + 20_000)
    first.setup("test")
    late = job(tmp_path, 1, cache_limit=NEEDED + 20_000, prefill=True)
    with pytest.raises(ValueError, match=r"where other jobs keep or plan 5\d.\d kB, and cache_limit"):
        late.setup("test")
    first.teardown("test")
    late.setup("test")
    assert late._kept == {"test": 1.0}


def test_processes_of_one_job_decide_alike(tmp_path):
    limit = NEEDED // 2
    first, between, second = (job(tmp_path, seed, cache_limit=limit) for seed in (0, 1, 0))
    for one in (first, between, second):
        one.setup("test")
    assert first._kept == second._kept
    assert 0 < first._kept["test"] < 1


def test_the_plan_of_a_killed_process_does_not_count(tmp_path):
    context = multiprocessing.get_context("fork")
    there = context.Event()
    process = context.Process(target=_plan, args=(tmp_path, there))
    process.start()
    assert there.wait(60)
    plans = CachePlans(tmp_path)
    with plans.deciding() as found:
        assert found == {"one": (500, 0.5)}
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    with plans.deciding() as found:
        assert found == {}
    assert [path.name for path in (tmp_path / "plans").iterdir()] == ["lock"]


def _plan(folder, there):
    plans = CachePlans(folder)
    with plans.deciding():
        plans.announce({"one": (500, 0.5)})
    there.set()
    signal.pause()


def test_one_decides_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert (tmp_path / "sum").read_text() == "80"


def _add(folder):
    plans, path = CachePlans(folder), folder / "sum"
    for _ in range(20):
        with plans.deciding():
            path.write_text(str(int(path.read_text() if path.exists() else 0) + 1))


def test_a_damaged_plan_is_nothing(tmp_path):
    with CachePlans(tmp_path).deciding():
        pass
    draws = np.random.default_rng(0)
    for number, content in enumerate((b"", b"{", b"[1]", draws.bytes(40))):
        (tmp_path / "plans" / f"{number}.json").write_bytes(content)
    with CachePlans(tmp_path).deciding() as found:
        assert found == {}
