"""People's own images, one folder a class."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_adv.data.datasets import ImageDataset, ImageFiles, Paths, path_array, read_image
from lit_adv.data.image_datamodule import ImageDataModule

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
"""Files with these endings, in any case, are images; others are passed over."""


class ImageFolder(ImageDataModule):
    """Images in `root/train/<class>/` and `root/test/<class>/`, and in `root/val/<class>/` if there is one.

    Classes are the folders under `train`, in alphabetical order. Images are read when they are needed; what has not
    the size is resized by its shorter side and cut to a square.

    Args:
        image_size: Side of the images in pixels; None takes that of the first training image, which must be square.
        in_channels: 3 for colour, 1 for grey; files are converted.
        **kwargs: See `ImageDataModule`.
    """

    def __init__(self, *, image_size: int | None = None, in_channels: int = 3, **kwargs: Any) -> None:
        super().__init__(image_size=image_size, **kwargs)
        if in_channels not in (1, 3):
            raise ValueError(f"{self._name}: in_channels must be 1 (grey) or 3 (colour), got {in_channels}")
        self.in_channels = in_channels

    @cached_property
    def classes(self) -> list[str]:
        """Names of the class folders."""
        return class_folders(self._name, self.root / "train")

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self._image_size or self._first_size

    def prepare_data(self) -> None:
        """Checks that the folders are there.

        Raises:
            FileNotFoundError: A folder is missing or has no images.
            ValueError: The classes of the splits differ, or `download` is asked for.
        """
        if self.download:
            raise ValueError(f"{self._name}: download must be false, there is nowhere to download your images from")
        for split in ("train", "test"):
            self._list(split)

    def _source(self, split: str) -> ImageDataset | None:
        if split == "val" and not (self.root / "val").is_dir():
            return None
        paths, labels = self._list(split)
        return ImageFiles(paths, labels, self.image_size, self.in_channels)

    def _list(self, split: str) -> tuple[Paths, torch.Tensor]:
        return list_images(self._name, self.root / split, self.classes)

    @cached_property
    def _first_size(self) -> int:
        first = os.fsdecode(self._list("train")[0][0])
        height, width = read_image(first).shape[1:]
        if height != width:
            raise ValueError(
                f"{self._name}: image_size must be given where images are not square, '{first}' is {height}x{width}"
            )
        return height


def class_folders(owner: str, folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted.

    Raises:
        FileNotFoundError: The folder is missing or has no folders.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(f"{owner}: '{folder}' has no class folders (put images in '{folder}/<class>/')")
    return names


def list_images(owner: str, folder: Path, classes: list[str]) -> tuple[Paths, torch.Tensor]:
    """Image files of the class folders in a folder, sorted, `(N,)` bytes, and their labels `(N,)` int64.

    Raises:
        FileNotFoundError: A folder is missing, or there is no image.
        ValueError: There is a class folder that is none of the classes.
    """
    unknown = sorted(set(class_folders(owner, folder)) - set(classes))
    if unknown:
        raise ValueError(f"{owner}: '{folder}' has the class '{unknown[0]}', which '{folder.parent / 'train'}' has not")
    found, counts = [], []
    for name in classes:
        inside = os.listdir(folder / name) if (folder / name).is_dir() else []
        images = sorted(one for one in inside if os.path.splitext(one)[1].lower() in EXTENSIONS)
        # class by class, so that a large set is never there as Python's strings
        found.append(path_array([os.path.join(folder, name, one) for one in images]))
        counts.append(len(images))
    if not sum(counts):
        raise FileNotFoundError(f"{owner}: '{folder}' has no images (endings: {', '.join(sorted(EXTENSIONS))})")
    return np.concatenate(found), torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
