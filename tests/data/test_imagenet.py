"""ImageNet's layout, on a few small images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from lit_adv.data.imagenet import ImageNet

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
    assert (data.test_dataset[0][0] * 255 - expected).abs().max() <= 0.501
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
