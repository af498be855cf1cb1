"""MNIST and Fashion-MNIST, on small files of the official format."""

import struct

import numpy as np
import pytest
import torch
from torchvision import datasets

from lit_adv.data.mnist import MNIST, FashionMNIST


def write(folder, prefix, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">4BI", 0, 0, 8, 1, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())


@pytest.fixture(params=[MNIST, FashionMNIST])
def small_set(request, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / request.param.__name__ / "raw"
    arrays = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        arrays[prefix] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 10
        write(folder, prefix, *arrays[prefix])
    return request.param, tmp_path, folder, arrays


def test_pixels_and_labels(small_set):
    kind, root, _, arrays = small_set
    data = kind(root=str(root), validation=10)
    data.prepare_data()
    data.setup()
    images, labels = data.test_dataset.batch(range(20))
    assert torch.equal(images[:, 0], torch.from_numpy(arrays["t10k"][0]).float() / 255)
    assert labels.tolist() == arrays["t10k"][1].tolist()
    assert (len(data.train_dataset), len(data.val_dataset)) == (30, 10)
    assert (data.image_size, data.in_channels, data.num_classes) == (28, 1, 10)


def test_resizing(small_set):
    kind, root, _, _ = small_set
    data = kind(root=str(root), image_size=32)
    data.setup("test")
    assert data.test_dataset[0][0].shape == (1, 32, 32)


def test_missing_files(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"MNIST: 'train-images-idx3-ubyte' is not in '.*MNIST/raw' \(use `--data.download true`",
    ):
        MNIST(root=str(tmp_path)).prepare_data()
    with pytest.raises(FileNotFoundError, match="is not in"):
        MNIST(root=str(tmp_path)).setup("fit")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("length", [0, 3, 7, 12])
def test_truncated_files(small_set, name, length):
    kind, root, folder, _ = small_set
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:length])
    with pytest.raises(ValueError, match=rf"{name}' is truncated or no IDX file"):
        kind(root=str(root)).prepare_data()


def test_one_image_short(small_set):
    kind, root, folder, arrays = small_set
    images, labels = arrays["train"]
    write(folder, "train", images[:-1], labels)
    with pytest.raises(ValueError, match="has 39 images and 'train-labels-idx1-ubyte' 40 labels"):
        kind(root=str(root)).prepare_data()


def test_failed_download(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", refuse)
    with pytest.raises(RuntimeError, match=r"MNIST: the download to '.*' failed: no route to host"):
        MNIST(root=str(tmp_path), download=True).prepare_data()


def test_names_without_files(tmp_path):
    assert MNIST(root=str(tmp_path)).num_classes == 10
    assert FashionMNIST(root=str(tmp_path)).classes[9] == "Ankle boot"
