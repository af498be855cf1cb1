"""Cats against dogs: the Oxford-IIIT Pet set by species."""

from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import OxfordIIITPet

from lit_adv.data.datasets import ImageFiles
from lit_adv.data.image_datamodule import DOWNLOAD, ImageDataModule, require_files


class CatsVsDogs(ImageDataModule):
    """Photographs of 12 breeds of cats and 25 of dogs (Parkhi et al. 2012, Oxford-IIIT Pet) by species alone, from
    torchvision's layout `root/oxford-iiit-pet`; 3,680 to train on and 3,669 to test.

    Pictures are resized by their shorter side and cut to a square, 224 px by default; about twice as many are of dogs.
    """

    native_size = 224

    @property
    def classes(self) -> list[str]:
        """Cat and dog, in this order."""
        return ["cat", "dog"]

    def prepare_data(self) -> None:
        """Downloads where asked, and checks that the files are there.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A list of images cannot be read.
            RuntimeError: The download failed.
        """
        if self.download:
            try:
                for split in ("trainval", "test"):
                    OxfordIIITPet(str(self.root), split=split, download=True)
            except (OSError, RuntimeError, EOFError) as error:
                raise RuntimeError(f"CatsVsDogs: the download to '{self.root}' failed: {error}") from error
        for split in ("train", "test"):
            self._list(split)

    def _source(self, split: str) -> ImageFiles | None:
        if split == "val":
            return None
        paths, labels = self._list(split)
        return ImageFiles(paths, torch.tensor(labels, dtype=torch.int64), self.image_size)

    def _list(self, split: str) -> tuple[list[str], list[int]]:
        folder = self.root / "oxford-iiit-pet"
        listed = folder / "annotations" / ("trainval.txt" if split == "train" else "test.txt")
        remedy = f"{DOWNLOAD}, or unpack images.tar.gz and annotations.tar.gz of the set in '{folder}'"
        require_files("CatsVsDogs", folder, ["images", f"annotations/{listed.name}"], remedy)
        paths, labels = [], []
        for line in listed.read_text(encoding="utf-8").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            words: list[Any] = line.split()
            # name, breed, species (1 cat, 2 dog), breed within the species
            if len(words) != 4 or words[2] not in ("1", "2"):
                raise ValueError(f"CatsVsDogs: '{listed}' holds the line {line!r} (replace it by the published file)")
            path = folder / "images" / f"{words[0]}.jpg"
            paths.append(str(path))
            labels.append(int(words[2]) - 1)
        missing = next((path for path in paths if not Path(path).is_file()), None)
        if missing is not None:
            raise FileNotFoundError(f"CatsVsDogs: '{missing}' is listed but not there ({remedy})")
        return paths, labels
