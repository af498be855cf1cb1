"""Whole runs: killed and resumed, and on two ranks; each against one that was neither."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

TOY = Path(__file__).with_name("toy.py")


def run(folder, **settings):
    name = settings.setdefault("name", "run")
    (folder / f"{name}.job").write_text(json.dumps(settings))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    # what earlier tests of this process leave behind; the seed is another for ranks that are started with it
    for variable in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"):
        environment.pop(variable, None)
    return subprocess.run(
        [sys.executable, str(TOY), str(folder), str(folder / f"{name}.job")],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )


def batches(folder, name, rank=0, stage="train"):
    lines = (folder / f"{name}-{rank}.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["stage"].startswith(stage)]


def checked(finished):
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_resumed(tmp_path):
    checked(run(tmp_path, name="whole", save_every=2))
    killed = run(tmp_path, name="killed", save_every=2, kill_at=8)  # 5 batches an epoch: in the second
    assert killed.returncode == -signal.SIGKILL
    checked(run(tmp_path, name="resumed", save_every=2, ckpt=str(tmp_path / "killed" / "step=8.ckpt")))
    whole = batches(tmp_path, "whole")
    assert [row["stage"] for row in whole] == [f"train {e} {b}" for e in range(3) for b in range(5)]
    assert batches(tmp_path, "resumed") == whole[8:]  # draws, order and crafted pixels
    first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "resumed"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "resumed"))
    assert first == second


HEADS = {"heads": ["victim", "budget"], "held_out": ["b"]}


def leaves(part, name=()):
    """Every number and word of a result, by its place."""
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    if isinstance(part, dict | list) and part:
        for key, each in items:
            yield from leaves(each, (*name, key))
    else:
        yield name, part


@pytest.mark.slow
@pytest.mark.parametrize(("more", "variants"), [({}, 7), (HEADS, 10)], ids=["plain", "heads"])
def test_two_ranks_draw_evaluate_and_train_as_one(tmp_path, more, variants):
    checked(run(tmp_path, name="one", plain=True, batch_size=8, epochs=2, test_first=True, **more))
    shared = str(tmp_path / "cache")  # both write it, and read what the other wrote
    two = {
        "name": "two",
        "plain": True,
        "batch_size": 4,
        "epochs": 2,
        "devices": 2,
        "cache": shared,
        "test_first": True,
        **more,
    }
    printed = checked(run(tmp_path, **two)).stdout
    assert printed.count("Adversarial images") == 2  # rank 0 alone says so, for fit and for test
    fields = ("index", "attack", "setting", "victim", "pixels")

    def rows(part):
        return list(zip(*(part[field] for field in fields), strict=True))

    ranks = [batches(tmp_path, "two", rank) for rank in (0, 1)]
    for whole, *parts in zip(batches(tmp_path, "one"), *ranks, strict=True):
        assert {part["stage"] for part in parts} == {whole["stage"]}
        drawn = sorted(row[:4] for row in rows(whole))
        assert sorted(row[:4] for part in parts for row in rows(part)) == drawn
    shown = Counter(row[:4] for part in batches(tmp_path, "one", stage="test") for row in rows(part))
    dealt = [Counter(row[:4] for part in batches(tmp_path, "two", r, "test") for row in rows(part)) for r in (0, 1)]
    assert dealt[0] + dealt[1] == shown
    assert set(shown.values()) == {1}
    assert len(shown) == 13 * variants
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert ("budget" in first["results"]) == bool(more)
    # sums of real numbers, such as errors and calibration, are rounded in another order
    whole, split = (dict(leaves(part["results"])) for part in (first, second))
    assert whole.keys() == split.keys()
    for place, each in whole.items():
        assert (pytest.approx(each, rel=1e-6) if isinstance(each, float) else each) == split[place], place
    assert first["numbers"] == pytest.approx(second["numbers"], abs=1e-6)
    first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    for key, value in first.items():
        # by the norm: where a gradient is almost 0, Adam makes a whole step of its rounding error
        assert (value.float() - second[key].float()).norm() <= 1e-3 * value.float().norm() + 1e-6, key
