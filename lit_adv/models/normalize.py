"""Normalisation as a layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, channel by channel.

    A layer of the network, not of the data, so that attacks work on pixels in `[0, 1]`.

    Args:
        mean: One number a channel, on the scale of `[0, 1]`.
        std: One number a channel, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `(B, C, H, W)` of images `(B, C, H, W)` in `[0, 1]`."""
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        """The numbers, as the printed network shows them."""
        mean, std = ([round(v, 6) for v in t.flatten().tolist()] for t in (self.mean, self.std))
        return f"mean={mean}, std={std}"
