"""Cell images as they are published, from files made here."""

import numpy as np
import pytest
import torch
from PIL import Image

from lit_adv.data import Malaria


@pytest.fixture
def root(tmp_path):
    draws = np.random.default_rng(0)
    for label, name in enumerate(("Uninfected", "Parasitized")):
        (tmp_path / "cell_images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = draws.integers(0, 128, (30 + i, 40, 3)) + 128 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "cell_images" / name / f"{i}.png")
        (tmp_path / "cell_images" / name / "Thumbs.db").write_bytes(b"not an image")
    return tmp_path


def test_images_and_split(root):
    data = Malaria(root=str(root), image_size=16, validation=4)
    data.prepare_data()
    data.setup()
    assert data.classes == ["uninfected", "parasitised"]
    parts = (data.train_dataset, data.val_dataset, data.test_dataset)
    assert [len(part) for part in parts] == [28, 4, 8]
    for part in parts:
        images, labels = part.batch(range(len(part)))
        assert images.shape[1:] == (3, 16, 16)
        assert torch.equal((images.mean((1, 2, 3)) > 0.5).long(), labels)
        assert labels.bincount().tolist() == [len(part) // 2] * 2
    # no image is in two parts, and the test set does not depend on the seed
    paths = [set(part.paths.tolist()) for part in parts]
    assert len(set.union(*paths)) == 40
    other = Malaria(root=str(root), seed=5)
    other.setup("test")
    assert set(other.test_dataset.paths.tolist()) == paths[2]
    assert other.image_size == 64


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Malaria: 'Uninfected' is not in .* \(unpack cell_images.zip"):
        Malaria(root=str(tmp_path / "none")).prepare_data()
    for path in (root / "cell_images" / "Parasitized").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="must have images of both classes"):
        Malaria(root=str(root)).prepare_data()
    with pytest.raises(ValueError, match="download must be false"):
        Malaria(root=str(root), download=True).prepare_data()
