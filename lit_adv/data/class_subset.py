"""Some classes of a data set, for studies of pairs."""

from collections.abc import Sequence

import torch

from lit_adv.data.datasets import ImageDataset
from lit_adv.data.image_datamodule import ImageDataModule


class ClassSubset(ImageDataModule):
    """The images of some classes of another set, with labels 0, 1, ... in the order given.

    Batches, sizes, augmentation and the validation share are the source's; its limits count the images of these
    classes.

    Args:
        source: Any clean data module of this package.
        classes: Two or more different classes, by number or by name.

    Raises:
        ValueError: A class that the source has not, one given twice, or fewer than two.
    """

    def __init__(self, source: ImageDataModule, classes: list[int | str]) -> None:
        super().__init__(
            root=str(source.root),
            batch_size=source.batch_size,
            eval_batch_size=source.eval_batch_size,
            num_workers=source.num_workers,
            image_size=source._image_size,
            validation=source.validation,
            augment=source.augment,
            seed=source.seed,
            download=source.download,
            train_limit=source.train_limit,
            test_limit=source.test_limit,
        )
        if len(classes) < 2:
            raise ValueError(f"ClassSubset: classes must be at least two, got {list(classes)}")
        self.source = source
        self._wanted = list(classes)
        self.flips = source.flips  # type: ignore[misc]

    @property
    def numbers(self) -> list[int]:
        """The classes' numbers in the source."""
        return _numbers(self._wanted, self.source.classes, type(self.source).__name__)

    @property
    def classes(self) -> list[str]:
        """Names of the chosen classes."""
        return [self.source.classes[number] for number in self.numbers]

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.source.image_size

    @property
    def in_channels(self) -> int:  # type: ignore[override]
        """C."""
        return self.source.in_channels

    def prepare_data(self) -> None:
        """The source's, and checks the classes."""
        self.source.prepare_data()
        _ = self.numbers

    def _source(self, split: str) -> ImageDataset | None:
        whole = self.source._source(split)
        if whole is None:
            return None
        numbers = torch.tensor(self.numbers)
        found = whole.labels[:, None] == numbers
        part = whole.subset(found.any(1).nonzero()[:, 0])
        part.labels = found[found.any(1)].int().argmax(1)
        return part

    def _finish(self, dataset: ImageDataset) -> ImageDataset:
        return self.source._finish(dataset)


def _numbers(wanted: Sequence[int | str], names: list[str], owner: str) -> list[int]:
    numbers = []
    for each in wanted:
        number = names.index(each) if isinstance(each, str) and each in names else each
        if not isinstance(number, int) or not 0 <= number < len(names):
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise ValueError(
                f"ClassSubset: classes must be numbers below {len(names)} or names of {owner} ({known}), got {each!r}"
            )
        numbers.append(number)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"ClassSubset: classes must be different, got {list(wanted)}")
    return numbers
