"""People's own folders of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from lit_adv.data.folder import ImageFolder


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (12, 12, 3), dtype=np.uint8) + 128 * label
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / split / name / f"{i}.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_images_and_labels(root):
    data = ImageFolder(root=str(root), validation=4)
    data.prepare_data()
    data.setup()
    assert (data.classes, data.image_size, data.in_channels) == (["cat", "dog"], 12, 3)
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (16, 4, 8)
    for dataset in (data.train_dataset, data.val_dataset, data.test_dataset):
        images, labels = dataset.batch(range(len(dataset)))
        assert torch.equal((images.amin(dim=(1, 2, 3)) >= 0.5).long(), labels)
        assert torch.equal((images * 255).round() / 255, images)
    source = np.asarray(Image.open(root / "test" / "cat" / "0.png"))
    assert torch.equal(data.test_dataset[0][0], torch.from_numpy(source.copy()).permute(2, 0, 1).float() / 255)


def test_own_validation_folder(root):
    (root / "val" / "dog").mkdir(parents=True)
    Image.new("RGB", (12, 12), "white").save(root / "val" / "dog" / "a.JPG")
    data = ImageFolder(root=str(root))
    data.setup("fit")
    assert (len(data.train_dataset), data.val_dataset.labels.tolist()) == (20, [1])


def test_size_and_grey(root):
    Image.new("RGB", (30, 20), "white").save(root / "train" / "cat" / "wide.png")
    data = ImageFolder(root=str(root), image_size=8, in_channels=1, batch_size=32)
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape[1:] == (1, 8, 8)


def test_size_must_be_given_where_images_are_not_square(root):
    Image.new("RGB", (30, 20)).save(root / "train" / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"image_size must be given where images are not square, '.*0.png' is 20x30"):
        ImageFolder(root=str(root)).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_named(root, workers):
    path = root / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    data = ImageFolder(root=str(root), image_size=12, validation=0, num_workers=workers)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"dog/3.png' is truncated or not an image"):
        list(data.train_dataloader())


def test_missing_folders(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ImageFolder: '.*none/train' has no class folders"):
        ImageFolder(root=str(tmp_path / "none")).prepare_data()
    for path in (root / "test" / "cat").iterdir():
        path.unlink()
    for path in (root / "test" / "dog").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"'.*test' has no images"):
        ImageFolder(root=str(root)).prepare_data()


def test_unknown_class(root):
    (root / "test" / "bird").mkdir()
    with pytest.raises(ValueError, match=r"test' has the class 'bird', which '.*train' has not"):
        ImageFolder(root=str(root)).prepare_data()


def test_bad_fields(root):
    with pytest.raises(ValueError, match=r"in_channels must be 1 \(grey\) or 3 \(colour\), got 4"):
        ImageFolder(root=str(root), in_channels=4)
    with pytest.raises(ValueError, match="download must be false"):
        ImageFolder(root=str(root), download=True).prepare_data()
