"""Map-style image datasets that hold 8-bit pixels and hand out floats in [0, 1]."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

Sample = tuple[Tensor, int]
Paths = npt.NDArray[np.bytes_]


class ImageDataset(Dataset[Sample], ABC):
    """Images with labels. Item i is `(image (C, H, W) float32 in [0, 1], label)`, the same at every read.

    8-bit pixels come out as k / 255 in float32. Only a dataset made by `augmented` draws random numbers.

    Attributes:
        labels: The labels, `(N,)` int64.
    """

    labels: Tensor
    _padding = 0
    _flip = False
    _seed = 0
    # random numbers an image
    _draws = 3

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    def batch(self, indices: Sequence[int], epoch: int | None = None, levels: bool = False) -> tuple[Tensor, Tensor]:
        """Several items at once: images `(B, C, H, W)` float32 in `[0, 1]` and labels `(B,)` int64.

        Args:
            indices: Their positions.
            epoch: Augmentation then depends on the seed, the epoch and the image alone; None draws afresh.
            levels: Leave 8-bit images as they are kept, uint8 in 0..255: a quarter of the bytes.
        """
        if self._padding or self._flip:
            images = self._augment(indices, self._draw(indices, epoch))
        else:
            images = self._read(indices)
        return images if levels else as_floats(images), self.labels[list(indices)]

    def subset(self, indices: Tensor) -> Self:
        """The same images at some positions, in that order."""
        other = self._subset(indices)
        other.labels = self.labels[indices]
        return other

    def augmented(self, padding: int, flip: bool, seed: int = 0) -> Self:
        """The same images, cropped at random after zero padding and, if asked, flipped left to right at random.

        Args:
            padding: Pixels on each side.
            flip: Whether to flip half of the reads.
            seed: Of the draws, where `batch` is told the epoch.
        """
        other = self._subset(torch.arange(len(self)))
        other.labels = self.labels
        other._padding, other._flip, other._seed = padding, flip, seed
        return other

    def _draw(self, indices: Sequence[int], epoch: int | None) -> Tensor:
        if epoch is None:
            return torch.rand(len(indices), self._draws)
        # a generator an image: the same in any batch, on any rank, in any worker and after any resume
        rows = [np.random.default_rng([self._seed, epoch, int(index)]).random(self._draws) for index in indices]
        return torch.from_numpy(np.stack(rows))

    def _augment(self, indices: Sequence[int], draws: Tensor) -> Tensor:
        return _crop_and_flip(self._read(indices), self._padding, self._flip, draws)

    @abstractmethod
    def _read(self, indices: Sequence[int]) -> Tensor:
        """Pixels `(n, C, H, W)`, uint8 in 0..255 or float32 in [0, 1]."""

    @abstractmethod
    def _subset(self, indices: Tensor) -> Self: ...


class TensorImages(ImageDataset):
    """Images in memory.

    Args:
        images: `(N, C, H, W)`, uint8, or float32 in `[0, 1]`.
        labels: `(N,)` int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def _read(self, indices: Sequence[int]) -> Tensor:
        return self.images[list(indices)]

    def _subset(self, indices: Tensor) -> Self:
        return type(self)(self.images[indices], self.labels[indices])


class ImageFiles(ImageDataset):
    """Images read from their files one by one.

    Args:
        paths: The files.
        labels: `(N,)` int64.
        image_size: The images come out as squares of this side, see `to_square`; None leaves them as they are.
        in_channels: 3 for RGB, 1 for grey.
    """

    def __init__(
        self, paths: Sequence[str] | Paths, labels: Tensor, image_size: int | None, in_channels: int = 3
    ) -> None:
        # an array of fixed-width bytes: a list would be copied page by page into every worker
        self.paths = paths if isinstance(paths, np.ndarray) else path_array(paths)
        self.labels = labels
        self.image_size = image_size
        self.in_channels = in_channels

    def _read(self, indices: Sequence[int]) -> Tensor:
        images = [read_image(os.fsdecode(self.paths[i]), self.in_channels) for i in indices]
        if self.image_size is not None:
            images = [to_square(image[None], self.image_size)[0] for image in images]
        return torch.stack(images)

    def _subset(self, indices: Tensor) -> Self:
        return type(self)(self.paths[indices.numpy()], self.labels[indices], self.image_size, self.in_channels)


def read_image(path: str | Path, in_channels: int = 3) -> Tensor:
    """An image file as uint8 `(C, H, W)`, converted to RGB or grey.

    Raises:
        ValueError: The file is damaged or no image.
    """
    try:
        with Image.open(path) as image:
            mode = "RGB" if in_channels == 3 else "L"
            # Pillow's decoder: torchvision's has the same pixels in half the time, but will be removed
            pixels = np.array(image if image.mode == mode else image.convert(mode))
    except FileNotFoundError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"'{path}' is truncated or not an image: {error} (replace or delete it)") from error
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], in_channels).permute(2, 0, 1).contiguous()


def as_floats(images: Tensor) -> Tensor:
    """8-bit images as k / 255 in float32; others as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def path_array(paths: Sequence[str]) -> Paths:
    """Paths as an array `(N,)` of fixed-width bytes, which `os.fsdecode` reads."""
    return np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)


def to_square(images: Tensor, size: int, margin: int = 0) -> Tensor:
    """Resizes the shorter side to `size + margin` (bilinear, antialiased), and cuts a square out of the centre.

    Images that already have the size come back untouched, others rounded to 8 bits.

    Args:
        images: `(N, C, H, W)`, uint8, or float in `[0, 1]`.
        size: Side of the square in pixels.
        margin: How much longer the shorter side is before the cut.

    Returns:
        `(N, C, size, size)`: the images themselves, or uint8.
    """
    if images.shape[-2:] == (size, size):
        return images
    scale = 1 if images.dtype == torch.uint8 else 255
    # pieces bound the memory: whole sets pass through here as float32
    return torch.cat([_to_square(piece.float() * scale, size, margin) for piece in images.split(1024)])


def _to_square(pixels: Tensor, size: int, margin: int) -> Tensor:
    pixels = TF.resize(pixels, [size + margin], antialias=True)
    return TF.center_crop(pixels, [size]).round().clamp(0, 255).to(torch.uint8)


def _crop_and_flip(images: Tensor, padding: int, flip: bool, draws: Tensor) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    offsets = (draws[:, :2] * (2 * padding + 1)).long()
    rows = offsets[:, :1] + torch.arange(height)
    columns = offsets[:, 1:] + torch.arange(width)
    if flip:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    each = torch.arange(count)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
