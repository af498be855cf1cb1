"""Does anything grow in a long run? Crafting, training and evaluating, round after round in one process.

    python -m benchmarks.soak [--minutes 60] [--every 60] [--folder FOLDER]

Each round trains a classifier adversarially, trains REDRL on images crafted against a victim that stays the same (from
the second round on out of the cache), and evaluates three attacks, on scikit-learn's digits. A line a minute says what
the process takes; the end says whether it grew, and the exit code is 1 if it did.

What is compared is the second quarter of the run with the last one, as the first warms up: memory (RSS) may be 5 % and
at least 40 MB more, files, threads and live tensors at the end of a round no more, the cache nothing at all after the
first round, and a step may take half as long again.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv import evaluate
from lit_adv.attacks import PGD, BoundedPatch, CarliniWagnerL2, DeepFool
from lit_adv.data import AdversarialDataModule, Digits
from lit_adv.models import Classifier
from lit_adv.tasks import REDRL, AdversarialTraining

_MEGABYTE = 2**20


@dataclass(frozen=True)
class Sample:
    """What the process takes at the end of a round.

    Attributes:
        seconds: Since the start.
        rss: Resident memory in bytes.
        files: Open files.
        threads: Threads of the process, Python's and others.
        tensors: Live tensors.
        cache: Bytes of the adversarial cache.
        step: Median time of a training step of the round, in seconds.
    """

    seconds: float
    rss: int
    files: int
    threads: int
    tensors: int
    cache: int
    step: float

    def line(self) -> str:
        """The sample for people."""
        return (
            f"{self.seconds / 60:6.1f} min  RSS {self.rss / _MEGABYTE:7.1f} MB  files {self.files:3d}  "
            f"threads {self.threads:3d}  tensors {self.tensors:5d}  cache {self.cache / _MEGABYTE:6.2f} MB  "
            f"step {1000 * self.step:6.1f} ms"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs, prints and judges."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds between lines")
    parser.add_argument("--folder", type=Path, help="where the cache lies; a temporary folder without it")
    parser.add_argument("--images", type=int, default=256, help="to train on")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.every <= 0:
        parser.error("--minutes and --every must be above 0")
    with tempfile.TemporaryDirectory() as temporary:
        samples = soak(60 * options.minutes, options.every, options.folder or Path(temporary), options.images)
    wrong = verdict(samples)
    print(f"{len(samples)} rounds; " + ("; ".join(wrong) if wrong else "nothing grew"), flush=True)
    sys.exit(1 if wrong else 0)


def soak(seconds: float, every: float, folder: Path, images: int = 256) -> list[Sample]:
    """Runs rounds for some time, at least four; a sample a round, and now and then a line."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.manual_seed(0)
    victim = Classifier("small_cnn", 10, 16, 1)
    start, said, samples = time.monotonic(), -every, []
    while len(samples) < 4 or time.monotonic() - start < seconds:
        times = _round(folder, victim, images, len(samples))
        samples.append(_sample(start, folder / "cache", times))
        if samples[-1].seconds >= said + every:
            said = samples[-1].seconds
            print(samples[-1].line(), flush=True)
    print(samples[-1].line(), flush=True)
    return samples


def verdict(samples: Sequence[Sample]) -> list[str]:
    """What grew, in words.

    Args:
        samples: Of four rounds at least.
    """
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    wrong = []
    before, after = (median(each.rss for each in part) for part in (early, late))
    if after - before > max(0.05 * before, 40 * _MEGABYTE):
        wrong.append(f"memory grew from {before / _MEGABYTE:.0f} to {after / _MEGABYTE:.0f} MB")
    for name in ("files", "threads", "tensors"):
        least, most = (min(getattr(each, name) for each in part) for part in (early, late))
        if most > least:
            wrong.append(f"{name} grew from {least} to {most}")
    if len({each.cache for each in samples}) > 1:
        wrong.append(f"the cache grew from {samples[0].cache} to {samples[-1].cache} bytes")
    before, after = (median(each.step for each in part) for part in (early, late))
    if after > 1.5 * before:
        wrong.append(f"a step took {1000 * before:.0f} ms and takes {1000 * after:.0f} ms")
    return wrong


class _Times(pl.Callback):
    """How long training steps take, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._last: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.times.append(now - self._last)
        self._last = now


def _round(folder: Path, victim: Classifier, images: int, number: int) -> list[float]:
    times = _Times()
    digits = {"image_size": 16, "train_limit": images, "test_limit": 32}
    with warnings.catch_warnings():
        # what Lightning has to say of few batches and no workers
        warnings.simplefilter("ignore")
        pl.seed_everything(number)
        hardened = AdversarialTraining(
            name="small_cnn", attack=PGD(eps=0.1, step_size=0.05, steps=3), num_classes=10, image_size=16, in_channels=1
        )
        _trainer(folder, times).fit(hardened, datamodule=Digits(**digits))
        attacks = {
            "pgd": PGD(eps=0.1, step_size=0.05, steps=3),
            "patch": BoundedPatch(size=4, eps=0.3, step_size=0.1, steps=3),
            "deepfool": DeepFool(steps=5),
        }
        data = AdversarialDataModule(
            Digits(**digits), {"victim": victim}, attacks, batch_size=32, cache_dir=str(folder / "cache")
        )
        task = REDRL(width=4, blocks=1, recognizer="small", weight_features=0)
        _trainer(folder, times).fit(task, datamodule=data)
        source = Digits(**digits)
        source.setup("test")
        few = {**attacks, "cw": CarliniWagnerL2(steps=5, search_steps=1)}
        evaluate(hardened.model.eval(), source.test_dataloader(), few)
    return times.times


def _trainer(folder: Path, times: _Times) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[times],
        default_root_dir=folder,
    )


def _sample(start: float, cache: Path, times: list[float]) -> Sample:
    gc.collect()
    process = Path("/proc/self")
    resident = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    return Sample(
        seconds=time.monotonic() - start,
        rss=int(resident.split()[1]) * 1024,
        files=sum(1 for _ in (process / "fd").iterdir()),
        threads=max(threading.active_count(), sum(1 for _ in (process / "task").iterdir())),
        tensors=sum(issubclass(type(each), Tensor) for each in gc.get_objects()),
        cache=sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()),
        step=median(times),
    )


if __name__ == "__main__":
    main()
