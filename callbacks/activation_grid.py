"""What layers make of some images, at the end of a test."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl
from torch import Tensor

from lit_adv.explain import activations
from lit_adv.explain.layers import check_layer
from lit_adv.plots import Tiles, tile_figure

from .figures import log_figure
from .visualization import Visualization, chosen_convolutions, explained_classes, task_name


class ActivationGrid(Visualization):
    """Draws the maps of some layers for some test images, ``figures/activations_<layer>.png``, a tile a channel.

    Args:
        layers: Their names, see ``named_modules`` of the task; None takes the first, the middle and the last
            convolution that an image comes to, whose maps are those before the activation.
        images: How many test images.
        channels: Most channels of a layer, from the first on.

    Raises:
        ValueError: An argument is out of range; in the test, there is no such layer, or it gives no maps.
    """

    def __init__(self, layers: Sequence[str] | None = None, images: int = 2, channels: int = 64) -> None:
        super().__init__(images)
        if layers is not None and not layers:
            raise ValueError("ActivationGrid: layers must be one or more names, got none (leave it out for three)")
        if channels < 1:
            raise ValueError(f"ActivationGrid: channels must be at least 1, got {channels}")
        self.layers = None if layers is None else list(layers)
        self.channels = channels

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        for layer in self.layers or []:
            check_layer(self._name, pl_module, layer, "layers")
        self._layers = self.layers or chosen_convolutions(self._name, pl_module, image, [0, 0.5, 1])
        for layer in self._layers:
            shape = tuple(activations(pl_module, image, layer).shape)
            if len(shape) != 4:
                raise ValueError(f"ActivationGrid: layers must give maps (B, C, h, w), got {shape} from {layer}")

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batch = self._batch(pl_module)
        _, rows, lines = explained_classes(trainer, pl_module, batch, "prediction")
        names = [f"{row}, {line}".replace("\n", ", ") for row, line in zip(rows, lines, strict=True)]
        for layer in self._layers:
            maps = activations(pl_module, batch.images, layer)
            kept = maps[:, : self.channels]
            blocks = [Tiles(*each) for each in zip(kept, names, batch.images, strict=True)]
            few = f"channels 0 to {kept.shape[1] - 1} of {maps.shape[1]}"
            title = f"Activations of {layer}, {task_name(pl_module)}: {few}"
            log_figure(trainer, f"activations_{layer}", tile_figure(blocks, title))
