"""Decision regions around some images, in two-dimensional sections, at the end of a test."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.attacks import Attack, DeepFool
from lit_adv.explain import adversarial_plane, bend_of_boundary, boundary_distance, decision_section, random_plane
from lit_adv.explain.boundary import Precision, check_boundary
from lit_adv.explain.decision_sections import check_section
from lit_adv.plots import Section, decision_regions_figure

from .figures import log_figure
from .loggers import log_numbers
from .shown_images import class_names, gathered
from .visualization import Visualization, task_name

COLUMNS = ("adversarial plane", "random plane through b", "random plane through the image")


class DecisionRegions(Visualization):
    """Draws sections of the decision regions around some test images, ``figures/decision_regions.png``.

    Three of each image, whose axes are in multiples of its distance ``||r||`` to the boundary: around the nearest
    boundary point b, the cross, in the plane of r and of a random direction, where the image, the dot, is at (-1, 0);
    in a random plane through b; and in the same random plane through the image. How far the border of the class near b
    is from a straight line is written below, in cells of the grid; the means over the images are logged as
    ``geometry/bend/adversarial`` and ``geometry/bend/random``. Several processes draw what one draws.

    Args:
        attack: Any that looks for a small L2 perturbation; None takes `DeepFool`.
        images: How many test images; those without a boundary point are left out.
        cells: Odd number of points along a section's side.
        zoom: Half of a section's side in multiples of ``||r||``.
        rounds: As in `boundary_distance`.
        precision: Of the boundary point; sections have the model's own.
        seed: Of the attack and the planes.
        chunk_size: Most points of a section in a batch.

    Raises:
        ValueError: An argument is out of range; in the test, no boundary point is found.
    """

    def __init__(
        self,
        attack: Attack | None = None,
        images: int = 3,
        cells: int = 61,
        zoom: float = 2.0,
        rounds: int = 10,
        precision: Precision = "float64",
        seed: int = 0,
        chunk_size: int = 256,
    ) -> None:
        super().__init__(images)
        self.attack = DeepFool() if attack is None else attack
        check_boundary(self._name, self.attack, rounds, 1e-6, precision, chunk_size)
        check_section(self._name, cells, chunk_size)
        if not 1 < zoom < math.inf:
            raise ValueError(
                f"DecisionRegions: zoom must be above 1, so that the image is in the section, got {zoom:g}"
            )
        self.cells, self.zoom, self.rounds = cells, zoom, rounds
        self.precision: Precision = precision
        self.seed, self.chunk_size = seed, chunk_size

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        boundary_distance(pl_module, image, attack=self.attack, rounds=1, precision=self.precision, seed=self.seed)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        mine = []
        for places, images, labels in self._shown.mine(1):
            images = images.to(pl_module.device)
            found = boundary_distance(
                pl_module,
                images,
                attack=self.attack,
                rounds=self.rounds,
                precision=self.precision,
                seed=self.seed,
            )
            if not bool(found.found):
                continue
            random = random_plane(found.images, seed=self.seed)
            planes = (
                (found.points, adversarial_plane(found, seed=self.seed)),
                (found.points, random),
                (found.images, random),
            )
            radii = self.zoom * found.distances
            sections = [
                decision_section(pl_module, center, plane, radii, cells=self.cells, chunk_size=self.chunk_size).cpu()
                for center, plane in planes
            ]
            bends = [bend_of_boundary(section, found.classes) for section in sections[:2]]
            numbers = torch.cat([found.distances.double().cpu(), *bends])
            mine.append((int(places), int(labels), int(found.classes), images[0].cpu(), sections, numbers))
        self._found = sorted((each for part in gathered(mine) for each in part), key=lambda each: each[0])
        if not self._found:
            raise ValueError(
                f"DecisionRegions: attack must find a boundary point of at least one of {self.images} images, got none"
                f" with {self.attack} (more steps, or more images)"
            )
        means = torch.stack([each[5][1:] for each in self._found]).nanmean(0)
        named = zip(("adversarial", "random"), means.tolist(), strict=True)
        log_numbers(trainer, {f"geometry/bend/{name}": None if math.isnan(bend) else bend for name, bend in named})

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seen = sorted({int(each) for row in self._found for part in row[4] for each in part.unique()})
        names = class_names(trainer, sorted({*seen, *(row[1] for row in self._found)}))
        rows = [self._row(names, *row) for row in self._found]
        title = f"Decision regions in sections around the nearest boundary point, {task_name(pl_module)}"
        shown = {each: names[each] for each in seen}
        log_figure(trainer, "decision_regions", decision_regions_figure(rows, COLUMNS, shown, title))

    def _row(
        self,
        names: dict[int, str],
        place: int,
        label: int,
        left: int,
        image: Tensor,
        sections: list[Tensor],
        numbers: Tensor,
    ) -> tuple[str, Tensor, list[Section]]:
        distance, *bends = numbers.tolist()
        marks: tuple[dict[str, Any], ...] = (
            {"image": (-1.0, 0.0), "point": (0.0, 0.0)},
            {"point": (0.0, 0.0)},
            {"image": (0.0, 0.0)},
        )
        captions = [
            "no border near b" if math.isnan(bend) else f"border within {bend:.1f} cells of a line" for bend in bends
        ]
        captions.append(f"{float((sections[2] == left).double().mean()):.0%} seen as {names[left]}")
        drawn = [
            Section(part[0], self.zoom, caption=caption, **mark)
            for part, caption, mark in zip(sections, captions, marks, strict=True)
        ]
        return f"image {place}\n{names[label]}\n‖r‖ = {distance:.3g}", image, drawn
