"""Which classes universal perturbations lead to, and which ones fill the space around the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.attacks import Attack, UniversalPerturbation, label_histogram
from lit_adv.attacks.attack import predictions
from lit_adv.explain import sphere_labels
from lit_adv.files import write_rows
from lit_adv.plots import dominant_labels_figure

from .figures import log_figure
from .loggers import log_numbers, log_table
from .shown_images import class_names, gathered
from .visualization import Visualization, task_name

COLUMNS = ("class", "clean", "fooled", "sphere")


class DominantLabels(Visualization):
    """Counts what fooled images are taken for, and what random points as far from 0 as images are taken for.

    Moosavi-Dezfooli et al. 2017, arXiv:1610.08401, section 3: a universal perturbation sends most images to a few
    classes. ``dominant_labels.csv`` has a row a class: how many clean images, images fooled by the attack and
    points uniform on the sphere with the images' mean norm are taken for it. ``figures/dominant_labels.png`` shows them
    as shares. Logged are ``geometry/universal_fooling``, the share of the images that the attack fools, and the share
    of the most frequent class ``geometry/dominant_share/<clean, fooled or sphere>``. The main process counts.

    Args:
        attack: A universal perturbation, or any attack. A `UniversalPerturbation` without its perturbation is fitted to
            these images.
        images: Most test images.
        points: On the sphere.
        seed: Of the attack and of the points.
        batch_size: Images at once.

    Raises:
        ValueError: An argument is out of range; in the test, the attack does not fit the images.
    """

    shows_images = False

    def __init__(
        self, attack: Attack, images: int = 300, points: int = 1000, seed: int = 0, batch_size: int = 100
    ) -> None:
        super().__init__(images)
        for field, value in (("points", points), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"DominantLabels: {field} must be at least 1, got {value}")
        if not isinstance(attack, Attack):
            raise ValueError(f"DominantLabels: attack must be one of lit_adv.attacks, got {attack!r}")
        self.attack, self.points, self.seed, self.batch_size = attack, points, seed, batch_size
        self.rows: list[dict[str, Any]] = []

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        self.rows = []
        before = predictions(pl_module, image)
        if not self._unfitted:
            self.attack(pl_module, image, before, seed=self.seed)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found: list[Tensor] = gathered(self._count(pl_module) if trainer.is_global_zero else None)[0]
        clean, fooled = found[:2]
        self._images = int(clean.sum())
        numbers: dict[str, float | None] = {"geometry/universal_fooling": float(fooled.sum()) / self._images}
        for name, counts in zip(COLUMNS[1:], found, strict=True):
            total = int(counts.sum())
            numbers[f"geometry/dominant_share/{name}"] = float(counts.max()) / total if total else None
        log_numbers(trainer, numbers)
        self.rows = [
            dict(zip(COLUMNS, (number, *counts), strict=True))
            for number, counts in enumerate(torch.stack(found, 1).tolist())
        ]

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        write_rows(Path(trainer.default_root_dir) / "dominant_labels.csv", COLUMNS, self.rows)
        log_table(trainer, "dominant_labels", COLUMNS, self.rows)
        clean, fooled, sphere = (torch.tensor([row[name] for row in self.rows]) for name in COLUMNS[1:])
        kind = (
            "universal perturbation" if isinstance(self.attack, UniversalPerturbation) else type(self.attack).__name__
        )
        counts = {
            f"images fooled by the {kind}": fooled,
            f"random points of norm {self._radius:.3g}": sphere,
        }
        names = class_names(trainer, range(len(clean)))
        title = f"Dominant labels, {task_name(pl_module)}: {self._images} test images"
        log_figure(trainer, "dominant_labels", dominant_labels_figure(counts, clean, names, title))

    def _count(self, pl_module: pl.LightningModule) -> list[Tensor]:
        batch = self._batch(pl_module)
        parts = batch.images.split(self.batch_size)
        before = torch.cat([predictions(pl_module, part) for part in parts])
        attack = self.attack
        if isinstance(attack, UniversalPerturbation) and self._unfitted:
            attack = attack.fit(pl_module, parts, seed=self.seed)
        fooled = label_histogram(attack, pl_module, parts, seed=self.seed)
        self._radius = float(batch.images.double().flatten(1).norm(dim=1).mean())
        channels, height, width = batch.images.shape[1:]
        sphere = sphere_labels(
            pl_module,
            (channels, height, width),
            self._radius,
            count=self.points,
            seed=self.seed,
            chunk_size=self.batch_size,
        )
        return [before.bincount(minlength=len(fooled)).cpu(), fooled, sphere]

    @property
    def _unfitted(self) -> bool:
        return isinstance(self.attack, UniversalPerturbation) and self.attack.perturbation is None
