"""Which patches of the test images excite a layer's channels most, at the end of a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.explain import Patches, activations, receptive_field
from lit_adv.explain.layers import check_layer
from lit_adv.explain.top_patches import batch_patches, check_search
from lit_adv.files import write_rows
from lit_adv.plots import patches_figure

from .figures import log_figure
from .shown_images import gathered
from .visualization import Visualization, chosen_convolutions, task_name

COLUMNS = ("channel", "rank", "activation", "image", "row", "column", "top", "left", "bottom", "right")


class TopPatches(Visualization):
    """Draws the patches that excite some channels most, ``figures/top_patches.png``, see `top_patches`.

    ``top_patches.csv`` has a row a patch: activation, position of the image in the test set, unit, and receptive field
    in pixels, not cut at the image's edge. No more than ``k`` patches a channel are kept in memory. Several processes
    find what one finds.

    Args:
        layer: Its name, see ``named_modules`` of the task; None takes the convolution in the middle of the network.
        channels: Of the layer; None takes the first eight.
        images: Most test images that are searched.
        k: Patches a channel.
        per_image: Most of them from one image.
        max_overlap: Largest share of their union that two patches of an image may have in common.
        batch_size: Images at once.

    Raises:
        ValueError: An argument is out of range; in the test, there is no such layer or channel, or its units have no
            receptive field (see `receptive_field`).
    """

    def __init__(
        self,
        layer: str | None = None,
        channels: Sequence[int] | None = None,
        images: int = 1000,
        k: int = 9,
        per_image: int = 1,
        max_overlap: float = 0.5,
        batch_size: int = 100,
    ) -> None:
        super().__init__(images)
        check_search(self._name, k, per_image, max_overlap, 0.5)
        if batch_size < 1:
            raise ValueError(f"TopPatches: batch_size must be at least 1, got {batch_size}")
        if channels is not None and (not channels or min(channels) < 0):
            raise ValueError(f"TopPatches: channels must be one or more numbers >= 0, got {list(channels)}")
        self.layer = layer
        self.channels = None if channels is None else list(channels)
        self.k, self.per_image, self.max_overlap, self.batch_size = k, per_image, max_overlap, batch_size
        self.patches: Patches | None = None

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        self.patches = None
        if self.layer is not None:
            check_layer(self._name, pl_module, self.layer)
        self._layer = self.layer or chosen_convolutions(self._name, pl_module, image, [0.5])[0]
        self._field = receptive_field(pl_module, self._layer, image.shape[1:])
        count = activations(pl_module, image, self._layer).shape[1]
        self._channels = list(range(min(8, count))) if self.channels is None else self.channels
        if max(self._channels) >= count:
            raise ValueError(
                f"TopPatches: channels must be in [0, {count}) in {self._layer}, got {max(self._channels)}"
            )

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rules = (self._layer, self._channels, self._field, self.k, self.per_image, self.max_overlap, 0.5)
        best: Patches | None = None
        for batch in self._shown.mine(self.batch_size):
            found = batch_patches(pl_module, batch.images.to(pl_module.device), *rules)
            # numbers in the batch are turned into positions in the test set
            places = torch.where(found.images < 0, -1, batch.places[found.images.clamp(min=0)])
            found = Patches(found.values, places, found.units, found.boxes, found.patches)
            best = found if best is None else Patches.merged([best, found], self.k)
        parts = [part for part in gathered(best) if part is not None]
        self.patches = Patches.merged(parts, self.k)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = self.patches
        assert found is not None
        rows = [
            dict(
                zip(
                    COLUMNS,
                    (
                        channel,
                        rank + 1,
                        float(f"{float(found.values[place, rank]):.6g}"),
                        int(found.images[place, rank]),
                        *found.units[place, rank].tolist(),
                        *found.boxes[place, rank].tolist(),
                    ),
                    strict=True,
                )
            )
            for place, channel in enumerate(self._channels)
            for rank in range(found.values.shape[1])
            if found.images[place, rank] >= 0
        ]
        write_rows(Path(trainer.default_root_dir) / "top_patches.csv", COLUMNS, rows)
        high, wide = self._field.size
        title = f"Most exciting patches of {self._layer}, {task_name(pl_module)}: field {high} × {wide} pixels"
        names = [str(channel) for channel in self._channels]
        log_figure(trainer, "top_patches", patches_figure(found.patches, found.values, names, title))
