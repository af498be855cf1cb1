"""Oxford-IIIT Pet by species, from files made here, as torchvision reads them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from lit_adv.data import CatsVsDogs


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    draws = np.random.default_rng(0)
    for split, count in (("trainval", 10), ("test", 5)):
        lines = []
        for i in range(count):
            cat = i % 3 == 0
            name = f"{'Abyssinian' if cat else 'beagle'}_{split}_{i}"
            pixels = draws.integers(0, 128, (30, 20 + i, 3)) + 128 * (not cat)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{name}.jpg", quality=95)
            lines.append(f"{name} {1 if cat else 5} {1 if cat else 2} 1")
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_species_are_torchvisions(root):
    data = CatsVsDogs(root=str(root), image_size=16, validation=0)
    data.prepare_data()
    data.setup()
    assert (data.classes, data.num_classes, data.image_size) == (["cat", "dog"], 2, 16)
    reference = OxfordIIITPet(str(root), split="test", target_types="binary-category")
    assert data.test_dataset.labels.tolist() == [label for _, label in reference]
    images, labels = data.test_dataset.batch(range(5))
    assert images.shape == (5, 3, 16, 16)
    assert torch.equal((images.mean((1, 2, 3)) > 0.5).long(), labels)
    assert len(data.train_dataset) == 10
    assert CatsVsDogs(root=str(root)).image_size == 224


def test_missing_files_say_how_to_get_them(root):
    with pytest.raises(FileNotFoundError, match=r"CatsVsDogs: 'images' is not in .*--data.download true"):
        CatsVsDogs(root=str(root / "none")).prepare_data()
    gone = root / "oxford-iiit-pet" / "images" / "beagle_test_1.jpg"
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"beagle_test_1.jpg' is listed but not there"):
        CatsVsDogs(root=str(root)).prepare_data()


def test_a_damaged_list_is_named(root):
    (root / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("beagle_1 5 3 1\n")
    with pytest.raises(ValueError, match=r"test.txt' holds the line 'beagle_1 5 3 1'"):
        CatsVsDogs(root=str(root)).prepare_data()
