"""Of the images that a sampler hands to several processes each counts once."""

from types import SimpleNamespace

import pytest
import torch
from lit_adv.callbacks.repeats import fresh_rows
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset


def loader(count, world, rank, size, shuffle=False):
    data = TensorDataset(torch.arange(count))
    sampler = DistributedSampler(data, num_replicas=world, rank=rank, shuffle=shuffle)
    return DataLoader(data, batch_size=size, sampler=sampler)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", ["alone", "list", "dict"])
@pytest.mark.parametrize(
    ("count", "world", "size"), [(7, 2, 2), (7, 2, 4), (9, 4, 2), (8, 2, 3), (1, 3, 5), (10, 4, 1), (5, 1, 2)]
)
def test_every_image_once(count, world, size, kind, shuffle):
    seen = []
    for rank in range(world):
        batches = loader(count, world, rank, size, shuffle)
        loaders = {"alone": batches, "list": [None, batches], "dict": {"a": None, "b": batches}}[kind]
        trainer = SimpleNamespace(test_dataloaders=loaders)
        for number, (images,) in enumerate(batches):
            seen += images[: fresh_rows(trainer, len(images), number, int(kind != "alone"))].tolist()
    assert sorted(seen) == list(range(count))


def test_other_loaders_repeat_nothing():
    data = TensorDataset(torch.arange(5))
    plain = DataLoader(data, batch_size=2)
    own = DataLoader(data, batch_sampler=BatchSampler(range(5), 2, False))
    for batches in (plain, own, [(torch.zeros(2),)], iter(plain)):
        loaders = [batches]
        assert fresh_rows(SimpleNamespace(test_dataloaders=loaders), 2, 1) == 2
