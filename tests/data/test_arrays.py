"""People's own images in an .npz file."""

import numpy as np
import pytest
import torch

from lit_adv.data.arrays import Arrays


def arrays(shape=(8, 8, 3), dtype=np.uint8):
    rng = np.random.default_rng(0)

    def images(count):
        pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        return pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)

    return {"x_train": images(20), "y_train": np.arange(20) % 4, "x_test": images(8), "y_test": np.arange(8) % 4}


def write(tmp_path, content):
    np.savez(tmp_path / "set.npz", **content)
    return str(tmp_path / "set.npz")


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 8, 8), (8, 8, 1), (1, 8, 8), (8, 8)])
def test_layouts(tmp_path, shape):
    content = arrays(shape)
    data = Arrays(write(tmp_path, content))
    data.prepare_data()
    data.setup()
    channels = 3 if 3 in shape else 1
    assert (data.in_channels, data.image_size, data.num_classes) == (channels, 8, 4)
    images, labels = data.test_dataset.batch(range(8))
    expected = content["x_test"].reshape(8, 8, 8) if channels == 1 else content["x_test"]
    expected = expected[:, None] if channels == 1 else expected
    expected = expected if expected.shape[1] == channels else expected.transpose(0, 3, 1, 2)
    assert torch.equal(images, torch.from_numpy(expected.copy()).float() / 255)
    assert labels.tolist() == content["y_test"].tolist()
    assert (len(data.train_dataset), len(data.val_dataset)) == (18, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_float_images(tmp_path, dtype):
    content = arrays(dtype=dtype)
    data = Arrays(write(tmp_path, content))
    data.setup("test")
    images, _ = data.test_dataset.batch(range(8))
    assert torch.equal(images, torch.from_numpy(content["x_test"].astype(np.float32)).permute(0, 3, 1, 2))


def test_names_sizes_and_validation(tmp_path):
    content = arrays((8, 12, 3)) | {"classes": np.array(["a", "b", "c", "d", "e"])}
    content |= {"x_val": content["x_test"], "y_val": content["y_test"]}
    data = Arrays(write(tmp_path, content), image_size=16)
    data.setup()
    assert data.classes == list("abcde")
    assert (len(data.train_dataset), len(data.val_dataset)) == (20, 8)
    assert data.train_dataset[0][0].shape == (3, 16, 16)
    with pytest.raises(ValueError, match=r"image_size must be given, '.*set.npz' has images of 8x12"):
        Arrays(data.path).setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, r"lacks y_test, it has x_train.*np.savez"),
        ({"x_val": np.zeros((1, 8, 8, 3), np.uint8)}, "lacks y_val"),
        ({"y_train": np.arange(19)}, "has 20 images in x_train, but 19 labels in y_train"),
        ({"x_test": np.full((8, 8, 8, 3), np.nan, np.float32)}, "x_test: images must be finite, got NaN"),
        ({"x_test": np.full((8, 8, 8, 3), 255.0)}, r"float images must be in \[0, 1\], got 255 to 255 \(divide by 255"),
        ({"x_test": np.full((8, 8, 8, 3), -0.1)}, r"must be in \[0, 1\], got -0.1"),
        ({"x_train": np.zeros((20, 8, 8, 3), np.int64)}, "images must be uint8 or float, got int64"),
        ({"x_train": np.zeros((20, 192), np.uint8)}, r"images must be \(N, H, W, C\), .* got \(20, 192\)"),
        ({"x_train": np.zeros((20, 8, 8, 5), np.uint8)}, "must have 1 or 3 channels"),
        ({"x_test": np.zeros((8, 8, 8, 1), np.uint8)}, "has 1 channels in x_test, but 3 in x_train"),
        ({"y_train": np.arange(20) % 4 + 0.5}, r"y_train: labels must be integers \(N,\), got float64"),
        ({"y_train": np.arange(20) - 1}, "labels must count from 0, got -1"),
        ({"y_test": np.zeros(0, np.int64), "x_test": np.zeros((0, 8, 8, 3), np.uint8)}, "count from 0, got none"),
        ({"classes": np.array(["a", "b"])}, "names 2 classes, got the label 3"),
        ({"y_train": np.array([{}] * 20)}, "holds Python objects in y_train, which could run code"),
    ],
)
def test_bad_content(tmp_path, change, message):
    content = {key: value for key, value in (arrays() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Arrays(write(tmp_path, content)).prepare_data()


def test_unusable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none.npz'"):
        Arrays(str(tmp_path / "none.npz")).prepare_data()
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **arrays())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"set.npz' is truncated or no .npz file"):
            Arrays(str(path)).prepare_data()
    damaged = bytearray(whole)
    damaged[200:240] = bytes(40)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"is truncated or no .npz file"):
        Arrays(str(path)).prepare_data()
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"must be an .npz file, got a single array"):
        Arrays(str(tmp_path / "one.npy")).prepare_data()


def test_download_is_refused():
    with pytest.raises(ValueError, match="download must be false"):
        Arrays("set.npz", download=True)
