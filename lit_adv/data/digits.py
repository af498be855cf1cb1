"""Scikit-learn's handwritten digits: real images that need no download."""

import torch
from sklearn.datasets import load_digits

from lit_adv.data.datasets import TensorImages
from lit_adv.data.image_datamodule import ImageDataModule
from lit_adv.data.sampling import stratified_order


class Digits(ImageDataModule):
    """1797 handwritten digits of 8x8 grey pixels (Alpaydin and Kaynak 1998, UCI), enlarged to 16 px by default.

    Pixels are 0 to 16 in the original; here they are scaled to `[0, 1]` and, after resizing, rounded to 8 bits. A
    fifth, the same for every seed, is the test set.
    """

    native_size = 16
    flips = False
    in_channels = 1

    @property
    def classes(self) -> list[str]:
        """The digits."""
        return [str(digit) for digit in range(10)]

    def prepare_data(self) -> None:
        """Nothing to do: the images come with scikit-learn."""

    def _source(self, split: str) -> TensorImages | None:
        if split == "val":
            return None
        data = load_digits()
        pixels = torch.from_numpy(data.images).float()[:, None] / 16
        labels = torch.from_numpy(data.target).long()
        if self.image_size == 8:
            # 255/16 is no integer, so what is not resized is not yet a multiple of 1/255
            pixels = (pixels * 255).round().to(torch.uint8)
        everything = TensorImages(pixels, labels)
        order = stratified_order(labels, seed=0)
        test = len(labels) // 5
        return everything.subset(order[:test] if split == "test" else order[test:])
