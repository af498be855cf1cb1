"""The filters of the first layer, at the end of a test."""

from __future__ import annotations

from typing import get_args

import pytorch_lightning as pl
from torch import Tensor

from lit_adv.explain import filters
from lit_adv.explain.layers import FilterScale
from lit_adv.plots import Tiles, tile_figure

from .figures import log_figure
from .visualization import Visualization, chosen_convolutions, task_name


class FilterGrid(Visualization):
    """Draws the filters of a convolution that sees the image as pictures, ``figures/filters.png``.

    Args:
        layer: Its name, see ``named_modules`` of the task; None takes the first convolution that an image comes to.
        scale: ``all`` has one scale for all filters, so that they can be compared; ``each`` shows every filter as
            clearly as can be.

    Raises:
        ValueError: An argument is out of range; in the test, there is no such layer, or it does not see 1 or 3
            channels.
    """

    def __init__(self, layer: str | None = None, scale: FilterScale = "all") -> None:
        super().__init__(images=1)
        if scale not in get_args(FilterScale):
            raise ValueError(f"FilterGrid: scale must be one of {', '.join(get_args(FilterScale))}, got {scale!r}")
        self.layer, self.scale = layer, scale

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        self._found = filters(
            pl_module, self.layer or chosen_convolutions(self._name, pl_module, image, [0])[0], scale=self.scale
        )
        if self._found.tiles.shape[1] not in (1, 3):
            raise ValueError(
                f"FilterGrid: layer must see 1 or 3 channels to be shown, got {self._found.tiles.shape[1]} in "
                f"{self._found.layer}"
            )

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        low, high = float(self._found.low.min()), float(self._found.high.max())
        about = "each on its own scale" if self.scale == "each" else f"black {low:.2g}, white {high:.2g}"
        title = f"Filters of {self._found.layer}, {task_name(pl_module)}"
        log_figure(trainer, "filters", tile_figure([Tiles(self._found.tiles, f"weights, {about}")], title))
