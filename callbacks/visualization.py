"""What the callbacks that draw what a network sees share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.attacks.attack import predictions
from lit_adv.explain.layers import called_convolutions

from .shown_images import ShownBatch, ShownImages, class_names

ExplainedClass = Literal["prediction", "label"]


class Visualization(pl.Callback):
    """Base of the callbacks that draw, at the end of a test, what a network does with some test images.

    The task's ``forward`` must give logits of images in [0, 1]. What can be wrong with the arguments is found before
    the first test batch, by a try on one image.

    Args:
        images: How many test images, see `ShownImages`.
    """

    shows_images = True
    """Whether images become pictures, which have 1 or 3 channels."""

    def __init__(self, images: int) -> None:
        if images < 1:
            raise ValueError(f"{self._name}: images must be at least 1, got {images}")
        self.images = images

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown = ShownImages(self._name, trainer, self.images)
        image = self._shown.first().images.to(pl_module.device)
        if self.shows_images and image.shape[1] not in (1, 3):
            raise ValueError(f"{self._name}: images must have 1 or 3 channels to be shown, got {image.shape[1]}")
        self._try(trainer, pl_module, image)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        """Raises ValueError for arguments that do not fit the network or the image ``(1, C, H, W)``."""
        raise NotImplementedError(f"{self._name} must say what it needs")

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws, on the main process alone."""
        raise NotImplementedError(f"{self._name} must say what it draws")

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _batch(self, pl_module: pl.LightningModule) -> ShownBatch:
        """All the images, on the task's device."""
        return ShownBatch(*(part.to(pl_module.device) for part in self._shown.first(self.images)))


def explained_classes(
    trainer: pl.Trainer, pl_module: pl.LightningModule, batch: ShownBatch, explain: ExplainedClass
) -> tuple[Tensor, list[str], list[str]]:
    """The classes explained, names of the rows and lines below the images."""
    predicted = predictions(pl_module, batch.images)
    names = class_names(trainer, sorted({*batch.labels.tolist(), *predicted.tolist()}))
    rows = [
        f"image {place}\n{names[label]}"
        for place, label in zip(batch.places.tolist(), batch.labels.tolist(), strict=True)
    ]
    lines = [
        "right" if label == other else f"seen as {names[other]}"
        for label, other in zip(batch.labels.tolist(), predicted.tolist(), strict=True)
    ]
    return (predicted if explain == "prediction" else batch.labels), rows, lines


def check_explain(owner: str, explain: str) -> None:
    """Raises ValueError for anything but the two."""
    if explain not in ("prediction", "label"):
        raise ValueError(f"{owner}: explain must be prediction or label, got {explain!r}")


def task_name(pl_module: pl.LightningModule) -> str:
    """The architecture where the task names one, for titles."""
    name = getattr(pl_module, "hparams", {}).get("name")
    return str(name) if name else type(pl_module).__name__


def chosen_convolutions(owner: str, pl_module: pl.LightningModule, image: Tensor, shares: Sequence[float]) -> list[str]:
    """Convolutions at these shares of the way through the network, 0 the first and 1 the last one called."""
    names = called_convolutions(pl_module, image)
    if not names:
        raise ValueError(
            f"{owner}: {type(pl_module).__name__} must call a convolution, got none (name a layer of the network)"
        )
    places = torch.tensor(shares).mul(len(names) - 1).round().int().tolist()
    return [names[place] for place in sorted(set(places))]
