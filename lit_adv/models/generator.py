"""A network that draws a perturbation for an image in one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerturbationNetwork(nn.Module):
    """From an image to a direction for each of its pixels, a P-ATN of Baluja & Fischer 2018, arXiv:1703.09387.

    A convolution at full resolution, one of stride 2, residual blocks, and back up beside the first; no normalisation,
    so that an image's perturbation does not depend on its batch. Images may have any size from 2 px on. What goes into
    the tanh is brought to a root mean square of 2 for each image, so that it does not saturate. (The paper adds to the
    image inside the tanh and bounds nothing; here the tanh bounds the perturbation, which `GeneratedPerturbation` and
    `PerturbationGenerator` multiply by eps.)

    Args:
        in_channels: C.
        width: Channels at full resolution; twice as many below.
        blocks: Residual blocks.

    Attributes:
        spec: The arguments, with which files describe the network.

    Raises:
        ValueError: A field is out of range.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        for field, value, least in (("in_channels", in_channels, 1), ("width", width, 1), ("blocks", blocks, 0)):
            if value < least:
                raise ValueError(f"PerturbationNetwork: {field} must be at least {least}, got {value}")
        self.spec: dict[str, Any] = {"in_channels": in_channels, "width": width, "blocks": blocks}
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(_Block(2 * width) for _ in range(blocks)))
        self.up = nn.Conv2d(3 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` in (-1, 1) of images ``(B, C, H, W)`` in [0, 1]."""
        channels = self.spec["in_channels"]
        if images.ndim != 4 or images.size(1) != channels:
            raise ValueError(f"PerturbationNetwork: images must be (B, {channels}, H, W), got {tuple(images.shape)}")
        fine = F.relu(self.first(2 * images - 1))
        coarse = self.blocks(F.relu(self.down(fine)))
        back = F.interpolate(coarse, size=images.shape[-2:], mode="nearest")
        drawn = self.last(F.relu(self.up(torch.cat([fine, back], 1))))
        # at one size for each image: left alone it grows until tanh has no gradient anywhere, and nothing is learnt
        size = drawn.square().mean((1, 2, 3), keepdim=True).add(1e-12).sqrt()
        direction: Tensor = (2 * drawn / size).tanh()
        return direction


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        branch: Tensor = self.conv2(F.relu(self.conv1(features)))
        return F.relu(features + branch)
