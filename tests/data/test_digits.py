"""Handwritten digits."""

import pytest
import torch
from sklearn.datasets import load_digits

from lit_adv.data.digits import Digits


@pytest.mark.parametrize("size", [None, 8, 12, 32])
def test_pixels_are_8_bit(size):
    data = Digits(image_size=size)
    data.prepare_data()
    data.setup()
    assert data.image_size == (size or 16)
    images, labels = data.test_dataset.batch(range(50))
    assert images.shape == (50, 1, data.image_size, data.image_size)
    assert torch.equal((images * 255).round() / 255, images)
    assert images.min() == 0
    assert images.max() > 0.9
    assert labels.dtype == torch.int64


def test_split():
    data = Digits()
    data.setup()
    sizes = [len(d) for d in (data.train_dataset, data.val_dataset, data.test_dataset)]
    assert sizes == [1294, 144, 359]
    assert all(30 <= count <= 40 for count in data.test_dataset.labels.bincount())
    other = Digits(seed=5)
    other.setup()
    assert torch.equal(other.test_dataset.images, data.test_dataset.images)
    assert not torch.equal(other.val_dataset.labels, data.val_dataset.labels)


def test_every_image_is_used_once_and_with_its_label():
    data = Digits(image_size=8)
    data.setup()
    mine = {}
    for dataset in (data.train_dataset, data.val_dataset, data.test_dataset):
        images, labels = dataset.batch(range(len(dataset)))
        for image, label in zip(images, labels.tolist(), strict=True):
            key = (image * 16).round().to(torch.uint8).numpy().tobytes()
            mine.setdefault(key, []).append(label)
    source = load_digits()
    assert sum(len(labels) for labels in mine.values()) == len(source.target)
    for image, label in zip(torch.from_numpy(source.images), source.target.tolist(), strict=True):
        assert label in mine[image.to(torch.uint8).numpy().tobytes()]


def test_names_without_setup():
    assert Digits().classes == list("0123456789")
    assert (Digits().num_classes, Digits().in_channels) == (10, 1)
