"""The test images that pictures of a run show: the same ones however many processes there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_adv.data.datasets import ImageDataset
from lit_adv.data.sampling import rank_and_world, stratified_order
from lit_adv.evaluation import pair

from .clean_batches import check_clean


class ShownBatch(NamedTuple):
    """Some of the images.

    Attributes:
        places: ``(B,)`` int64, positions in the test set.
        images: ``(B, C, H, W)`` in [0, 1].
        labels: ``(B,)`` int64.
    """

    places: Tensor
    images: Tensor
    labels: Tensor


class ShownImages:
    """At most so many test images, read past the trainer's own loop.

    Of an `ImageDataModule` they have each class in its share, in any number of them from the first on; of other data
    they are the first ones, and loaders must give them in the same order each time.

    Args:
        owner: Who asks; opens the error messages.
        trainer: In a test.
        count: How many.

    Raises:
        ValueError: The data are adversarial images, or there is no test image; in the iteration, batches of another
            kind.
    """

    def __init__(self, owner: str, trainer: pl.Trainer, count: int) -> None:
        self.owner, self.count = owner, count
        check_clean(owner, trainer)
        self.data: Any = getattr(trainer, "datamodule", None)
        dataset = getattr(self.data, "test_dataset", None)
        self.dataset = dataset if isinstance(dataset, ImageDataset) else None
        if self.dataset is not None:
            self.places = stratified_order(self.dataset.labels, 0)[:count]
            self.loaders: Sequence[Any] = []
        else:
            given: Any = trainer.test_dataloaders if self.data is None else self.data.test_dataloader()
            self.loaders = list(given) if isinstance(given, list | tuple) else [given]
            if self.data is None:
                # with several processes the trainer has given each of them its share
                self.loaders = [_undealt(each) for each in self.loaders]

    def first(self, count: int = 1) -> ShownBatch:
        """The first ones, the same in all processes."""
        for batch in self._read(count, 1 << 62, (0, 1)):
            return batch
        raise ValueError(f"{self.owner}: the data must have a test image, got none")

    def mine(self, size: int) -> Iterator[ShownBatch]:
        """This process's share in batches of a size, which are the same ones however many processes deal them out."""
        return self._read(self.count, size, rank_and_world())

    def _read(self, count: int, size: int, dealt: tuple[int, int]) -> Iterator[ShownBatch]:
        rank, ranks = dealt
        count = min(count, self.count)
        if self.dataset is not None:
            for number, places in enumerate(self.places[:count].split(min(size, count))):
                if number % ranks == rank:
                    yield ShownBatch(places, *self.dataset.batch(places.tolist()))
            return
        for number, batch in enumerate(self._batches(count, size)):
            if number % ranks == rank:
                yield batch

    def _batches(self, count: int, size: int) -> Iterator[ShownBatch]:
        """Batches of a size out of those that the loaders give."""
        kept: list[tuple[Tensor, Tensor]] = []
        done = held = 0
        for loader in self.loaders:
            for batch in loader:
                images, labels = pair(self.owner, batch)
                images, labels = images[: count - done - held], labels[: count - done - held]
                kept.append((images, labels))
                held += len(images)
                while held >= size or (held and done + held == count):
                    images, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
                    taken = min(size, held)
                    yield ShownBatch(torch.arange(done, done + taken), images[:taken], labels[:taken])
                    kept, done, held = [(images[taken:], labels[taken:])], done + taken, held - taken
                if done == count:
                    return
        if held:
            images, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
            yield ShownBatch(torch.arange(done, done + held), images, labels)


def gathered(mine: Any) -> list[Any]:
    """What each process has, in the order of the processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def class_names(trainer: pl.Trainer, classes: Sequence[int]) -> dict[int, str]:
    """Short names of some classes, their numbers where the data have no names."""
    names = getattr(getattr(trainer, "datamodule", None), "classes", None) or []
    found = {each: str(names[each]) if 0 <= each < len(names) else str(each) for each in classes}
    found = {each: f"class {name}" if name.isdigit() else name for each, name in found.items()}
    return {each: name if len(name) <= 16 else f"{name[:15]}…" for each, name in found.items()}


def _undealt(loader: Any) -> Any:
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__") or loader.batch_size is None:
        return loader
    return DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn)
