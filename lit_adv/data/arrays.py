"""People's own images in one file of NumPy arrays."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_adv.data.datasets import TensorImages
from lit_adv.data.image_datamodule import ImageDataModule

Array = npt.NDArray[Any]


class Arrays(ImageDataModule):
    """Images of an `.npz` file with the arrays x_train, y_train, x_test and y_test, if you like also x_val and y_val.

    Images are `(N, H, W, C)`, `(N, C, H, W)` or grey `(N, H, W)`, as uint8 or as float in `[0, 1]`; labels `(N,)` are
    integers from 0. An array `classes` may name the classes. Nothing is unpickled.

    Args:
        path: The file.
        **kwargs: See `ImageDataModule`; `root` and `download` have no effect here.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = Path(path)
        if self.download:
            raise ValueError(f"{self._name}: download must be false, there is nowhere to download '{path}' from")

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes: those in the file, otherwise their numbers."""
        highest = max(int(self._labels(split).max()) for split in ("train", "test"))
        if "classes" not in self._keys:
            return [str(number) for number in range(highest + 1)]
        names = [str(name) for name in self._array("classes")]
        if highest >= len(names):
            raise ValueError(f"{self._name}: '{self.path}' names {len(names)} classes, got the label {highest}")
        return names

    @property
    def in_channels(self) -> int:  # type: ignore[override]
        """C."""
        return self._own_shape[0]

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        if self._image_size is not None:
            return self._image_size
        _, height, width = self._own_shape
        if height != width:
            raise ValueError(f"{self._name}: image_size must be given, '{self.path}' has images of {height}x{width}")
        return height

    def prepare_data(self) -> None:
        """Checks the file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, lacks an array, or holds something that is no image or label.
        """
        for split in ("train", "test", "val"):
            self._source(split)

    def _source(self, split: str) -> TensorImages | None:
        if split == "val" and "x_val" not in self._keys:
            return None
        images, labels = self._images(split), self._labels(split)
        if len(images) != len(labels):
            raise ValueError(
                f"{self._name}: '{self.path}' has {len(images)} images in x_{split}, but {len(labels)} labels in"
                f" y_{split} (they must be as many)"
            )
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"{self._name}: '{self.path}' has {images.shape[1]} channels in x_{split}, but {self.in_channels} in"
                " x_train (they must be as many)"
            )
        if len(labels) and int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"{self._name}: '{self.path}' has {self.num_classes} classes, but the label {int(labels.max())} in"
                f" y_{split} (labels count from 0)"
            )
        return TensorImages(images, labels)

    def _images(self, split: str) -> Tensor:
        key = f"x_{split}"
        array = self._array(key)
        where = f"{self._name}: '{self.path}', {key}:"
        if array.ndim not in (3, 4):
            raise ValueError(f"{where} images must be (N, H, W, C), (N, C, H, W) or (N, H, W), got {array.shape}")
        if array.ndim == 3:
            array = array[:, None]
        elif array.shape[3] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        elif array.shape[1] not in (1, 3):
            raise ValueError(f"{where} images must have 1 or 3 channels, got the shape {array.shape}")
        if array.dtype == np.uint8:
            return torch.from_numpy(np.ascontiguousarray(array))
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{where} images must be uint8 or float, got {array.dtype} (convert with .astype)")
        if not np.isfinite(array).all():
            raise ValueError(f"{where} images must be finite, got NaN or infinity (mend or drop those images)")
        if array.size and (array.min() < 0 or array.max() > 1):
            raise ValueError(
                f"{where} float images must be in [0, 1], got {array.min():g} to {array.max():g}"
                " (divide by 255, or save uint8)"
            )
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

    def _labels(self, split: str) -> Tensor:
        array = self._array(f"y_{split}")
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{self._name}: '{self.path}', y_{split}: labels must be integers (N,), got {array.dtype} {array.shape}"
            )
        if len(array) == 0 or array.min() < 0:
            got = f"{array.min()}" if len(array) else "none"
            raise ValueError(f"{self._name}: '{self.path}', y_{split}: labels must count from 0, got {got}")
        return torch.from_numpy(array.astype(np.int64))

    @cached_property
    def _own_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self._images("train").shape
        return channels, height, width

    @cached_property
    def _keys(self) -> list[str]:
        with self._open() as file:
            keys = list(file.files)
        missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in keys]
        missing += [pair for one, pair in (("x_val", "y_val"), ("y_val", "x_val")) if one in keys and pair not in keys]
        if missing:
            raise ValueError(
                f"{self._name}: '{self.path}' lacks {', '.join(missing)}, it has {', '.join(keys) or 'nothing'}"
                " (save it with np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...))"
            )
        return keys

    def _array(self, key: str) -> Array:
        if key not in self._keys:
            raise ValueError(f"{self._name}: '{self.path}' lacks {key}")
        try:
            with self._open() as file:
                array: Array = file[key]
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise self._damaged() from error
            raise ValueError(
                f"{self._name}: '{self.path}' holds Python objects in {key}, which could run code"
                " (save arrays of numbers, or of fixed-width strings for classes)"
            ) from error
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise self._damaged() from error
        return array

    @contextmanager
    def _open(self) -> Iterator[Any]:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self._name}: there is no file '{self.path}' (correct path)")
        with self.path.open("rb") as raw:
            try:
                file = np.load(raw, allow_pickle=False)
            except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
                raise self._damaged() from error
            if isinstance(file, np.ndarray):
                raise ValueError(f"{self._name}: '{self.path}' must be an .npz file, got a single array (use np.savez)")
            with file:
                yield file

    def _damaged(self) -> ValueError:
        return ValueError(f"{self._name}: '{self.path}' is truncated or no .npz file (save or copy it again)")
