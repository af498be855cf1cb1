"""ImageNet's layout, on a few small images."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from lit_adv.data.imagenet import TRIES, ImageNet, part_of

WNIDS = ["n01440764", "n01443537"]


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for wnid in WNIDS:
            (tmp_path / split / wnid).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / wnid / f"{i}.JPEG")
    return tmp_path


def test_official_validation_is_the_test_set(root):
    data = ImageNet(root=str(root), validation=2, image_size=28)
    data.prepare_data()
    data.setup()
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (8, 2, 4)
    assert data.classes == WNIDS
    assert data.test_dataset.labels.tolist() == [0, 0, 1, 1]


def test_resize_to_eight_sevenths_and_cut(root):
    data = ImageNet(root=str(root), image_size=28)
    data.setup("test")
    source = torch.from_numpy(np.asarray(Image.open(root / "val" / WNIDS[0] / "0.JPEG")).copy()).permute(2, 0, 1)
    expected = TF.center_crop(TF.resize(source.float(), [32], antialias=True), [28])
    assert (data.test_dataset[0][0] * 255 - expected).abs().max() <= 1.001  # resized in 8 bits
    assert torch.equal(data.test_dataset[0][0], data.test_dataset[0][0])


def test_default_size_is_224(root):
    data = ImageNet(root=str(root))
    data.setup("test")
    assert data.image_size == 224
    assert data.test_dataset[0][0].shape == (3, 224, 224)


def test_names_without_files(tmp_path):
    data = ImageNet(root=str(tmp_path))
    assert data.num_classes == 1000
    assert data.classes[1] == "goldfish"


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ImageNet: 'train' is not in '.*' \(get ILSVRC2012_img_train.tar"):
        ImageNet(root=str(tmp_path)).prepare_data()
    with pytest.raises(ValueError, match=r"download must be false.*image-net.org"):
        ImageNet(root=str(tmp_path), download=True).prepare_data()


def test_damaged_archives(tmp_path):
    for name in ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar"):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train.tar' cannot be unpacked"):
        ImageNet(root=str(tmp_path)).prepare_data()


def test_augmentation_is_of_seed_epoch_and_image(root):
    data = ImageNet(root=str(root), image_size=28, validation=2, augment=True, seed=3)
    data.setup("fit")
    whole, _ = data.train_dataset.batch(range(8), epoch=1)
    assert whole.shape == (8, 3, 28, 28)
    assert torch.equal(data.train_dataset.batch([5, 2], epoch=1)[0], whole[[5, 2]])
    assert not torch.equal(data.train_dataset.batch([5, 2], epoch=2)[0], whole[[5, 2]])
    levels, _ = data.train_dataset.batch(range(8), epoch=1, levels=True)
    assert levels.dtype == torch.uint8
    assert torch.equal(levels / 255, whole)
    plain = data.train_dataset.subset(torch.arange(8))
    assert torch.equal(plain.batch([1])[0], plain.batch([1])[0])


def test_the_augmented_image_is_the_part_resized(root):
    data = ImageNet(root=str(root), image_size=28, validation=2, augment=True)
    data.setup("fit")
    for index in range(8):
        numbers = np.random.default_rng([0, 4, index]).random(2 * TRIES + 3)
        top, left, height, width = part_of(40, 60, numbers)
        with Image.open(os.fsdecode(data.train_dataset.paths[index])) as picture:
            part = picture.crop((left, top, left + width, top + height)).resize((28, 28), Image.Resampling.BILINEAR)
        expected = np.asarray(part).astype(int)
        expected = expected[:, ::-1] if numbers[-1] < 0.5 else expected
        found = data.train_dataset.batch([index], 4, levels=True)[0][0].permute(1, 2, 0).numpy()
        assert np.abs(found - expected).max() <= 1


def test_parts_have_the_areas_and_shapes_of_the_paper():
    draws = np.random.default_rng(0).random((20_000, 2 * TRIES + 3))
    parts = np.array([part_of(375, 500, numbers) for numbers in draws])
    top, left, height, width = parts.T
    assert ((top >= 0) & (left >= 0) & (top + height <= 375) & (left + width <= 500)).all()
    area, shape = height * width / (375 * 500), width / height
    assert 0.078 < area.min() < 0.09
    assert area.max() > 0.97
    assert 0.74 < shape.min() < 0.76
    assert 1.31 < shape.max() < 1.35
    # shapes are uniform on a logarithmic scale where every one fits
    fits = area < 0.5
    assert abs(np.log(shape[fits]).mean()) < 0.01
    assert np.log(shape[fits]).std() == pytest.approx(2 * np.log(4 / 3) / 12**0.5, rel=0.02)


def test_pictures_of_extreme_shape_give_the_part_in_the_middle():
    for height, width in ((1, 500), (500, 1), (3, 300)):
        top, left, rows, columns = part_of(height, width, [0.5] * (2 * TRIES + 3))
        assert rows >= 1
        assert columns >= 1
        assert 3 / 4 - 0.2 <= columns / rows <= 4 / 3 + 0.2
        assert abs(2 * top + rows - height) <= 1
        assert abs(2 * left + columns - width) <= 1
