"""MNIST and Fashion-MNIST."""

import struct
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from torchvision import datasets

from lit_adv.data.datasets import TensorImages
from lit_adv.data.image_datamodule import DOWNLOAD, ImageDataModule, require_files


class MNIST(ImageDataModule):
    """Handwritten digits, 28x28 grey, 60,000 and 10,000 images (LeCun et al. 1998), from torchvision's layout
    `root/MNIST/raw`."""

    native_size = 28
    flips = False
    in_channels = 1
    dataset_class: ClassVar[type[datasets.MNIST]] = datasets.MNIST

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.dataset_class.classes)

    def prepare_data(self) -> None:
        """Downloads where asked, and checks the files.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged.
            RuntimeError: The download failed.
        """
        if self.download:
            try:
                self.dataset_class(str(self.root), download=True)
            except (OSError, RuntimeError, EOFError, ValueError) as error:
                raise RuntimeError(
                    f"{self._name}: the download to '{self._folder}' failed: {error} (put the four files of"
                    f" {self.dataset_class.mirrors[-1]} there by hand, unpacked)"
                ) from error
        for split in ("train", "test"):
            self._check(split)

    def _source(self, split: str) -> TensorImages | None:
        if split == "val":
            return None
        # once more, for setup without prepare_data: a short file would load as an error without its name
        self._check(split)
        data: Any = self.dataset_class(str(self.root), train=split == "train")
        return TensorImages(data.data[:, None], data.targets.long())

    @property
    def _folder(self) -> Path:
        return self.root / self.dataset_class.__name__ / "raw"

    def _check(self, split: str) -> None:
        prefix = "train" if split == "train" else "t10k"
        names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
        require_files(self._name, self._folder, names, f"{DOWNLOAD}, or unpack the four files there")
        counts = [_count(self._name, self._folder / name) for name in names]
        if counts[0] != counts[1]:
            raise ValueError(
                f"{self._name}: '{self._folder / names[0]}' has {counts[0]} images and '{names[1]}' {counts[1]} labels"
                " (delete both and download again)"
            )


class FashionMNIST(MNIST):
    """Articles of clothing, 28x28 grey, 60,000 and 10,000 images (Xiao et al. 2017), from torchvision's layout
    `root/FashionMNIST/raw`."""

    flips = True
    dataset_class = datasets.FashionMNIST


def _count(owner: str, path: Path) -> int:
    # IDX: two zero bytes, the type, the number of dimensions, each dimension as a big-endian int, then the bytes
    with path.open("rb") as file:
        head = file.read(4)
        shape = file.read(4 * head[3]) if len(head) == 4 else b""
    dimensions = struct.unpack(f">{len(shape) // 4}I", shape[: len(shape) // 4 * 4])
    size = path.stat().st_size
    if head[:3] != b"\x00\x00\x08" or not dimensions or size != 4 + len(shape) + prod(dimensions):
        raise ValueError(f"{owner}: '{path}' is truncated or no IDX file (delete it and {DOWNLOAD})")
    return dimensions[0]
