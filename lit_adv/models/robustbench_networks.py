"""The networks that most of RobustBench's CIFAR models are, with the names of their published weights."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

RobustBenchName = Literal["wide_resnet28_10", "wide_resnet34_10", "preact_resnet18", "preact_resnet18_bn"]
ROBUSTBENCH_NAMES = get_args(RobustBenchName)


class RobustBenchWideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis 2016) under the names of RobustBench, which has TRADES'.

    Names: ``conv1``, ``block1.layer.0.bn1``, ``.conv1``, ``.bn2``, ``.conv2``, ``.convShortcut``, ``bn1``, ``fc``.

    Args:
        depth: Number of layers, 6n+4.
        width: Factor of the channels.
        num_classes: K.
        in_channels: C.

    Raises:
        ValueError: The depth is another.
    """

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(
                f"RobustBenchWideResNet: depth must be 6n+4, at least 10, got {depth} (28 and 34 are usual)"
            )
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(blocks, 16, 16 * width, 1)
        self.block2 = _Stage(blocks, 16 * width, 32 * width, 2)
        self.block3 = _Stage(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of normalised images `(B, C, H, W)`."""
        features = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(F.relu(self.bn1(features)).mean(dim=(2, 3)))
        return logits


class PreActResNet(nn.Module):
    """ResNet-18 with pre-activation (He et al. 2016, arXiv:1603.05027) for small images, under RobustBench's names.

    Names: ``conv1``, ``layer1.0.bn1``, ``.conv1``, ``.bn2``, ``.conv2``, ``.shortcut.0``, ``bn``, ``linear``. There are
    two in RobustBench: one whose shortcuts start before the first ReLU and which ends without a BatchNorm, as in Wong
    et al. 2020 and Andriushchenko & Flammarion 2020; and one whose shortcuts start after it and which ends with one, as
    in Rice et al. 2020.

    Args:
        num_classes: K.
        in_channels: C.
        last_norm: Whether it is the second.
        blocks: Blocks a stage.
        width: Channels of the first stage.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        last_norm: bool = False,
        blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        sides = [width, width, 2 * width, 4 * width, 8 * width]
        for stage, (count, before, channels) in enumerate(zip(blocks, sides, sides[1:], strict=False), 1):
            first = _PreActBlock(before, channels, 1 if stage == 1 else 2, last_norm)
            others = (_PreActBlock(channels, channels, 1, last_norm) for _ in range(count - 1))
            stages.append(nn.Sequential(first, *others))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn = nn.BatchNorm2d(8 * width) if last_norm else None
        self.linear = nn.Linear(8 * width, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of normalised images `(B, C, H, W)`."""
        features = self.conv1(images)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        if self.bn is not None:
            features = F.relu(self.bn(features))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def robustbench_network(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """A randomly initialised network by its name.

    Args:
        name: One of `RobustBenchName`; ``preact_resnet18_bn`` is the one with a last BatchNorm.
        num_classes: K.
        in_channels: C.
    """
    if name.startswith("preact"):
        return PreActResNet(num_classes, in_channels, last_norm=name.endswith("_bn"))
    depth, width = map(int, name.removeprefix("wide_resnet").split("_"))
    return RobustBenchWideResNet(depth, width, num_classes, in_channels)


class _Stage(nn.Module):
    def __init__(self, blocks: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        first = _WideBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(_WideBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layer(features)
        return out


class _WideBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = in_channels != channels
        self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if changes else None

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.bn1(features))
        branch = self.conv2(F.relu(self.bn2(self.conv1(active))))
        shortcut: Tensor = features if self.convShortcut is None else self.convShortcut(active)
        return shortcut + branch


class _PreActBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, shortcut_after: bool) -> None:
        super().__init__()
        self.shortcut_after = shortcut_after
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.bn1(features))
        branch = self.conv2(F.relu(self.bn2(self.conv1(active))))
        if self.shortcut is None:
            return features + branch
        shortcut: Tensor = self.shortcut(active if self.shortcut_after else features)
        return shortcut + branch


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
