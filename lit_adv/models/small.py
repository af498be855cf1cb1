"""Architectures for small images: a plain CNN for tests and demos, and the CIFAR ResNets of He et al."""

import torch.nn.functional as F
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three convolutions and a linear layer over a map of about 4x4, for images of 8x8 and more.

    It has no BatchNorm, so that training on two ranks equals training on one.

    Args:
        num_classes: K.
        image_size: Side of the images in pixels.
        in_channels: C.
    """

    def __init__(self, num_classes: int, image_size: int, in_channels: int = 3) -> None:
        super().__init__()
        side = image_size // 4
        # a fixed window, since adaptive pooling has no deterministic gradient on CUDA
        window = max(side // 4, 1)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(window),
        )
        self.linear = nn.Linear(64 * (side // window) ** 2, num_classes)
        # PyTorch's default shrinks the signal layer by layer; without BatchNorm training would start slowly
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of normalised images `(B, C, H, W)`."""
        logits: Tensor = self.linear(self.features(images).flatten(1))
        return logits


class CIFARResNet(nn.Module):
    """Residual network of 6n+2 layers in three stages of 16, 32 and 64 channels (He et al. 2016, section 4.2).

    Shortcuts between stages have no parameters (option A: every second pixel, new channels zero). Names of the
    parameters are those of the common public weights (`conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`).

    Args:
        depth: Number of layers, 6n+2.
        num_classes: K.
        in_channels: C.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CIFARResNet: depth must be 6n+2, got {depth} (20, 32, 44 and 56 are usual)")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of normalised images `(B, C, H, W)`."""
        features = F.relu(self.bn1(self.conv1(images)), inplace=True)
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)), inplace=True)))
        return F.relu(out + self._shortcut(features), inplace=True)

    def _shortcut(self, features: Tensor) -> Tensor:
        if self.conv1.stride == (1, 1):
            return features
        new = self.conv1.out_channels - self.conv1.in_channels
        return F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, new // 2, new - new // 2))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(in_channels, channels, stride)
    return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))
