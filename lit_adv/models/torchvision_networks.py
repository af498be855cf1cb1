"""Torchvision's architectures with a stem that fits the size of the images."""

import torch
from torch import nn
from torchvision import models

SMALL_IMAGE = 64
"""Images up to this side, in pixels, get the small-image stem."""

TORCHVISION_NAMES = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnext50": "resnext50_32x4d",
    "densenet121": "densenet121",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16_bn",
    "vgg19": "vgg19",
    "vgg19_bn": "vgg19_bn",
    "mobilenet_v2": "mobilenet_v2",
    "alexnet": "alexnet",
}


def torchvision_network(name: str, num_classes: int, image_size: int, in_channels: int) -> nn.Module:
    """A randomly initialised torchvision classifier.

    Images of at most 64 px get a stem that keeps their resolution: ResNets, ResNeXt and DenseNet a 3x3 convolution of
    stride 1 and no pooling, MobileNetV2 a first stride of 1 (at 32 px and below also the next one), AlexNet 3x3
    convolutions and half the strides, VGG a single linear layer as head. Larger images get the ImageNet stem; VGG then
    has REDRL's head 25088-4096-256-K, save for ImageNet's 1000 classes, where torchvision's stays so that the
    published weights fit.

    Args:
        name: One of `TORCHVISION_NAMES`.
        num_classes: K.
        image_size: Side of the images in pixels.
        in_channels: C.
    """
    small = image_size <= SMALL_IMAGE
    build = getattr(models, TORCHVISION_NAMES[name])
    if name.startswith("vgg"):
        return _vgg(build, num_classes, small, in_channels)
    if name == "alexnet":
        return _alexnet(build, num_classes, small, in_channels)
    if name == "densenet121":
        return _densenet(build, num_classes, small, in_channels)
    if name == "mobilenet_v2":
        return _mobilenet(build, num_classes, image_size, in_channels)
    return _resnet(build, num_classes, small, in_channels)


def _resnet(build: models.resnet.ResNet, num_classes: int, small: bool, in_channels: int) -> nn.Module:
    network = build(weights=None, num_classes=num_classes)
    if small:
        network.conv1 = _stem(in_channels, 64, 3, 1)
        network.maxpool = nn.Identity()
    elif in_channels != 3:
        network.conv1 = _stem(in_channels, 64, 7, 2)
    return network


def _densenet(build: models.densenet.DenseNet, num_classes: int, small: bool, in_channels: int) -> nn.Module:
    network = build(weights=None, num_classes=num_classes)
    if small:
        network.features.conv0 = _stem(in_channels, 64, 3, 1)
        network.features.pool0 = nn.Identity()
    elif in_channels != 3:
        network.features.conv0 = _stem(in_channels, 64, 7, 2)
    return network


def _mobilenet(build: models.mobilenetv2.MobileNetV2, num_classes: int, image_size: int, in_channels: int) -> nn.Module:
    network = build(weights=None, num_classes=num_classes)
    stride = 1 if image_size <= SMALL_IMAGE else 2
    if in_channels != 3 or stride == 1:
        network.features[0][0] = _stem(in_channels, 32, 3, stride)
    if image_size <= 32:
        # 32 px leave a 4x4 map, as 64 px do with the first stride alone
        network.features[2].conv[1][0].stride = (1, 1)
    return network


def _vgg(build: models.vgg.VGG, num_classes: int, small: bool, in_channels: int) -> nn.Module:
    # built without memory first: the head that is thrown away has 120 million parameters
    with torch.device("meta"):
        network = build(weights=None, init_weights=False, num_classes=num_classes)
        network.features[0] = nn.Conv2d(in_channels, 64, 3, padding=1)
        if small:
            network.avgpool = nn.AdaptiveAvgPool2d(1)
            network.classifier = nn.Sequential(nn.Linear(512, num_classes))
        elif num_classes != 1000:
            network.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(True),
                nn.Dropout(),
                nn.Linear(4096, 256),
                nn.ReLU(True),
                nn.Dropout(),
                nn.Linear(256, num_classes),
            )
    _materialise(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
    return network


def _alexnet(build: models.alexnet, num_classes: int, small: bool, in_channels: int) -> nn.Module:
    with torch.device("meta"):
        network = build(weights=None, num_classes=num_classes)
        if small:
            network.features[0] = nn.Conv2d(in_channels, 64, 3, stride=2, padding=1)
            network.features[3] = nn.Conv2d(64, 192, 3, padding=1)
            for i in (2, 5, 12):
                network.features[i] = nn.MaxPool2d(2)
            network.avgpool = nn.AdaptiveAvgPool2d(2)
            network.classifier[1] = nn.Linear(256 * 2 * 2, 4096)
        else:
            network.features[0] = nn.Conv2d(in_channels, 64, 11, stride=4, padding=2)
    return _materialise(network)


def _stem(in_channels: int, channels: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _materialise(network: nn.Module) -> nn.Module:
    network.to_empty(device="cpu")
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    return network
