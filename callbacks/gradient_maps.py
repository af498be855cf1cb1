"""Gradients of the class to the pixels, by several rules, at the end of a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
from torch import Tensor

from lit_adv.explain import deconvnet, grad_cam, grad_cam_plus_plus, gradient_saliency, guided_backpropagation
from lit_adv.plots import Explained, gradient_maps_figure

from .figures import log_figure
from .visualization import ExplainedClass, Visualization, check_explain, explained_classes, task_name

MapName = Literal["saliency", "deconvnet", "guided", "grad_cam", "grad_cam_plus_plus"]


class GradientMaps(Visualization):
    """Draws maps of some test images that gradients make, ``figures/gradient_maps.png``.

    Args:
        images: How many test images.
        maps: Which, in this order: ``saliency`` (`gradient_saliency`), ``deconvnet``, ``guided``
            (`guided_backpropagation`), ``grad_cam``, ``grad_cam_plus_plus``.
        explain: The class predicted, or the true one.

    Raises:
        ValueError: An argument is out of range; in the test, a map cannot be made of the network.
    """

    def __init__(
        self,
        images: int = 4,
        maps: Sequence[MapName] = ("saliency", "deconvnet", "guided"),
        explain: ExplainedClass = "prediction",
    ) -> None:
        super().__init__(images)
        check_explain(self._name, explain)
        wrong = [name for name in maps if name not in _MAPS]
        if wrong or not maps or len(set(maps)) < len(maps):
            raise ValueError(f"GradientMaps: maps must be different ones of {', '.join(_MAPS)}, got {list(maps)}")
        self.maps = list(maps)
        self.explain: ExplainedClass = explain

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        for name in self.maps:
            _MAPS[name](pl_module, image)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batch = self._batch(pl_module)
        classes, rows, lines = explained_classes(trainer, pl_module, batch, self.explain)
        made = {
            name.replace("_plus_plus", "++").replace("_", "-"): _MAPS[name](pl_module, batch.images, classes)
            for name in self.maps
        }
        examples = [
            Explained(image, {name: maps[place] for name, maps in made.items()}, row, {"image": line})
            for place, (image, row, line) in enumerate(zip(batch.images, rows, lines, strict=True))
        ]
        what = "predicted" if self.explain == "prediction" else "true"
        title = f"Gradient maps of the {what} class, {task_name(pl_module)}"
        log_figure(trainer, "gradient_maps", gradient_maps_figure(examples, title))


_MAPS: dict[str, Callable[..., Any]] = {
    "saliency": gradient_saliency,
    "deconvnet": deconvnet,
    "guided": guided_backpropagation,
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
}
