"""The two networks that REDRL trains (Souri et al., "Identification of Attack-Specific Signatures", section 4.1)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet18


class Reconstructor(nn.Module):
    """G, which maps an adversarial image near the clean one it was made from.

    A convolution with LeakyReLU(0.1), residual blocks without BatchNorm, a convolution without activation; no skip
    from image to image and no resampling. 1,702,211 parameters at the paper's size. Under autocast the blocks alone
    compute in half precision.

    Args:
        channels: C of the images.
        width: Channels inside.
        blocks: Number of residual blocks.
    """

    def __init__(self, channels: int = 3, width: int = 64, blocks: int = 23) -> None:
        super().__init__()
        _positive("Reconstructor", channels=channels, width=width, blocks=blocks)
        self.conv_first = _FullPrecision(channels, width, 3, padding=1)
        self.activation = nn.LeakyReLU(0.1, inplace=True)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.conv_last = _FullPrecision(width, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions `(B, C, H, W)`, unbounded, of images `(B, C, H, W)` in `[0, 1]`."""
        reconstructed: Tensor = self.conv_last(self.blocks(self.activation(self.conv_first(images))))
        return reconstructed


class AttackRecognizer(nn.Module):
    """Psi, which names the attack behind an image, from the residual and the image, concatenated in this order.

    Args:
        num_classes: A, the clean class included.
        in_channels: Channels of the input: 2C for residual and image, C for the image alone.
        network: "resnet18" is the paper's trunk (its first convolution has a bias). "small" is seven convolutions
            that reduce the resolution late, for images of 16 to 32 px and small budgets: the traces of an attack are
            in the finest detail, which ResNet18's stem would average away there.
    """

    def __init__(
        self, num_classes: int = 6, in_channels: int = 6, network: Literal["resnet18", "small"] = "resnet18"
    ) -> None:
        super().__init__()
        _positive("AttackRecognizer", num_classes=num_classes, in_channels=in_channels)
        features = 512
        if network == "resnet18":
            self.trunk: nn.Module = resnet18(weights=None)
            self.trunk.conv1 = _FullPrecision(in_channels, 64, 7, stride=2, padding=3)
            self.trunk.fc = nn.Identity()
        elif network == "small":
            features = 128
            self.trunk = nn.Sequential(
                # a perturbation is a hundredth of the image beside it: without a common scale it is learnt last
                nn.BatchNorm2d(in_channels),
                *_layer(in_channels, 32, kind=_FullPrecision),
                *_layer(32, 32),
                *_layer(32, 64, stride=2),
                *_layer(64, 64),
                *_layer(64, 128, stride=2),
                *_layer(128, 128),
                *_layer(128, features),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
        else:
            raise ValueError(f"AttackRecognizer: network must be 'resnet18' or 'small', got '{network}'")
        self.features = features
        self.head = nn.Sequential(nn.Linear(features, 32), nn.ReLU(inplace=True), nn.Linear(32, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, A)` of inputs `(B, in_channels, H, W)`: residuals in `[-1, 1]`, images in `[0, 1]`."""
        logits: Tensor = self.head(self.trunk(inputs))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        # a tenth of the usual scale (the authors' code): 23 blocks start close to the identity
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.conv2(self.relu(self.conv1(features)))
        return features + residual


class _FullPrecision(nn.Conv2d):
    """Stays in the precision of its weights under autocast: half precision would round a perturbation of a few grey
    levels away before anything has been computed from it."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def _layer(in_channels: int, channels: int, stride: int = 1, kind: type[nn.Conv2d] = nn.Conv2d) -> list[nn.Module]:
    conv = kind(in_channels, channels, 3, stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _positive(owner: str, **fields: int) -> None:
    for name, value in fields.items():
        if value < 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {value}")
