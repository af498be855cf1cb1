"""Two hundred batches take no more memory than the first ones, in the process and in its workers."""

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_adv.attacks import FGSM
from lit_adv.data import AdversarialDataModule
from lit_adv.data.datasets import TensorImages
from lit_adv.data.image_datamodule import ImageDataModule

# workers take some MB more until each has seen a hundred batches, and no more after that
BATCHES, WARM, ALLOWED = 200, 200, 6e6
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


class Leaking(TensorImages):
    """Keeps what it has read."""

    def batch(self, *given, **named):
        found = super().batch(*given, **named)
        self.__dict__.setdefault("kept", []).append(found[0].double())
        return found


class Pictures(ImageDataModule):
    """640 images of 3 kB."""

    native_size = 32
    classes = ("a", "b", "c")
    dataset_class = TensorImages

    def _finish(self, dataset):
        return dataset

    def prepare_data(self):
        pass

    def _source(self, split):
        if split == "val":
            return None
        draws = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (640, 3, 32, 32), generator=draws, dtype=torch.uint8)
        return self.dataset_class(images, torch.arange(640) % 3)


class LeakingPictures(Pictures):
    dataset_class = Leaking


def growth(loader, step):
    """Bytes that the process and its workers gain over `BATCHES` batches after `WARM`."""
    trim()
    seen, first = 0, 0.0
    while True:
        for batch in loader:
            step(batch)
            seen += 1
            if seen == WARM:
                first = memory(loader)
            if seen == WARM + BATCHES:
                return memory(loader) - first
        loader.sampler.set_epoch(loader.sampler.epoch + 1)


def trim():
    """Gives freed memory back, into which a leak would fit unseen, in the workers forked from here too."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def memory(loader):
    trim()
    workers = getattr(getattr(loader, "_iterator", None), "_workers", [])
    return sum(private(process) for process in ["self", *(worker.pid for worker in workers)])


def private(process):
    """Bytes of a process that are not a file's or shared: pinned and shared batches come and go."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Pictures, LeakingPictures])
def test_clean_loaders_and_one_that_leaks(kind, workers):
    data = kind(batch_size=16, num_workers=workers, augment=True, validation=0)
    data.setup("fit")
    gained = growth(data.train_dataloader(), lambda batch: None)
    # what leaks holds 16 images of 25 kB a batch: 79 MB
    assert gained < ALLOWED if kind is Pictures else gained > 8 * ALLOWED, f"{gained / 1e6:.1f} MB"


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "cached", "workers"),
    [
        *((Pictures, cached, workers) for cached in (False, True) for workers in (0, 2)),
        (LeakingPictures, True, 2),
        (LeakingPictures, False, 0),
    ],
)
def test_adversarial_loaders_and_one_that_leaks(kind, cached, workers, tmp_path):
    torch.manual_seed(0)
    victims = {name: nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)) for name in ("a", "b")}
    data = AdversarialDataModule(
        kind(validation=0.1),
        victims,
        {"fgsm/1": FGSM(eps=0.01), "fgsm/2": FGSM(eps=0.02)},
        batch_size=16,
        num_workers=workers,
        cache_dir=str(tmp_path) if cached else None,
    )
    data.setup("fit")
    gained = growth(data.train_dataloader(), lambda batch: data.on_after_batch_transfer(batch, 0))
    # what leaks holds 16 images of 25 kB a batch: 79 MB
    assert gained < ALLOWED if kind is Pictures else gained > 8 * ALLOWED, f"{gained / 1e6:.1f} MB"
