"""ImageNet."""

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.imagenet import ARCHIVE_META
from torchvision.models import ResNet18_Weights

from lit_adv.data.datasets import ImageDataset, ImageFiles, read_image, to_square
from lit_adv.data.folder import class_folders, list_images
from lit_adv.data.image_datamodule import ImageDataModule


class ImageNet(ImageDataModule):
    """ILSVRC 2012: 1000 classes, 1.28 million training and 50,000 validation images (Russakovsky et al. 2015).

    Images are in `root/train/<wnid>/` and `root/val/<wnid>/`; where those are missing, torchvision unpacks the
    official archives in `root`. The official test images have no labels, so the official validation images are the
    test set here, and validation images are taken from the training set. Images are read when they are needed; the
    shorter side is resized to 8/7 of `image_size` (256 at 224) and the centre cut out.
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
        return _CentreCrops(paths, labels, self.image_size)

    def _list(self, split: str) -> tuple[list[str], Tensor]:
        for name in ("train", "val"):
            if not (self.root / name).is_dir():
                raise FileNotFoundError(f"{self._name}: '{name}' is not in '{self.root}' ({_REMEDY})")
        wnids = class_folders(self._name, self.root / "train")
        return list_images(self._name, self.root / ("val" if split == "test" else split), wnids)


class _CentreCrops(ImageFiles):
    def _read(self, indices: Sequence[int]) -> Tensor:
        size = self.image_size or ImageNet.native_size
        images = [read_image(str(self.paths[i])) for i in indices]
        # 1/7 of margin: 256 before the cut at 224
        return torch.stack([to_square(image[None], size, round(size / 7))[0] for image in images])

    def _subset(self, indices: Tensor) -> Self:
        return type(self)(self.paths[indices.numpy()].tolist(), self.labels[indices], self.image_size)


_REMEDY = (
    "get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org and put"
    " them into root, or the images into root/train/<wnid>/ and root/val/<wnid>/"
)
