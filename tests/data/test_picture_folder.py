"""Pictures of all kinds, and what only looks like one: read with the right levels, or reported."""

import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lit_adv.data import PictureFolder, read_picture
from lit_adv.data.picture_folder import _Pictures, _SizeBatches

DRAWS = np.random.default_rng(0)
RGB = DRAWS.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def batches(folder):
    return list(folder.predict_dataloader())


@pytest.fixture
def folder(tmp_path):
    """Every kind of file at once."""
    Image.fromarray(RGB).save(tmp_path / "colour.png")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.fromarray(RGB).save(tmp_path / "deep" / "er" / "PHOTO.JPG", quality=95)
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    alpha = np.dstack([RGB, np.full((6, 9), 77, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    frames = [Image.fromarray(RGB).quantize(16), Image.fromarray(255 - RGB).quantize(16)]
    frames[0].save(tmp_path / "palette.png")
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "print.jpg")
    whole = (tmp_path / "colour.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "notes.txt").write_text("not a picture")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "link.png")
    Image.fromarray(np.zeros((300, 400), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000))
    Image.fromarray(RGB[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / ".hidden.png").write_text("")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "thumb.png").write_text("")
    return tmp_path


def bomb(width, height):
    """The head of a PNG of so many pixels, and no more than a few bytes of them."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def test_every_file_is_read_or_reported(folder):
    data = PictureFolder(str(folder), max_pixels=100_000)
    data.setup("predict")
    found = {file.name: file for file in data.files}
    assert sorted(found) == [file.name for file in data.files]
    notes = {name: file.note for name, file in found.items() if not file.problem}
    assert notes == {
        "alpha.png": "alpha left out",
        "broken.png": "",  # known only when its pixels are read
        "colour.png": "",
        "deep/er/PHOTO.JPG": "",
        "grey.png": "grey",
        "moving.gif": "first of several frames, palette",
        "palette.png": "palette",
        "print.jpg": "CMYK",
        "sixteen.png": "16 bits, taken as 8, grey",
    }
    problems = {name: file.problem for name, file in found.items() if file.problem}
    assert problems.pop("notes.txt") == "not a picture (ending .txt)"
    assert problems.pop("large.png") == "120,000 pixels are more than max_pixels, 100,000 (--data.max_pixels)"
    assert problems.pop("bomb.png").startswith("too large to be opened: Image size (3600000000 pixels)")
    assert problems.pop("link.png") == "not a file that can be read (a broken link?)"
    assert problems.pop("float.tif").startswith("pixels of mode F have no fixed range")
    for name in ("empty.png", "text.png"):
        assert problems.pop(name) == "damaged or no picture: cannot identify image file"
    assert not problems
    assert (found["colour.png"].width, found["colour.png"].height, found["colour.png"].format) == (9, 6, "PNG")
    assert found["deep/er/PHOTO.JPG"].format == "JPEG"

    read = batches(data)
    assert sorted(row for batch in read for row in batch.rows) == [
        row for row, file in enumerate(data.files) if not file.problem and file.name != "broken.png"
    ]
    ((row, reason),) = [tuple(failed) for batch in read for failed in batch.failed]
    assert data.files[row].name == "broken.png"
    assert reason.startswith("damaged or no picture: ")
    assert str(folder) not in reason
    assert all(batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, 6, 9) for batch in read)


def test_folders_that_are_not_looked_into_are_reported(tmp_path, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path, target_is_directory=True)
    scan = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("closed"):  # which nobody refuses root
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    module = PictureFolder(str(tmp_path))
    module.setup("predict")
    told = {file.name: file.problem for file in module.files}
    assert told == {
        "a.png": "",
        "closed": "a folder that cannot be read",
        "loop.png": "a link to a folder, not followed",
    }


def test_levels_are_those_of_the_file(folder):
    colour = torch.from_numpy(RGB).permute(2, 0, 1)
    grey = colour[:1]
    assert torch.equal(read_picture(folder / "colour.png"), colour)
    assert torch.equal(read_picture(folder / "alpha.png"), colour)
    assert torch.equal(read_picture(folder / "grey.png"), grey.expand(3, -1, -1))
    assert torch.equal(read_picture(folder / "grey.png", channels=1), grey)
    assert torch.equal(read_picture(folder / "sixteen.png", channels=1), grey)
    for name in ("palette.png", "moving.gif"):
        expected = np.array(Image.fromarray(RGB).quantize(16).convert("RGB"))
        assert torch.equal(read_picture(folder / name), torch.from_numpy(expected).permute(2, 0, 1))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert (read_picture(folder / "colour.png", channels=1) - (weights * colour).sum(0)).abs().max() <= 0.51
    with pytest.raises(ValueError, match="mode F"):
        read_picture(folder / "float.tif")


def test_a_merely_large_one_is_read(folder):
    data = PictureFolder(str(folder / "large.png"))
    data.setup("predict")
    (batch,) = batches(data)
    assert batch.images.shape == (1, 3, 300, 400)
    assert data.files[0].name == "large.png"


def test_a_palette_with_transparent_colours(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes(range(16)))
    data = PictureFolder(str(tmp_path))
    data.setup("predict")
    assert data.files[0].note == "palette, alpha left out"
    assert torch.equal(batches(data)[0].images[0], torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def test_a_network_of_one_channel_gets_grey(folder):
    data = PictureFolder(str(folder), max_pixels=100_000, in_channels=1)
    data.setup("predict")
    assert {file.name: file.note for file in data.files}["colour.png"] == "colour, taken as grey"
    assert {file.name: file.note for file in data.files}["grey.png"] == ""
    assert all(batch.images.shape[1] == 1 for batch in batches(data))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_ranks_share_batches_of_one_size(tmp_path, ranks, batch_size):
    for number in range(5):
        Image.fromarray(RGB[: 3 + number % 2]).save(tmp_path / f"{number}.png")
    data = PictureFolder(str(tmp_path), batch_size=batch_size)
    data.setup("predict")
    pictures = _Pictures(data.files, 3)
    plans = [list(_SizeBatches(pictures, data.files, batch_size, ranks, rank)) for rank in range(ranks)]
    assert sorted(row for plan in plans for keys in plan for row in keys) == list(range(5))
    assert len({len(plan) for plan in plans}) == 1  # nobody waits for a batch that another has not
    assert {len(_SizeBatches(pictures, data.files, batch_size, ranks, 0))} == {len(plan) for plan in plans}
    for keys in (keys for plan in plans for keys in plan):
        batch = pictures[keys]
        assert len(batch.images) == len(keys) <= batch_size
        assert batch.rows == keys


def test_large_pictures_come_in_small_batches(tmp_path):
    for number in range(3):
        Image.fromarray(np.zeros((1500, 1500), np.uint8)).save(tmp_path / f"{number}.png")
    data = PictureFolder(str(tmp_path))
    data.setup("predict")
    assert [len(batch.rows) for batch in batches(data)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", r"path '.*none' does not exist \(--data.path FOLDER\)"),
        (lambda folder: folder, "has no pictures: it is empty"),
    ],
)
def test_a_missing_or_empty_folder_is_refused_at_once(tmp_path, make, message):
    with pytest.raises(FileNotFoundError, match=message):
        PictureFolder(str(make(tmp_path)))


def test_a_folder_without_pictures_is_refused_at_once(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="has no pictures: its 1 files have other endings"):
        PictureFolder(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 0), ("num_workers", -1), ("max_pixels", 0), ("in_channels", 4)]
)
def test_bad_fields_are_refused_by_name(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"PictureFolder: {field} must be"):
        PictureFolder(str(tmp_path), **{field: value})
