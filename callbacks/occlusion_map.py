"""What covering a part of an image costs its class, at the end of a test."""

from __future__ import annotations

from typing import Literal

import pytorch_lightning as pl
from torch import Tensor

from lit_adv.explain import occlusion_map, spread_occlusion
from lit_adv.explain.occlusion import OcclusionScore, check_square
from lit_adv.plots import Explained, occlusion_figure

from .figures import log_figure
from .visualization import ExplainedClass, Visualization, check_explain, explained_classes, task_name


class OcclusionMap(Visualization):
    """Draws occlusion maps of some test images, ``figures/occlusion.png``, see `occlusion_map`.

    Args:
        images: How many test images.
        size: Side of the square in pixels; None takes a quarter of the images' smaller side.
        stride: From one square to the next; None takes half of the square.
        fill: Of the square, in [0, 1], or ``mean`` for each image's mean colour.
        score: Probability of the class, or its logit.
        explain: The class predicted, or the true one.
        chunk_size: Most covered images in a batch.

    Raises:
        ValueError: An argument is out of range; in the test, the square is larger than the images.
    """

    def __init__(
        self,
        images: int = 4,
        size: int | None = None,
        stride: int | None = None,
        fill: float | Literal["mean"] = 0.5,
        score: OcclusionScore = "probability",
        explain: ExplainedClass = "prediction",
        chunk_size: int = 64,
    ) -> None:
        super().__init__(images)
        check_explain(self._name, explain)
        check_square(self._name, 1 if size is None else size, 1 if stride is None else stride, fill, score, chunk_size)
        self.size, self.stride, self.fill, self.chunk_size = size, stride, fill, chunk_size
        self.score: OcclusionScore = score
        self.explain: ExplainedClass = explain

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        side = min(image.shape[2:])
        self._size = self.size or max(1, side // 4)
        self._stride = self.stride or max(1, self._size // 2)
        if self._size > side:
            raise ValueError(f"OcclusionMap: size must be at most the images' smaller side {side}, got {self._size}")

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batch = self._batch(pl_module)
        classes, rows, lines = explained_classes(trainer, pl_module, batch, self.explain)
        maps = occlusion_map(
            pl_module,
            batch.images,
            classes,
            size=self._size,
            stride=self._stride,
            fill=self.fill,
            score=self.score,
            chunk_size=self.chunk_size,
        )
        height, width = batch.images.shape[2:]
        spread = spread_occlusion(maps, self._size, self._stride, (height, width))
        # no minus in front of 0
        words = [
            "a square: " + " to ".join(f"{round(float(end), 2) + 0.0:.2f}" for end in part.aminmax()) for part in maps
        ]
        examples = [
            Explained(image, {"drop": part}, row, {"image": line, "drop": word})
            for image, part, row, line, word in zip(batch.images, spread, rows, lines, words, strict=True)
        ]
        label = f"{self.score} lost when covered"
        title = f"Occlusion, {self._size} × {self._size} squares, {task_name(pl_module)}"
        log_figure(trainer, "occlusion", occlusion_figure(examples, label, title))
