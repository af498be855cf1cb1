"""Where clean and adversarial images lie in feature space, at the end of a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_adv.attacks import Attack
from lit_adv.attacks.attack import predictions
from lit_adv.evaluation import check_attacks
from lit_adv.explain import features, nearest_neighbors, pca, tsne
from lit_adv.explain.layers import check_layer
from lit_adv.files import write_rows
from lit_adv.plots import Cloud, feature_space_figure, neighbors_figure
from lit_adv.plots.feature_space import MARKERS

from .figures import log_figure
from .loggers import log_numbers
from .shown_images import class_names, gathered
from .visualization import Visualization, task_name

CLEAN = "clean"
COLUMNS = ("image", "kind", "label", "prediction", "pca_1", "pca_2", "tsne_1", "tsne_2", "neighbors_of_true_class")
THUMBNAIL = 64


class FeatureSpace(Visualization):
    """Draws clean and adversarial images together in a network's feature space, and the nearest clean images of some.

    ``figures/feature_space.png`` has their principal components and t-SNE, of both kinds together: colours are true
    classes, markers say whether and how an image was attacked. ``figures/feature_neighbors.png`` has images, clean and
    attacked, with the nearest clean ones; an image's own clean version does not count. ``feature_space.csv`` has a row
    an image and kind with all coordinates and the share of its nearest clean images that are of its true class, whose
    mean is logged as ``features/<kind>/neighbors_of_true_class``. Several processes find what one finds.

    Args:
        attacks: By any names, on the task itself, whose predictions are what they are to change; None shows clean
            images alone.
        images: Most test images.
        layer: Whose output the features are; None takes what the last linear layer gets.
        neighbors: k.
        queries: Images in the figure of neighbours.
        perplexity: Of t-SNE; None takes ``min(30, (n - 1) / 3)`` for n points.
        seed: Of attacks and t-SNE.
        batch_size: Images at once.

    Raises:
        ValueError: An argument is out of range; in the test, there is no such layer, or there are too few images.
    """

    def __init__(
        self,
        attacks: dict[str, Attack] | None = None,
        images: int = 300,
        layer: str | None = None,
        neighbors: int = 5,
        queries: int = 4,
        perplexity: float | None = None,
        seed: int = 0,
        batch_size: int = 100,
    ) -> None:
        super().__init__(images)
        if attacks is not None:
            check_attacks(self._name, attacks, None)
            if CLEAN in attacks or len(attacks) >= len(MARKERS):
                raise ValueError(
                    f"FeatureSpace: attacks must be at most {len(MARKERS) - 1} and have other names than {CLEAN}, got "
                    f"{', '.join(attacks)}"
                )
        for field, value in (("neighbors", neighbors), ("queries", queries), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"FeatureSpace: {field} must be at least 1, got {value}")
        least = max(5, neighbors + 1)
        if images < least:
            raise ValueError(f"FeatureSpace: images must be at least {least}, got {images}")
        if perplexity is not None and not 0 < perplexity < images:
            raise ValueError(f"FeatureSpace: perplexity must be in (0, {images}), got {perplexity}")
        self.attacks = attacks or {}
        self.kinds = [CLEAN, *self.attacks]
        self.layer, self.neighbors, self.queries = layer, neighbors, queries
        self.perplexity, self.seed, self.batch_size = perplexity, seed, batch_size
        self.rows: list[dict[str, Any]] = []

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        self.rows = []
        if self.layer is not None:
            check_layer(self._name, pl_module, self.layer)
        features(pl_module, image, self.layer)
        least = max(5, self.neighbors + 1)
        count = len(self._shown.first(max(least, int(self.perplexity or 0) + 1)).places)
        if count < least:
            raise ValueError(f"FeatureSpace: the test set must have at least {least} images, got {count}")
        points = count * len(self.kinds)
        if self.perplexity is not None and self.perplexity >= points:
            raise ValueError(
                f"FeatureSpace: perplexity must be in (0, {points}), the points of {count} images, got "
                f"{self.perplexity}"
            )

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        mine = []
        for places, images, labels in self._shown.mine(self.batch_size):
            images = images.to(pl_module.device)
            before = predictions(pl_module, images)
            for number, kind in enumerate(self.kinds):
                made = self.attacks[kind](pl_module, images, before, seed=self.seed) if number else images
                after = predictions(pl_module, made) if number else before
                found = features(pl_module, made, self.layer).float().cpu()
                kinds = torch.full_like(places, number)
                mine.append((found, _thumbnails(made), places, kinds, labels.cpu(), after.cpu()))
        parts = [part for each in gathered(mine) for part in each]
        joined = [torch.cat(column) for column in zip(*parts, strict=True)]
        # kind by kind, images in the order of the test set
        order = (joined[3] * (int(joined[2].max()) + 1) + joined[2]).argsort()
        self._points, self._pictures, self._places, self._kinds, self._labels, self._after = (
            part[order] for part in joined
        )
        self._count = int((self._kinds == 0).sum())
        bank, own = self._points[: self._count], torch.arange(self._count).repeat(len(self.kinds))
        self._nearest, self._apart = nearest_neighbors(self._points, bank, self.neighbors, exclude=own)
        self._shares = (self._labels[self._nearest] == self._labels[:, None]).double().mean(1)
        means = {
            f"features/{kind}/neighbors_of_true_class": float(self._shares[self._kinds == number].mean())
            for number, kind in enumerate(self.kinds)
        }
        log_numbers(trainer, means)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = pca(self._points, min(2, *self._points.shape))
        scores = F.pad(found.scores, (0, 2 - found.scores.shape[1]))
        embedded = tsne(self._points, perplexity=self.perplexity, seed=self.seed)
        columns = (self._places, self._kinds, self._labels, self._after, *scores.T, *embedded.T, self._shares)
        self.rows = [
            {**dict(zip(COLUMNS, row, strict=True)), "kind": self.kinds[row[1]]}
            for row in zip(*(_numbers(column) for column in columns), strict=True)
        ]
        write_rows(Path(trainer.default_root_dir) / "feature_space.csv", COLUMNS, self.rows)
        names = class_names(trainer, sorted(set(self._labels.tolist())))
        shares = [f"component {place} ({100 * float(share):.0f} %)" for place, share in enumerate(found.shares, 1)]
        clouds = [
            Cloud(scores, self._labels, self._kinds, "principal components", (shares[0], shares[-1])),
            Cloud(embedded, self._labels, self._kinds, "t-SNE (distances between clusters mean nothing)"),
        ]
        where = self.layer or "in front of the last layer"
        title = f"Features {where}, {task_name(pl_module)}: {self._count} test images"
        log_figure(trainer, "feature_space", feature_space_figure(clouds, self.kinds, names, title))
        self._draw_neighbors(trainer, pl_module)

    def _draw_neighbors(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        names = class_names(trainer, sorted({*self._labels.tolist(), *self._after.tolist()}))
        rows = []
        # the first ones as they were chosen, which have each class in its share
        first = self._shown.first(self.queries).places.tolist()
        for place in first:
            for row in (self._places == place).nonzero()[:, 0].tolist():
                kind = self.kinds[int(self._kinds[row])]
                shown = [(self._picture(row), f"seen as {names[int(self._after[row])]}")]
                for near, apart in zip(self._nearest[row].tolist(), self._apart[row].tolist(), strict=True):
                    shown.append((self._picture(near), f"{names[int(self._labels[near])]}, {apart:.3g}"))
                rows.append((f"image {place}, {kind}\n{names[int(self._labels[row])]}", shown))
        columns = ["image", *(f"neighbour {rank}" for rank in range(1, self.neighbors + 1))]
        title = f"Nearest clean images in feature space, class and distance: {task_name(pl_module)}"
        log_figure(trainer, "feature_neighbors", neighbors_figure(rows, columns, title))

    def _picture(self, row: int) -> Tensor:
        return self._pictures[row].float() / 255


def _thumbnails(images: Tensor) -> Tensor:
    """8-bit images on the CPU of at most 64 pixels, so that those of many images fit into memory."""
    images = images.detach().float()
    longest = max(images.shape[2:])
    if longest > THUMBNAIL:
        sizes = [max(1, round(side * THUMBNAIL / longest)) for side in images.shape[2:]]
        images = F.interpolate(images, sizes, mode="area")
    return (images * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _numbers(column: Tensor) -> Sequence[Any]:
    return [float(f"{each:.6g}") if isinstance(each, float) else each for each in column.tolist()]
