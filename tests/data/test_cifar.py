"""CIFAR-10 and CIFAR-100, on small files of the official format."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets

from lit_adv.data.cifar import CIFAR10, CIFAR100


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """20 images a batch, and hashes to match."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    arrays = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()

    hashes = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        arrays[name] = rng.integers(0, 256, (20, 3072), dtype=np.uint8), [i % 10 for i in range(20)]
        hashes[name] = write(name, {"data": arrays[name][0], "labels": arrays[name][1]})
    names = {"label_names": CIFAR10().classes}
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", names)}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[n, hashes[n]] for n in hashes if n != "test_batch"])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", hashes["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path, folder, arrays


def test_pixels_and_labels(small_set):
    root, _, arrays = small_set
    data = CIFAR10(root=str(root))
    data.prepare_data()
    data.setup()
    images, labels = data.test_dataset.batch(range(20))
    assert torch.equal(images, torch.from_numpy(arrays["test_batch"][0]).view(20, 3, 32, 32).float() / 255)
    assert labels.tolist() == arrays["test_batch"][1]
    assert (len(data.train_dataset), len(data.val_dataset)) == (90, 10)
    assert data.val_dataset.labels.bincount().tolist() == [1] * 10


def test_resizing(small_set):
    data = CIFAR10(root=str(small_set[0]), image_size=64, test_limit=10)
    data.setup("test")
    assert data.test_dataset[0][0].shape == (3, 64, 64)
    assert len(data.test_dataset) == 10


def test_missing_files(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"CIFAR10: 'data_batch_1' is not in '.*cifar-10-batches-py' \(use `--data.download true`",
    ):
        CIFAR10(root=str(tmp_path)).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"CIFAR100: 'train' is not in '.*cifar-100-python'"):
        CIFAR100(root=str(tmp_path)).setup("fit")


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_changed_file_is_never_unpickled(small_set, name):
    root, folder, _ = small_set
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' is truncated or not the published file"):
        CIFAR10(root=str(root)).prepare_data()
    with pytest.raises(ValueError, match="not the published file"):
        CIFAR10(root=str(root)).setup("test")


def test_failed_download(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", refuse)
    with pytest.raises(RuntimeError, match=r"CIFAR10: the download to '.*' failed: no route to host \(put https://"):
        CIFAR10(root=str(tmp_path), download=True).prepare_data()


def test_names_without_files():
    assert CIFAR10().classes[3] == "cat"
    names = CIFAR100().classes
    assert len(set(names)) == CIFAR100().num_classes == 100
    assert names == sorted(names)
