"""Anybody's pictures, of any size and of no class: a folder to be looked at, in which nothing is fatal."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lit_adv.data.batches import EpochBatches, Keys, PredictionLoader, ResumableLoader
from lit_adv.data.datasets import path_array
from lit_adv.data.folder import EXTENSIONS
from lit_adv.data.sampling import rank_and_world

PICTURES = EXTENSIONS | {".gif"}
"""Files with these endings, in any case, are opened."""
# of a batch, so that what workers hold stays small whatever the size of the pictures
_PIXELS_A_BATCH = 1 << 22


class PictureFile(NamedTuple):
    """What is known of a file before its pixels are read.

    Attributes:
        name: Path relative to the folder, with ``/``.
        path: Where it is.
        width: In pixels; 0 where it is not known.
        height: In pixels.
        format: As the file says (PNG, JPEG, ...), not its ending; empty where it is no picture.
        note: What was done to it, such as ``grey``; empty for ordinary pictures.
        problem: Why it is not looked at; empty where it is.
    """

    name: str
    path: str
    width: int = 0
    height: int = 0
    format: str = ""
    note: str = ""
    problem: str = ""


class PictureBatch(NamedTuple):
    """Pictures of one size.

    Attributes:
        images: ``(B, C, H, W)`` uint8.
        rows: B indices into the data module's `files`.
        failed: (index, reason) of the files that turned out to be damaged when they were read.
    """

    images: Tensor
    rows: list[int]
    failed: list[tuple[int, str]]


class PictureFolder(pl.LightningDataModule):
    """All pictures in a folder and the folders in it, each at its own size, for `lightning predict`.

    Nothing is resized, since that destroys what an attack has left; a batch holds pictures of one size. A file that
    cannot be used stays in `files` with the reason. Of an animation the first frame is taken; alpha is left out, as
    image loaders do; 16 bits are rounded to the 8 that networks were trained on. Files and folders whose names begin
    with a dot are passed over; links to folders are not followed.

    Args:
        path: The folder, or a single file.
        batch_size: Most pictures a batch and process; fewer where they are large.
        num_workers: Processes that read files.
        max_pixels: Larger pictures are not looked at: one takes some 70 bytes a pixel.
        in_channels: 3 for colour, 1 for grey; None takes what the trainer's network was trained on, else 3.

    Attributes:
        files: After `setup`, all files in the order of their names, and folders that were not looked into.

    Raises:
        FileNotFoundError: There is no such folder, or no file with a picture's ending in it.
        ValueError: A field is out of range.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 64,
        num_workers: int = 0,
        max_pixels: int = 4096 * 4096,
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        for field, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("max_pixels", max_pixels, 1),
        ):
            if value < least:
                raise ValueError(f"PictureFolder: {field} must be at least {least}, got {value}")
        if in_channels not in (None, 1, 3):
            raise ValueError(f"PictureFolder: in_channels must be 1 (grey) or 3 (colour), got {in_channels}")
        self.path = Path(path)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.max_pixels = max_pixels
        self.in_channels = in_channels
        self.files: list[PictureFile] = []
        self._names = _names(self.path)

    def setup(self, stage: str | None = None) -> None:
        """Reads what the files say of themselves; their pixels are read batch by batch."""
        if not self.files:
            folder = self.path if self.path.is_dir() else self.path.parent
            self.files = [look_at(name, folder / name, self.max_pixels, self._channels()) for name in self._names]

    def predict_dataloader(self) -> PredictionLoader:
        """Batches of `PictureBatch`; every file that can be used once over all processes."""
        pictures = _Pictures(self.files, self._channels())
        rank, ranks = rank_and_world()
        batches = _SizeBatches(pictures, self.files, self.batch_size, ranks, rank)
        return PredictionLoader(ResumableLoader(pictures, sampler=batches, num_workers=self.num_workers))

    def _channels(self) -> int:
        network = getattr(self.trainer, "lightning_module", None)
        return int(self.in_channels or getattr(network, "hparams", {}).get("in_channels") or 3)


def look_at(name: str, path: Path, max_pixels: int, channels: int = 3) -> PictureFile:
    """What a file says of itself; never an exception."""
    if path.is_dir():
        why = "a link to a folder, not followed" if path.is_symlink() else "a folder that cannot be read"
        return PictureFile(name, str(path), problem=why)
    if path.suffix.lower() not in PICTURES:
        return PictureFile(name, str(path), problem=f"not a picture (ending {path.suffix or 'none'})")
    if not path.is_file():
        return PictureFile(name, str(path), problem="not a file that can be read (a broken link?)")
    try:
        with _opened(path) as image:
            (width, height), kind = image.size, str(image.format)
            note = ", ".join(_notes(image, channels))
            problem = _unfit(image)
    # a damaged file stops its reader in any way
    except Exception as error:
        return PictureFile(name, str(path), problem=_reason(error, path))
    if width * height > max_pixels:
        problem = f"{width * height:,} pixels are more than max_pixels, {max_pixels:,} (--data.max_pixels)"
    return PictureFile(name, str(path), width, height, kind, note, problem)


