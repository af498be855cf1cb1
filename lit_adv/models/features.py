"""Feature maps of a VGG network, for perceptual losses."""

import difflib
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from lit_adv.models.frozen import freeze_
from lit_adv.models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from lit_adv.models.weights import differences, imagenet_state_dict, read_state_dict


class VGGFeatures(nn.Module):
    """F, a frozen VGG cut right after one of its ReLUs (Simonyan and Zisserman 2015), ImageNet-normalised inside.

    REDRL takes relu3_3 of vgg16_bn, before the third pooling: 256 channels at a quarter of the resolution. Gradients
    reach the images; parameters and BatchNorm statistics never change.

    Args:
        name: "vgg16", "vgg16_bn", "vgg19" or "vgg19_bn".
        layer: "relu<block>_<number>", both from 1.
        weights: "imagenet" downloads torchvision's once; a path names a state_dict with keys `features.N.*` or `N.*`
            (what lies beyond the cut is ignored); None leaves random weights, for tests.

    Raises:
        ValueError: The name or layer does not exist, or the weights do not fit.
        FileNotFoundError: The file of weights does not exist.
        RuntimeError: The download failed.
    """

    def __init__(self, name: str = "vgg16_bn", layer: str = "relu3_3", weights: str | Path | None = "imagenet") -> None:
        super().__init__()
        if name not in _NAMES:
            raise ValueError(f"VGGFeatures: name must be one of {', '.join(_NAMES)}, got '{name}'")
        # built without memory first: the classifier that is thrown away has 120 million parameters
        with torch.device("meta"):
            network = getattr(models, name)(weights=None, init_weights=False).features
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.features = network[: _after(network, name, layer)]
        self.features.to_empty(device="cpu")
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        if weights is not None:
            self._load(name, layer, weights)
        freeze_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Features `(B, D, h, w)` of images `(B, 3, H, W)` in `[0, 1]`, or `(B, 1, H, W)`, which are repeated."""
        if images.size(1) == 1:
            images = images.expand(-1, 3, -1, -1)
        features: Tensor = self.features(self.normalize(images))
        return features

    def _load(self, name: str, layer: str, weights: str | Path) -> None:
        owner = "VGGFeatures"
        state = imagenet_state_dict(name, owner) if str(weights) == "imagenet" else read_state_dict(weights, owner)
        state = {key.removeprefix("features."): value for key, value in state.items()}
        expected = self.features.state_dict()
        state = {key: value for key, value in state.items() if key in expected}
        wrong = differences(expected, state)
        if wrong:
            raise ValueError(f"{owner}: '{weights}' does not fit {name} up to {layer}: {wrong} (check name and layer)")
        # strict=False only for num_batches_tracked, which old files lack; `differences` saw everything else
        self.features.load_state_dict(state, strict=False)


_NAMES = ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn")


def _after(network: nn.Sequential, name: str, layer: str) -> int:
    ends = {}
    block, number = 1, 0
    for position, module in enumerate(network):
        if isinstance(module, nn.MaxPool2d):
            block, number = block + 1, 0
        elif isinstance(module, nn.ReLU):
            number += 1
            ends[f"relu{block}_{number}"] = position + 1
    if layer not in ends:
        near = difflib.get_close_matches(layer, ends, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"VGGFeatures: layer must be one of {', '.join(ends)} for {name}, got '{layer}'{hint}")
    return ends[layer]
