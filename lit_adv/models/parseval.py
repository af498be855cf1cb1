"""Wide ResNets, plain and as Parseval networks."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.models.lipschitz import LipschitzNorm, lipschitz_bound
from lit_adv.models.parseval_layers import Constraint, ConvexSum, ParsevalConv2d, ParsevalLinear

WideResNetName = Literal[
    "wrn10_1",
    "wrn10_2",
    "wrn16_4",
    "wrn28_10",
    "wrn10_1_bn",
    "wrn10_2_bn",
    "wrn16_4_bn",
    "wrn28_10_bn",
    "parseval_wrn10_1",
    "parseval_wrn10_2",
    "parseval_wrn16_4",
    "parseval_wrn28_10",
    "parseval_wrn10_1_bn",
    "parseval_wrn10_2_bn",
    "parseval_wrn16_4_bn",
    "parseval_wrn28_10_bn",
    "parseval_inf_wrn10_1_bn",
    "parseval_inf_wrn10_2_bn",
    "parseval_inf_wrn16_4_bn",
    "parseval_inf_wrn28_10_bn",
]
"""Depth and width, with `_bn` for BatchNorm; `parseval_` in the 2-norm, `parseval_inf_` in the infinity norm."""


class WideResNet(nn.Module):
    """Wide residual network of 6n+4 layers with pre-activation (Zagoruyko & Komodakis 2016), for small images.

    Three stages of 16k, 32k and 64k channels, the last two with a first stride of 2. Without BatchNorm the last
    convolution of each branch starts smaller, by the square root of the number of blocks, and the last layer sees the
    whole map instead of its mean, in which such a network's images hardly differ.

    Args:
        depth: Number of layers, 6n+4.
        width: k.
        num_classes: K.
        image_size: Side of the images in pixels.
        in_channels: C.
        batch_norm: Whether there is BatchNorm before each ReLU.
        dropout: Share of the activations dropped between the convolutions of a block, in [0, 1).

    Raises:
        ValueError: A field is out of range.
    """

    constraint: Constraint | None = None

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int,
        image_size: int = 32,
        in_channels: int = 3,
        batch_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"{owner}: depth must be 6n+4, at least 10, got {depth} (16 and 28 are usual)")
        if width < 1:
            raise ValueError(f"{owner}: width must be at least 1, got {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"{owner}: dropout must be in [0, 1), got {dropout}")
        self.batch_norm, self.dropout = batch_norm, dropout
        blocks = (depth - 4) // 6
        self.conv1 = self._conv(in_channels, 16, 3, 1)
        self.layer1 = self._stage(16, 16 * width, blocks, 1)
        self.layer2 = self._stage(16 * width, 32 * width, blocks, 2)
        self.layer3 = self._stage(32 * width, 64 * width, blocks, 2)
        self.norm = self._norm(64 * width)
        side = -(-image_size // 4)
        self.pool = _GlobalMean(side) if batch_norm else nn.Flatten()
        self.linear = self._linear(64 * width * (1 if batch_norm else side**2), num_classes)
        if not batch_norm:
            self._shrink_branches(3 * blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of normalised images `(B, C, H, W)`."""
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        logits: Tensor = self.linear(self.pool(F.relu(self.norm(features))))
        return logits

    def lipschitz(self, norm: LipschitzNorm) -> float:
        """The product over all layers, see `lipschitz_bound`."""
        parts = (self.conv1, self.layer1, self.layer2, self.layer3, self.norm, self.pool, self.linear)
        return math.prod(lipschitz_bound(part, norm) for part in parts)

    def _stage(self, in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = _Block(self, in_channels, channels, stride)
        return nn.Sequential(first, *(_Block(self, channels, channels, 1) for _ in range(blocks - 1)))

    def _norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if self.batch_norm else nn.Identity()

    def _conv(self, in_channels: int, channels: int, side: int, stride: int) -> nn.Conv2d:
        conv = nn.Conv2d(in_channels, channels, side, stride, side // 2, bias=not self.batch_norm)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv

    def _linear(self, features: int, num_classes: int) -> nn.Linear:
        return nn.Linear(features, num_classes)

    def _sum(self) -> nn.Module:
        return _Sum()

    def _shrink_branches(self, blocks: int) -> None:
        # sums of so many branches of equal variance would grow without BatchNorm
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, _Block):
                    module.conv2.weight *= blocks**-0.5


class ParsevalWideResNet(WideResNet):
    """The wide residual network as a Parseval network (Cisse et al. 2017, arXiv:1704.08847).

    Every weight is kept near a tight frame, every residual sum is a convex combination with learned coefficients, so
    that without BatchNorm no layer enlarges a difference. A last layer that cannot grow cannot make a softmax certain
    either: its logits are multiplied by one learned number, which the bound counts. Convolutions have no bias: without
    BatchNorm features shrink from layer to layer, and biases would drown them. BatchNorm, which the paper keeps
    and says nothing about, is in the bound with its factor (see `lipschitz_bound`), and is no constraint at all.

    The constraints are kept by `ParsevalRetraction` in training; see `ParsevalTraining`.

    Args:
        depth: Number of layers, 6n+4.
        width: k.
        num_classes: K.
        image_size: Side of the images in pixels.
        in_channels: C.
        batch_norm: Whether there is BatchNorm before each ReLU.
        dropout: Share of the activations dropped between the convolutions of a block, in [0, 1).
        constraint: ``l2`` for tight frames, ``linf`` for rows in the l1 ball: 1-Lipschitz in the infinity norm.
        identity_share: What a shortcut's coefficient starts as, in [0, 1].

    Attributes:
        scale: The learned number, a scalar.

    Raises:
        ValueError: A field is out of range.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int,
        image_size: int = 32,
        in_channels: int = 3,
        batch_norm: bool = False,
        dropout: float = 0.0,
        constraint: Constraint = "l2",
        identity_share: float = 0.5,
    ) -> None:
        self.constraint, self._identity_share = constraint, identity_share
        super().__init__(depth, width, num_classes, image_size, in_channels, batch_norm, dropout)
        # BatchNorm has gains of its own
        self.scale = nn.Parameter(torch.tensor(1.0 if batch_norm else 10.0))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of normalised images `(B, C, H, W)`."""
        return self.scale * super().forward(images)

    def lipschitz(self, norm: LipschitzNorm) -> float:
        """The product over all layers, see `lipschitz_bound`."""
        return abs(float(self.scale.detach())) * super().lipschitz(norm)

    def _conv(self, in_channels: int, channels: int, side: int, stride: int) -> nn.Conv2d:
        assert self.constraint is not None
        return ParsevalConv2d(in_channels, channels, side, stride, side // 2, False, self.constraint)

    def _linear(self, features: int, num_classes: int) -> nn.Linear:
        assert self.constraint is not None
        return ParsevalLinear(features, num_classes, constraint=self.constraint)

    def _sum(self) -> nn.Module:
        return ConvexSum(self._identity_share)

    def _shrink_branches(self, blocks: int) -> None:
        """Nothing: convex sums do not grow."""


class _Block(nn.Module):
    def __init__(self, network: WideResNet, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = network._norm(in_channels)
        self.conv1 = network._conv(in_channels, channels, 3, stride)
        self.norm2 = network._norm(channels)
        self.dropout = nn.Dropout(network.dropout)
        self.conv2 = network._conv(channels, channels, 3, 1)
        changes = stride != 1 or in_channels != channels
        self.shortcut = network._conv(in_channels, channels, 1, stride) if changes else None
        self.sum = network._sum()

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.norm1(features))
        branch = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.sum(shortcut, branch)
        return out

    def lipschitz(self, norm: LipschitzNorm) -> float:
        first = lipschitz_bound(self.norm1, norm)
        branch = first * math.prod(lipschitz_bound(part, norm) for part in (self.conv1, self.norm2, self.conv2))
        shortcut = 1.0 if self.shortcut is None else first * lipschitz_bound(self.shortcut, norm)
        a, b = self.sum.coefficients.detach().abs().tolist() if isinstance(self.sum, ConvexSum) else (1.0, 1.0)
        return float(a * shortcut + b * branch)


class _Sum(nn.Module):
    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        return shortcut + branch


class _GlobalMean(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))

    def lipschitz(self, norm: LipschitzNorm) -> float:
        # a mean of n numbers is a row of norm 1 / sqrt(n)
        return 1.0 if norm == "linf" else 1 / self.side


def wide_resnet(name: str, num_classes: int, image_size: int, in_channels: int) -> WideResNet:
    """A network by its name.

    Args:
        name: One of `WideResNetName`.
        num_classes: K.
        image_size: Side of the images in pixels.
        in_channels: C.
    """
    kind, _, size = name.removesuffix("_bn").rpartition("wrn")
    depth, width = map(int, size.split("_"))
    batch_norm = name.endswith("_bn")
    if not kind:
        return WideResNet(depth, width, num_classes, image_size, in_channels, batch_norm)
    constraint: Constraint = "linf" if kind == "parseval_inf_" else "l2"
    return ParsevalWideResNet(depth, width, num_classes, image_size, in_channels, batch_norm, constraint=constraint)
