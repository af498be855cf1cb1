"""Datasets of 8-bit images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lit_adv.data.datasets import ImageFiles, TensorImages, read_image, to_square


def pixels(count=5, channels=3, height=8, width=8):
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_level_is_exact():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    image, label = TensorImages(levels, torch.tensor([3]))[0]
    assert label == 3
    assert image.dtype == torch.float32
    assert torch.equal(image.flatten(), torch.arange(256) / 255)
    assert torch.equal((image * 255).round().to(torch.uint8), levels[0])


def test_items_and_batches_agree():
    data = TensorImages(pixels(), torch.arange(5))
    images, labels = data.batch([4, 1])
    assert labels.tolist() == [4, 1]
    assert torch.equal(images[0], data[4][0])
    collated = next(iter(DataLoader(data, batch_size=5)))
    assert torch.equal(collated[0], data.batch(range(5))[0])
    assert torch.equal(collated[1], torch.arange(5))


def test_float_images_are_left_alone():
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(TensorImages(images, torch.zeros(2, dtype=torch.int64)).batch([0, 1])[0], images)


def test_subset_keeps_pairs_together():
    data = TensorImages(pixels(), torch.arange(5)).subset(torch.tensor([3, 0]))
    assert len(data) == 2
    assert data[0][1] == 3
    assert torch.equal(data[0][0], pixels()[3].float() / 255)


def test_augmented_images_are_crops_of_the_padded_one():
    torch.manual_seed(0)
    plain = TensorImages(pixels(1, 2, 6, 6), torch.tensor([1]))
    padded = torch.nn.functional.pad(plain[0][0], (2,) * 4)
    crops = [padded[:, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
    drawn = [plain.augmented(2, flip=True)[0][0] for _ in range(200)]
    found = {i for image in drawn for i, crop in enumerate(crops) if torch.equal(image, crop)}
    flipped = {i for image in drawn for i, crop in enumerate(crops) if torch.equal(image, crop.flip(2))}
    assert all(any(torch.equal(i, c) or torch.equal(i, c.flip(2)) for c in crops) for i in drawn)
    assert len(found) > 20
    assert len(flipped) > 20
    assert not any(torch.equal(plain.augmented(2, flip=False)[0][0], crop.flip(2)) for crop in crops)
    assert torch.equal(plain[0][0], plain[0][0])


def test_images_of_a_batch_are_cropped_differently():
    torch.manual_seed(0)
    data = TensorImages(pixels(1).expand(30, -1, -1, -1), torch.zeros(30, dtype=torch.int64)).augmented(1, flip=False)
    images, _ = data.batch(range(30))
    assert len({image.numpy().tobytes() for image in images}) > 4


def test_augmentation_by_epoch_does_not_depend_on_the_batch():
    data = TensorImages(pixels(), torch.arange(5)).augmented(2, flip=True, seed=4)
    whole, _ = data.batch(range(5), epoch=1)
    part, _ = data.batch([3, 1], epoch=1)
    assert torch.equal(part, whole[[3, 1]])
    assert not torch.equal(data.batch(range(5), epoch=2)[0], whole)
    assert not torch.equal(data.augmented(2, flip=True, seed=5).batch(range(5), epoch=1)[0], whole)


def test_to_square_leaves_fitting_images_untouched():
    images = pixels()
    assert to_square(images, 8) is images


def test_to_square_rounds_to_8_bits():
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    large = to_square(images, 16)
    assert large.dtype == torch.uint8
    expected = torch.nn.functional.interpolate(images * 255, size=(16, 16), mode="bilinear", align_corners=False)
    assert (large.float() - expected).abs().max() <= 0.5 + 1e-3


def test_to_square_averages_when_it_shrinks():
    """Antialiasing: a fine checkerboard becomes grey, not black or white."""
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 255).to(torch.uint8).view(1, 1, 16, 16)
    inner = to_square(board, 4)[:, :, 1:-1, 1:-1]
    assert (inner.float() - 127.5).abs().max() < 20


def test_to_square_cuts_the_centre():
    wide = torch.zeros(1, 1, 4, 12, dtype=torch.uint8)
    wide[..., 4:8] = 200
    assert torch.equal(to_square(wide, 4), torch.full((1, 1, 4, 4), 200, dtype=torch.uint8))
    assert to_square(pixels(1, 3, 20, 30), 8, margin=2).shape == (1, 3, 8, 8)


def test_files(tmp_path):
    source = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, image in zip(paths, source, strict=True):
        Image.fromarray(image).save(path)
    data = ImageFiles(paths, torch.arange(3), None)
    assert torch.equal(data[1][0], torch.from_numpy(source[1]).permute(2, 0, 1).float() / 255)
    assert data.subset(torch.tensor([2]))[0][1] == 2
    assert ImageFiles(paths, torch.arange(3), 12, in_channels=1).batch([0, 1])[0].shape == (2, 1, 12, 12)


def test_damaged_file_is_named(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image"):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.jpg' is truncated or not an image"):
            read_image(tmp_path / "a.jpg")
