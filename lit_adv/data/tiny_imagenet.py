"""Tiny-ImageNet, from its own archive."""

import shutil
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torchvision.datasets.utils import check_integrity, download_url

from lit_adv.data.datasets import ImageDataset, ImageFiles, TensorImages
from lit_adv.data.image_datamodule import DOWNLOAD, ImageDataModule, require_files


class TinyImageNet(ImageDataModule):
    """200 classes of ImageNet at 64x64, 100,000 training and 10,000 validation images (Stanford CS231n).

    The official test images have no labels, so the official validation images are the test set here, and validation
    images are taken from the training set. `root` is the folder that holds `tiny-imagenet-200`, or that folder itself;
    a part of the classes works as well.
    """

    native_size = 64
    url: ClassVar[str] = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5: ClassVar[str] = "90528d7ca1a48142e341f4ef8d21d0de"

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of `wnids.txt`; WordNet ids where `words.txt` is missing."""
        words = self._folder / "words.txt"
        if not words.is_file():
            return self._wnids
        names = dict(line.split("\t", 1) for line in words.read_text().splitlines() if "\t" in line)
        return [names[wnid].split(",")[0].strip() if wnid in names else wnid for wnid in self._wnids]

    @property
    def num_classes(self) -> int:
        """K: 200, or as many as an unpacked folder has."""
        return len(self._wnids) if (self._folder / "wnids.txt").is_file() else 200

    def prepare_data(self) -> None:
        """Downloads, checks and unpacks the archive where asked, and checks that the files are there.

        Raises:
            FileNotFoundError: The folder is missing or incomplete.
            ValueError: The archive's hash is wrong.
            RuntimeError: The download failed.
        """
        if self.download and not (self._folder / "wnids.txt").is_file():
            self._download()
        self._check()

    def _source(self, split: str) -> ImageDataset | None:
        if split == "val":
            return None
        self._check()
        index = {wnid: i for i, wnid in enumerate(self._wnids)}
        if split == "train":
            files = [
                (path, wnid) for wnid in index for path in sorted((self._folder / "train" / wnid / "images").iterdir())
            ]
        else:
            annotations = self._folder / "val" / "val_annotations.txt"
            files = []
            for line in annotations.read_text().splitlines():
                name, *rest = line.split("\t")
                if not rest or rest[0] not in index:
                    raise ValueError(f"{self._name}: '{annotations}' has a line without a known class: '{line}'")
                files.append((self._folder / "val" / "images" / name, rest[0]))
        labels = torch.tensor([index[wnid] for _, wnid in files], dtype=torch.int64)
        return ImageFiles([str(path) for path, _ in files], labels, self.image_size)

    def _finish(self, dataset: ImageDataset) -> ImageDataset:
        # all in memory (12 kB an image): decoding them anew in every epoch would take longer than training
        if not len(dataset):
            return dataset
        with ThreadPoolExecutor() as pool:
            pieces = list(pool.map(dataset._read, torch.arange(len(dataset)).split(256)))
        return TensorImages(torch.cat(pieces), dataset.labels)

    @property
    def _folder(self) -> Path:
        return self.root if (self.root / "wnids.txt").is_file() else self.root / "tiny-imagenet-200"

    @cached_property
    def _wnids(self) -> list[str]:
        self._check()
        return (self._folder / "wnids.txt").read_text().split()

    def _check(self) -> None:
        remedy = f"{DOWNLOAD}, or unpack {self.url} in '{self.root}'"
        names = ["wnids.txt", "train", "val/images", "val/val_annotations.txt"]
        require_files(self._name, self._folder, names, remedy)
        wnids = (self._folder / "wnids.txt").read_text().split()
        require_files(self._name, self._folder / "train", [f"{wnid}/images" for wnid in wnids], remedy)

    def _download(self) -> None:
        archive = self.root / "tiny-imagenet-200.zip"
        try:
            download_url(self.url, str(self.root), archive.name, self.md5)
        except (OSError, RuntimeError) as error:
            if archive.is_file() and not check_integrity(archive, self.md5):
                raise ValueError(
                    f"{self._name}: '{archive}' is not the published archive, its MD5 is not {self.md5}"
                    " (delete it and try again)"
                ) from error
            raise RuntimeError(
                f"{self._name}: the download to '{self.root}' failed: {error} (put {self.url} there by hand)"
            ) from error
        # beside its place, then moved: a run that is killed while unpacking leaves nothing that looks complete
        beside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=self.root))
        try:
            with zipfile.ZipFile(archive) as packed:
                outside = [name for name in packed.namelist() if Path(name).is_absolute() or ".." in Path(name).parts]
                if outside:
                    raise ValueError(f"{self._name}: '{archive}' has a path outside its folder: '{outside[0]}'")
                packed.extractall(beside)
            target = self.root / "tiny-imagenet-200"
            if target.exists():
                raise ValueError(f"{self._name}: '{target}' is incomplete (delete it and try again)")
            (beside / "tiny-imagenet-200").rename(target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
