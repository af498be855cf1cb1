"""A classifier whose logits are divided by a temperature."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Temperature(nn.Module):
    """A classifier at another temperature: Z(x) / T in place of Z(x).

    The predicted class is the same; the softmax is softer for T > 1. A network distilled at T has logits about T times
    larger than usual, whose softmax at temperature 1 is 1 and 0 in float32, so that the gradient of the cross-entropy
    is exactly 0 and attacks that follow it stand still. Attack this module instead, or follow the margin of the logits.

    Args:
        classifier: From images ``(B, C, H, W)`` in [0, 1] to logits.
        temperature: T, above 0 and finite.

    Raises:
        ValueError: T is out of range.
    """

    def __init__(self, classifier: nn.Module, temperature: float) -> None:
        super().__init__()
        check_temperature("Temperature", temperature)
        self.classifier = classifier
        self.temperature = float(temperature)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` over T of images ``(B, C, H, W)`` in [0, 1]."""
        logits: Tensor = self.classifier(images) / self.temperature
        return logits

    def extra_repr(self) -> str:
        """T, for the printed network."""
        return f"temperature={self.temperature:g}"


def check_temperature(owner: str, temperature: float) -> None:
    """Raises ValueError unless ``temperature`` is above 0 and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"{owner}: temperature must be above 0 and finite, got {temperature} (1 changes nothing)")
