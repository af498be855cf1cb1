"""ImageNet."""

import math
import os
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.imagenet import ARCHIVE_META
from torchvision.models import ResNet18_Weights
from torchvision.transforms.v2 import functional as TF

from lit_adv.data.datasets import ImageDataset, ImageFiles, Paths, read_image
from lit_adv.data.folder import class_folders, list_images
from lit_adv.data.image_datamodule import ImageDataModule

TRIES = 10
_LEAST, _WIDEST = 0.08, 4 / 3


class ImageNet(ImageDataModule):
    """ILSVRC 2012: 1000 classes, 1.28 million training and 50,000 validation images (Russakovsky et al. 2015).

    Images are in `root/train/<wnid>/` and `root/val/<wnid>/`; where those are missing, torchvision unpacks the
    official archives in `root`. The official test images have no labels, so the official validation images are the
    test set here, and validation images are taken from the training set. Images are read when they are needed; the
    shorter side is resized to 8/7 of `image_size` (256 at 224) and the centre cut out. Augmentation takes a part of the
    picture instead, 8 % to all of its area and 3:4 to 4:3 in shape (Szegedy et al. 2015, arXiv:1409.4842, section 6),
    and flips it. All of it in 8 bits, as the networks of torchvision were trained.
    """

    native_size = 224

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes in the order of their WordNet ids; the ids where a folder holds not all 1000."""
        folder = self.root / "train"
        wnids = class_folders(self._name, folder) if folder.is_dir() else []
        return wnids if wnids and len(wnids) != 1000 else list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])

    def prepare_data(self) -> None:
        """Unpacks the archives where the folders are missing, and checks that the images are there.

        Raises:
            FileNotFoundError: There are neither folders nor archives.
            ValueError: `download` is asked for, or an archive is damaged.
        """
        if self.download:
            raise ValueError(f"{self._name}: download must be false, its licence has to be accepted by hand; {_REMEDY}")
        for split in ("train", "val"):
            archives = [self.root / ARCHIVE_META[part][0] for part in ("devkit", split)]
            if not (self.root / split).is_dir() and all(path.is_file() for path in archives):
                try:
                    datasets.ImageNet(str(self.root), split)
                except (OSError, RuntimeError, EOFError) as error:
                    raise ValueError(
                        f"{self._name}: '{archives[1]}' cannot be unpacked: {error} ({_REMEDY})"
                    ) from error
        for split in ("train", "test"):
            self._list(split)
        self.__dict__.pop("classes", None)

    def _source(self, split: str) -> ImageDataset | None:
        if split == "val":
            return None
        paths, labels = self._list(split)
        return _Crops(paths, labels, self.image_size)

    def _list(self, split: str) -> tuple[Paths, Tensor]:
        for name in ("train", "val"):
            if not (self.root / name).is_dir():
                raise FileNotFoundError(f"{self._name}: '{name}' is not in '{self.root}' ({_REMEDY})")
        wnids = class_folders(self._name, self.root / "train")
        return list_images(self._name, self.root / ("val" if split == "test" else split), wnids)


class _Crops(ImageFiles):
    # two for each try, two for the place, one for the flip
    _draws = 2 * TRIES + 3

    def _read(self, indices: Sequence[int]) -> Tensor:
        size = self.image_size or ImageNet.native_size
        return torch.stack([_centre(read_image(os.fsdecode(self.paths[i])), size) for i in indices])

    def _augment(self, indices: Sequence[int], draws: Tensor) -> Tensor:
        size = self.image_size or ImageNet.native_size
        images = []
        for i, numbers in zip(indices, draws.tolist(), strict=True):
            picture = read_image(os.fsdecode(self.paths[i]))
            box = part_of(picture.shape[1], picture.shape[2], numbers)
            part = TF.resized_crop(picture, *box, [size, size], antialias=True)
            images.append(part.flip(2) if self._flip and numbers[-1] < 0.5 else part)
        return torch.stack(images)


def part_of(height: int, width: int, numbers: Sequence[float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a picture, 8 % to all of its area, 3:4 to 4:3 in shape.

    Args:
        height: Of the picture in pixels.
        width: The same.
        numbers: Uniform in [0, 1): two for each of ten shapes, of which the first that fits is taken, and two for the
            place. Where none fits, it is the largest part in the middle with an allowed shape.
    """
    for area, shape in zip(numbers[: 2 * TRIES : 2], numbers[1 : 2 * TRIES : 2], strict=True):
        pixels, ratio = height * width * (_LEAST + area * (1 - _LEAST)), _WIDEST ** (2 * shape - 1)
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            down, right = numbers[2 * TRIES : 2 * TRIES + 2]
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    rows, columns = min(height, round(width * _WIDEST)), min(width, round(height * _WIDEST))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _centre(image: Tensor, size: int) -> Tensor:
    if image.shape[1:] == (size, size):
        return image
    # 1/7 of margin: 256 before the cut at 224
    return TF.center_crop(TF.resize(image, [size + round(size / 7)], antialias=True), [size])


_REMEDY = (
    "get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org and put"
    " them into root, or the images into root/train/<wnid>/ and root/val/<wnid>/"
)