def read_picture(path: str | Path, channels: int = 3) -> Tensor:
    """The pixels of a picture as uint8 ``(C, H, W)``, converted to colour (3) or grey (1).

    Raises:
        ValueError: Its pixels have no fixed range.
    """
    with _opened(path) as image:
        if problem := _unfit(image):
            raise ValueError(problem)
        picture: Image.Image = image
        if image.mode.startswith("I"):
            levels = np.asarray(image).astype(np.float64) / 257
            picture = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
        elif image.mode in ("P", "PA") and "transparency" in image.info:
            picture = image.convert("RGBA")  # which PIL asks for
        pixels = np.array(picture.convert("RGB" if channels == 3 else "L"))
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()


class _Pictures(Dataset[PictureBatch]):
    def __init__(self, files: list[PictureFile], channels: int) -> None:
        self.paths = path_array([file.path for file in files])
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, keys: Keys) -> PictureBatch:
        images: list[Tensor] = []
        rows, failed = [], []
        for row in keys:
            path = os.fsdecode(bytes(self.paths[row]))
            try:
                image = read_picture(path, self.channels)
                if images and image.shape != images[0].shape:
                    raise ValueError("it changed while it was read")
            except Exception as error:
                failed.append((row, _reason(error, path)))
            else:
                images.append(image)
                rows.append(row)
        empty = torch.zeros(0, self.channels, 1, 1, dtype=torch.uint8)
        return PictureBatch(torch.stack(images) if images else empty, rows, failed)


class _SizeBatches(EpochBatches):
    """Batches of one size; a rank that has fewer of them than another ends with empty ones."""

    def __init__(self, dataset: Dataset[Any], files: list[PictureFile], batch_size: int, ranks: int, rank: int) -> None:
        super().__init__(dataset, ranks, rank)
        self.batch_size = batch_size
        self.groups: dict[tuple[int, int], list[int]] = {}
        for row, file in enumerate(files):
            if not file.problem:
                self.groups.setdefault((file.height, file.width), []).append(row)

    def __len__(self) -> int:
        return max(1, *(sum(1 for _ in self._share(rank)) for rank in range(self.num_replicas)))

    def plan(self, start: int) -> Iterator[Keys]:
        """This rank's batches, from one on."""
        mine: list[Keys] = list(self._share(self.rank))
        yield from (mine + [[] for _ in range(len(self) - len(mine))])[start:]

    def _share(self, rank: int) -> Iterator[Keys]:
        for (height, width), rows in self.groups.items():
            mine = rows[rank :: self.num_replicas]
            step = max(1, min(self.batch_size, _PIXELS_A_BATCH // (height * width)))
            yield from (mine[start : start + step] for start in range(0, len(mine), step))


def _names(path: Path) -> list[str]:
    """Names of the files in a folder, relative to it."""
    if path.is_file():
        return [path.name]
    if not path.is_dir():
        raise FileNotFoundError(f"PictureFolder: path '{path}' does not exist (--data.path FOLDER)")
    found, unread = [], []

    def keep(error: OSError) -> None:
        unread.append(Path(error.filename).relative_to(path).as_posix())

    for folder, inside, files in os.walk(path, onerror=keep):
        inside[:] = [name for name in inside if not name.startswith(".")]
        found += [Path(folder, name).relative_to(path).as_posix() for name in files if not name.startswith(".")]
        # which may lead back here
        links = [name for name in inside if Path(folder, name).is_symlink()]
        unread += [Path(folder, name).relative_to(path).as_posix() for name in links]
    if not any(Path(name).suffix.lower() in PICTURES for name in found):
        what = f"its {len(found)} files have other endings" if found else "it is empty"
        what = "it cannot be read" if "." in unread else what
        raise FileNotFoundError(
            f"PictureFolder: path '{path}' has no pictures: {what} (looked for {', '.join(sorted(PICTURES))})"
        )
    return sorted(found + unread)


def _opened(path: str | Path) -> Image.Image:
    with warnings.catch_warnings():
        # max_pixels decides
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def _unfit(image: Image.Image) -> str:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        return f"pixels of mode {image.mode} have no fixed range (save it with 8 or 16 bits)"
    return ""


def _notes(image: Image.Image, channels: int) -> Iterator[str]:
    mode, tile = image.mode, str(getattr(image, "tile", ""))
    if getattr(image, "is_animated", False):
        yield "first of several frames"
    if mode.startswith("I") or ";16" in tile:
        yield "16 bits, taken as 8"
    if mode in ("P", "PA"):
        yield "palette"
    if mode.endswith("A") or (mode == "P" and "transparency" in image.info):
        yield "alpha left out"
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        yield mode
    grey = mode in ("1", "L", "LA") or mode.startswith("I")
    if grey and channels == 3:
        yield "grey"
    elif not grey and channels == 1:
        yield "colour, taken as grey"


def _reason(error: Exception, path: str | Path) -> str:
    said = re.sub(rf"\s*'?{re.escape(str(path))}'?", "", str(error)).strip() or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return f"too large to be opened: {said}"
    return f"damaged or no picture: {said}"
