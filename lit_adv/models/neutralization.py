"""A classifier that blocks some pixels before it looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_adv.models.classifier import Classifier, save_classifier


class NeutralizationDefense(nn.Module):
    """A classifier behind a blob: the pixels in it take a fixed value, whatever the image has there.

    A post-hoc defence: the classifier is not trained again. It is a function of the image like any other, so that an
    attack on this module knows the blob: its gradient is 0 there and the budget goes elsewhere. Report that attack
    beside the one on the bare classifier.

    Args:
        classifier: From images ``(B, C, H, W)`` in [0, 1] to logits.
        blob: ``(H, W)`` bool, the pixels blocked; see `lit_adv.explain.blob_of_masks`.
        value: What they become in all channels, in [0, 1].

    Attributes:
        classifier: The one given.
        blob: A buffer, saved with the state.
        value: A buffer, a scalar.

    Raises:
        ValueError: The blob is no mask, or the value is out of range.
    """

    blob: Tensor
    value: Tensor

    def __init__(self, classifier: nn.Module, blob: Tensor, value: float = 0.0) -> None:
        super().__init__()
        _check("NeutralizationDefense", blob, value)
        if blob.ndim != 2:
            raise ValueError(f"NeutralizationDefense: blob must have shape (H, W), got {tuple(blob.shape)}")
        self.classifier = classifier
        self.register_buffer("blob", blob.clone())
        self.register_buffer("value", torch.tensor(float(value)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of images `(B, C, H, W)` in `[0, 1]`."""
        logits: Tensor = self.classifier(_blocked("NeutralizationDefense", images, self.blob, self.value))
        return logits

    def extra_repr(self) -> str:
        """Size of the blob and its value, for the printed network."""
        height, width = self.blob.shape
        return f"blob={int(self.blob.sum())} of {height}x{width} pixels, value={float(self.value):g}"

    def save(self, path: str | Path) -> None:
        """Writes classifier, blob and value into one file, which `load_classifier` and a config's victims read.

        Args:
            path: Where to; must end in `.safetensors`.

        Raises:
            ValueError: The path ends otherwise, or the classifier is not a `Classifier`.
        """
        if not isinstance(self.classifier, Classifier):
            raise ValueError(
                f"NeutralizationDefense: classifier must be a Classifier to be saved, got"
                f" {type(self.classifier).__name__} (save the state_dict, and give it to the same module again)"
            )
        save_classifier(self.classifier, path, neutralization={"blob": self.blob, "value": self.value})


def neutralize(images: Tensor, blob: Tensor, value: float = 0.0) -> Tensor:
    """Images with the pixels of a blob set to a value in all channels; every other pixel stays as it is, bit for bit.

    Args:
        images: ``(B, C, H, W)`` in [0, 1], before any normalisation.
        blob: ``(H, W)`` bool, or ``(B, H, W)``, one for each image.
        value: In [0, 1].

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: The images are not floating-point, the blob is no mask of them, or the value is out of range.
    """
    _check("neutralize", blob, value)
    if not isinstance(images, Tensor) or not images.is_floating_point():
        # 8 bits know of no value between 0 and 1
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"neutralize: images must be floating-point in [0, 1], got {got} (images.float() / 255)")
    return _blocked("neutralize", images, blob, images.new_tensor(value))


def _blocked(owner: str, images: Tensor, blob: Tensor, value: Tensor) -> Tensor:
    if images.ndim != 4 or blob.shape[-2:] != images.shape[-2:] or (blob.ndim == 3 and len(blob) != len(images)):
        raise ValueError(
            f"{owner}: images must be (B, C, {blob.shape[-2]}, {blob.shape[-1]}), the size of the blob, got"
            f" {tuple(images.shape)}"
        )
    mask = blob if blob.ndim == 2 else blob[:, None]
    return torch.where(mask, value.to(images.dtype), images)


def _check(owner: str, blob: Any, value: float) -> None:
    if not isinstance(blob, Tensor) or blob.dtype != torch.bool or blob.ndim not in (2, 3):
        got = f"{blob.dtype} of shape {tuple(blob.shape)}" if isinstance(blob, Tensor) else type(blob).__name__
        raise ValueError(f"{owner}: blob must be a bool tensor (H, W), got {got}")
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: value must be in [0, 1], the range of images, got {value}")
