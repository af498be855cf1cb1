"""Some classes of any set."""

import pytest
import torch

from lit_adv.data import Arrays, ClassSubset, Digits
from lit_adv.data.image_datamodule import ImageDataModule


def test_a_pair_of_digits():
    whole, pair = Digits(image_size=8), ClassSubset(Digits(image_size=8, batch_size=32), classes=[7, "1"])
    pair.prepare_data()
    pair.setup()
    whole.setup()
    assert isinstance(pair, ImageDataModule)
    assert (pair.classes, pair.num_classes, pair.image_size, pair.in_channels) == (["7", "1"], 2, 8, 1)
    test, labels = pair.test_dataset.batch(range(len(pair.test_dataset)))
    everything, numbers = whole.test_dataset.batch(range(len(whole.test_dataset)))
    for place, number in enumerate((7, 1)):
        assert torch.equal(test[labels == place], everything[numbers == number])
    assert len(test) == int(((numbers == 7) | (numbers == 1)).sum())
    total = len(pair.train_dataset) + len(pair.val_dataset)
    assert total == sum(int((d.labels == k).sum()) for d in (whole.train_dataset, whole.val_dataset) for k in (7, 1))
    assert len(pair.val_dataset) == round(0.1 * total)
    images, labels = next(iter(pair.train_dataloader()))
    assert images.shape == (32, 1, 8, 8)
    assert set(labels.tolist()) == {0, 1}


def test_limits_count_images_of_these_classes_and_augmentation_stays():
    source = Digits(image_size=8, train_limit=40, test_limit=10, augment=True, validation=6)
    pair = ClassSubset(source, classes=[0, 1])
    pair.setup()
    assert [len(d) for d in (pair.train_dataset, pair.val_dataset, pair.test_dataset)] == [40, 6, 10]
    assert pair.train_dataset._padding == 1
    assert not pair.train_dataset._flip  # digits are not mirrored
    assert pair.test_dataset.labels.bincount().tolist() == [5, 5]


def test_names_and_own_validation(tmp_path):
    import numpy as np

    draws = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("val", 9), ("test", 12)):
        arrays[f"x_{split}"] = draws.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 3
    np.savez(tmp_path / "a.npz", classes=np.array(["ant", "bee", "cat"]), **arrays)
    pair = ClassSubset(Arrays(path=str(tmp_path / "a.npz")), classes=["cat", "ant"])
    pair.prepare_data()
    pair.setup()
    assert pair.classes == ["cat", "ant"]
    assert (len(pair.train_dataset), len(pair.val_dataset), len(pair.test_dataset)) == (20, 6, 8)
    expected = torch.from_numpy(arrays["x_val"][2]).permute(2, 0, 1).float() / 255
    first = (pair.val_dataset.labels == 0).nonzero()[0, 0]
    assert torch.equal(pair.val_dataset[int(first)][0], expected)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([1], "ClassSubset: classes must be at least two, got .1."),
        ([1, 10], r"classes must be numbers below 10 or names of Digits \(0, 1, .*\), got 10"),
        ([-1, 1], "got -1"),
        (["one", 1], "got 'one'"),
        ([1, "1"], "classes must be different"),
    ],
)
def test_bad_classes_are_named(classes, message):
    with pytest.raises(ValueError, match=message):
        ClassSubset(Digits(), classes=classes).prepare_data()
