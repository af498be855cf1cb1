"""What all clean data modules share: splits, limits, augmentation and loaders."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_adv.data.batches import (
    EpochBatches,
    Keys,
    OrderedBatches,
    ResumableLoader,
    ShuffledBatches,
    batches_trained,
)
from lit_adv.data.datasets import ImageDataset, TensorImages, as_floats, to_square
from lit_adv.data.sampling import rank_and_world, stratified_order

DOWNLOAD = "use `--data.download true`, as the source of an adversarial data module `--data.source.download true`"


class ImageDataModule(pl.LightningDataModule):
    """Batches `(images (B, C, H, W) float32 in [0, 1], labels (B,) int64)` of a labelled image set.

    Normalisation is the network's first layer, not done here. While a trainer runs the loaders give uint8 levels, a
    quarter of the bytes, of which `transfer_batch_to_device` makes these floats; before and after they give the floats.
    Without `augment` every read of an image gives the same pixels. The order of training images depends only on the
    seed and the epoch, so that a resumed run and one with more ranks see the same batches; evaluation shows every image
    once under any number of ranks.

    Args:
        root: Folder that holds the set, or gets it.
        batch_size: Images a training batch, on each device.
        eval_batch_size: The same in validation and test; None takes `batch_size`.
        num_workers: Processes that load images; 0 loads in the main process.
        image_size: Side in pixels that images are resized to (bilinear, antialiased, rounded to 8 bits); None keeps
            the set's own.
        validation: Share of the training images kept for validation, or their number. Where `train_limit` is set, the
            share is one of the limit. Sets that bring a validation split of their own use that.
        augment: Random crops after zero padding by an eighth of the side, and flips where the class allows them, on
            training images.
        seed: Fixes the validation split, the limits and the order of training images.
        download: Download the set if it is not in `root`.
        train_limit: Use only this many training images, with each class in its share.
        test_limit: The same for test images.

    Attributes:
        classes: Names of the classes.
        num_classes: K.
        image_size: Side of the images in pixels.
        in_channels: C.
        train_dataset: After `setup("fit")`.
        val_dataset: After `setup("fit")` or `setup("validate")`; empty with `validation` 0.
        test_dataset: After `setup("test")` or `setup("predict")`.

    Raises:
        ValueError: A field is out of range.
    """

    native_size: ClassVar[int]
    flips: ClassVar[bool] = True
    in_channels: int = 3

    train_dataset: ImageDataset
    val_dataset: ImageDataset
    test_dataset: ImageDataset

    def __init__(
        self,
        *,
        root: str = "data",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        image_size: int | None = None,
        validation: int | float = 0.1,
        augment: bool = False,
        seed: int = 0,
        download: bool = False,
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        super().__init__()
        at_least = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "image_size": 1}
        at_least |= {"seed": 0, "train_limit": 1, "test_limit": 1}
        given = locals()
        for field, least in at_least.items():
            if given[field] is not None and given[field] < least:
                raise ValueError(f"{self._name}: {field} must be at least {least}, got {given[field]}")
        if validation < 0 or (isinstance(validation, float) and validation >= 1):
            raise ValueError(
                f"{self._name}: validation must be a share in [0, 1) or a number of images, got {validation}"
            )
        self.root = Path(root)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self._image_size = image_size
        self.validation = validation
        self.augment = augment
        self.seed = seed
        self.download = download
        self.train_limit = train_limit
        self.test_limit = test_limit

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self._image_size or self.native_size

    @abstractmethod
    def prepare_data(self) -> None:
        """Downloads where asked, and checks that the files are there."""

    @abstractmethod
    def _source(self, split: str) -> ImageDataset | None:
        """All images of "train", "val" or "test"; None where the set has no such split (only "val" may miss)."""

    def _finish(self, dataset: ImageDataset) -> ImageDataset:
        """Brings the chosen images to their size; files are resized when they are read."""
        if isinstance(dataset, TensorImages):
            return TensorImages(to_square(dataset.images, self.image_size), dataset.labels)
        return dataset

    def setup(self, stage: str | None = None) -> None:
        """Makes the datasets of a stage; what exists already is kept.

        Args:
            stage: "fit", "validate", "test", "predict", or None for all.

        Raises:
            FileNotFoundError: The set is not there; says how to get it.
            ValueError: A file is damaged, or limits ask for more images than there are.
        """
        if stage in ("fit", "validate", None) and not hasattr(self, "val_dataset"):
            train, val = self._split()
            if stage == "validate":
                self.val_dataset = self._finish(val)
            else:
                self.train_dataset, self.val_dataset = self._augmented(self._finish(train)), self._finish(val)
        if stage in ("fit", None) and not hasattr(self, "train_dataset"):
            self.train_dataset = self._augmented(self._finish(self._split()[0]))
        if stage in ("test", "predict", None) and not hasattr(self, "test_dataset"):
            self.test_dataset = self._finish(self._limited(self._existing("test"), "test_limit"))

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled training batches."""
        rank, world = rank_and_world()
        batches = _TrainingBatches(self.train_dataset, self.batch_size, self.seed, world, rank)
        return self._loader(
            self.train_dataset, batches, lambda: batches_trained(self.trainer) if self.trainer is not None else 0
        )

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Validation batches, every image once; no loader with `validation` 0."""
        return self._eval_loader(self.val_dataset) if len(self.val_dataset) else []

    def test_dataloader(self) -> ResumableLoader:
        """Test batches, every image once."""
        return self._eval_loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images, every one once."""
        # a plain loader: for predictions Lightning puts a sampler of its own into it, and deals to the ranks itself
        return DataLoader(
            self.test_dataset,
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch and makes floats of its 8-bit images, on the device, in the trainer's precision."""
        trainer = self.trainer
        if trainer is None:
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        else:
            # the task's own, where it has one
            batch = trainer.lightning_module.transfer_batch_to_device(batch, device, dataloader_idx)
        if not isinstance(batch, list | tuple) or not isinstance(batch[0], Tensor) or batch[0].dtype != torch.uint8:
            return batch
        images = as_floats(batch[0])
        # which Lightning has asked of the batch while it had no floats
        images = images if trainer is None else trainer.precision_plugin.convert_input(images)
        return type(batch)((images, *batch[1:]))

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _existing(self, split: str) -> ImageDataset:
        source = self._source(split)
        if source is None or len(source) == 0:
            raise ValueError(f"{self._name}: there are no {split} images under '{self.root}'")
        return source

    def _split(self) -> tuple[ImageDataset, ImageDataset]:
        train = self._existing("train")
        own = self._source("val")
        if own is not None:
            return self._limited(train, "train_limit"), own
        total = len(train)
        limit = total if self.train_limit is None else self.train_limit
        share = self.validation
        count = round(share * limit) if isinstance(share, float) else share
        if count + (self.train_limit or 1) > total:
            raise ValueError(
                f"{self._name}: validation and train_limit ask for {count} + {self.train_limit or 'some'} images, but"
                f" there are {total} to train on (lower one of them)"
            )
        order = stratified_order(train.labels, self.seed)
        kept = order[count:] if self.train_limit is None else order[count : count + self.train_limit]
        return train.subset(kept), train.subset(order[:count])

    def _limited(self, dataset: ImageDataset, field: str) -> ImageDataset:
        limit = getattr(self, field)
        if limit is None:
            return dataset
        if limit > len(dataset):
            raise ValueError(f"{self._name}: {field} must be at most {len(dataset)}, the images there are, got {limit}")
        return dataset.subset(stratified_order(dataset.labels, self.seed)[:limit])

    def _augmented(self, dataset: ImageDataset) -> ImageDataset:
        return dataset.augmented(self.image_size // 8, self.flips, self.seed) if self.augment else dataset

    def _eval_loader(self, dataset: ImageDataset) -> ResumableLoader:
        rank, world = rank_and_world()
        return self._loader(dataset, OrderedBatches(dataset, len(dataset), self.eval_batch_size, world, rank))

    def _loader(
        self, dataset: ImageDataset, batches: EpochBatches, progress: Callable[[], int] | None = None
    ) -> ResumableLoader:
        return ResumableLoader(
            # a loop of somebody's own, before a run or after it, has nobody to make floats of levels
            _Batches(dataset, levels=self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING),
            sampler=batches,
            num_workers=self.num_workers,
            progress=progress,
            pin_memory=torch.cuda.is_available(),
        )


class _TrainingBatches(ShuffledBatches):
    """Batches that tell the dataset the epoch, which decides how an image is augmented."""

    def keys(self, indices: np.ndarray, batch: int) -> Keys:
        return [(self.epoch, index) for index in indices.tolist()]


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """The items of a dataset by the list: a batch is one conversion, not one for each image."""

    def __init__(self, dataset: ImageDataset, levels: bool) -> None:
        self.dataset = dataset
        self.levels = levels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, keys: Keys) -> tuple[Tensor, Tensor]:
        if isinstance(keys[0], tuple):
            return self.dataset.batch([index for _, index in keys], keys[0][0], self.levels)
        return self.dataset.batch(keys, levels=self.levels)


def require_files(owner: str, folder: Path, names: Sequence[str], remedy: str) -> None:
    """Refuses a folder in which files or folders are missing.

    Raises:
        FileNotFoundError: Names the folder, the first that is missing and the remedy.
    """
    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{owner}: '{name}' is not in '{folder}' ({remedy})")
