"""CIFAR-10 and CIFAR-100."""

import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from lit_adv.data.datasets import TensorImages
from lit_adv.data.image_datamodule import DOWNLOAD, ImageDataModule, require_files


class CIFAR10(ImageDataModule):
    """Colour photographs of ten kinds of things, 32x32, 50,000 and 10,000 images (Krizhevsky 2009), from torchvision's
    layout `root/cifar-10-batches-py`."""

    native_size = 32
    dataset_class: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

    def prepare_data(self) -> None:
        """Downloads where asked, and checks the files against their published hashes.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is not the published one.
            RuntimeError: The download failed.
        """
        if self.download:
            try:
                self.dataset_class(str(self.root), download=True)
            except (OSError, RuntimeError, EOFError, ValueError) as error:
                raise RuntimeError(
                    f"{self._name}: the download to '{self.root}' failed: {error} (put {self.dataset_class.url} there"
                    " by hand, unpacked)"
                ) from error
        self._check()

    def _source(self, split: str) -> TensorImages | None:
        if split == "val":
            return None
        # its files are pickles, so they are only opened after their hash is checked, here as in torchvision
        self._check()
        with warnings.catch_warnings():
            # the pickles are older than numpy's present way to write a dtype
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            data: Any = self.dataset_class(str(self.root), train=split == "train")
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return TensorImages(images, torch.tensor(data.targets))

    @property
    def _folder(self) -> Path:
        return self.root / self.dataset_class.base_folder

    def _check(self) -> None:
        published = self.dataset_class
        hashes = dict(
            [*published.train_list, *published.test_list, (published.meta["filename"], published.meta["md5"])]
        )
        remedy = f"{DOWNLOAD}, or unpack {published.url} in '{self.root}'"
        require_files(self._name, self._folder, list(hashes), remedy)
        for name, md5 in hashes.items():
            if not check_integrity(self._folder / name, md5):
                raise ValueError(
                    f"{self._name}: '{self._folder / name}' is truncated or not the published file (delete it, and"
                    f" {remedy})"
                )


class CIFAR100(CIFAR10):
    """Colour photographs of a hundred kinds of things, 32x32, 50,000 and 10,000 images (Krizhevsky 2009), from
    torchvision's layout `root/cifar-100-python`."""

    dataset_class = datasets.CIFAR100

    @property
    def classes(self) -> list[str]:
        """Names of the fine classes."""
        return _FINE.split()


_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
