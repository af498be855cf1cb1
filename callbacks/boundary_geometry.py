"""How far decision boundaries are, at what angle one meets them, and how they bend, at the end of a test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.attacks import Attack, DeepFool
from lit_adv.explain import Boundary, Curvature, boundary_curvature, boundary_distance
from lit_adv.explain.boundary import CONVERGED, Precision, check_boundary
from lit_adv.explain.boundary_curvature import check_curvature
from lit_adv.files import write_rows
from lit_adv.plots import boundary_geometry_figure

from .figures import log_figure
from .loggers import log_numbers, log_table
from .shown_images import gathered
from .visualization import Visualization, task_name

COLUMNS = (
    "image",
    "label",
    "prediction",
    "rival",
    "attack_distance",
    "distance",
    "ratio",
    "cosine",
    "angle_degrees",
    "converged",
    "tie",
    "rounds",
    "step",
    "curvature_random_low",
    "curvature_random_median",
    "curvature_random_high",
    "curvature_top",
    "curvature_top_quotient",
    "settled",
)


class BoundaryGeometry(Visualization):
    """Measures the nearest decision boundary of some test images: distance, angle and curvature.

    See `boundary_distance` and `boundary_curvature`; the class left is the one predicted. ``boundary_geometry.csv`` has
    a row an image; what was not found is empty. ``figures/boundary_geometry.png`` shows the distribution of
    ``||r|| / ||x||`` and of the cosines, and the curvatures times the distance. Logged are the means
    ``geometry/attack_distance``, ``geometry/distance``, ``geometry/rho`` (of ``||r|| / ||x||``) and
    ``geometry/cosine``, the shares ``geometry/found`` and, of those, ``geometry/converged`` (cosine at least 0.9),
    and the medians of curvature times distance ``geometry/curvature_random`` and ``geometry/curvature_top``. Several
    processes find what one finds.

    Args:
        attack: Any that looks for a small L2 perturbation; None takes `DeepFool`.
        images: Most test images.
        rounds: Most turns towards the normal.
        tolerance: Of the tie at the boundary, in logits.
        directions: Random ones in which the curvature is measured.
        reach: Step of the curvature, as a share of each image's distance.
        iterations: Of the search for the direction in which the boundary bends most.
        precision: ``float64``, or ``model`` for the model's own, for devices without float64.
        seed: Of the attack and of the directions.
        batch_size: Images at once.

    Raises:
        ValueError: An argument is out of range; in the test, the network does not fit.
    """

    shows_images = False

    def __init__(
        self,
        attack: Attack | None = None,
        images: int = 50,
        rounds: int = 10,
        tolerance: float = 1e-6,
        directions: int = 10,
        reach: float = 0.25,
        iterations: int = 20,
        precision: Precision = "float64",
        seed: int = 0,
        batch_size: int = 25,
    ) -> None:
        super().__init__(images)
        self.attack = DeepFool() if attack is None else attack
        if batch_size < 1:
            raise ValueError(f"BoundaryGeometry: batch_size must be at least 1, got {batch_size}")
        check_boundary(self._name, self.attack, rounds, tolerance, precision, 1)
        check_curvature(self._name, directions, reach, iterations, 1)
        self.rounds, self.tolerance = rounds, tolerance
        self.directions, self.reach, self.iterations = directions, reach, iterations
        self.precision: Precision = precision
        self.seed, self.batch_size = seed, batch_size
        self.rows: list[dict[str, Any]] = []

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        self.rows = []
        boundary_distance(pl_module, image, attack=self.attack, rounds=1, precision=self.precision, seed=self.seed)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        mine = []
        for places, images, labels in self._shown.mine(self.batch_size):
            found = boundary_distance(
                pl_module,
                images.to(pl_module.device),
                attack=self.attack,
                rounds=self.rounds,
                tolerance=self.tolerance,
                precision=self.precision,
                seed=self.seed,
                chunk_size=self.batch_size,
            )
            bent = boundary_curvature(
                pl_module,
                found,
                directions=self.directions,
                reach=self.reach,
                iterations=self.iterations,
                precision=self.precision,
                seed=self.seed,
                chunk_size=self.batch_size,
            )
            mine.append((places, labels.cpu(), *_numbers(found, bent)))
        parts = [part for each in gathered(mine) for part in each]
        joined = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = joined[0].argsort()
        places, labels, classes, rivals, rounds, numbers, random = (part[order] for part in joined)
        self._numbers, self._random = numbers, random
        by_name = dict(zip(_MEASURED, numbers.T, strict=True))
        found_rows = ~by_name["distance"].isnan()
        scaled = random * by_name["distance"][:, None]
        measured = {
            "attack_distance": by_name["attack_distance"].nanmean(),
            "distance": by_name["distance"].nanmean(),
            "rho": by_name["ratio"].nanmean(),
            "cosine": by_name["cosine"].nanmean(),
            "found": found_rows.double().mean(),
            "converged": (by_name["cosine"][found_rows] >= CONVERGED).double().mean(),
            "curvature_random": scaled.flatten().nanmedian(),
            "curvature_top": (by_name["curvature_top"] * by_name["distance"]).nanmedian(),
        }
        log_numbers(trainer, {f"geometry/{name}": _value(number) for name, number in measured.items()})
        self.rows = []
        for row in range(len(places)):
            values = {name: _short(column[row]) for name, column in by_name.items()}
            low, middle, high = _spread(random[row])
            cosine = values["cosine"]
            self.rows.append(
                {
                    "image": int(places[row]),
                    "label": int(labels[row]),
                    "prediction": int(classes[row]),
                    "rival": int(rivals[row]) if found_rows[row] else None,
                    **values,
                    "angle_degrees": _short(by_name["angle"][row].rad2deg()),
                    "converged": None if cosine is None else cosine >= CONVERGED,
                    "rounds": int(rounds[row]),
                    "curvature_random_low": low,
                    "curvature_random_median": middle,
                    "curvature_random_high": high,
                }
            )
            del self.rows[-1]["angle"]

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        write_rows(Path(trainer.default_root_dir) / "boundary_geometry.csv", COLUMNS, self.rows)
        log_table(trainer, "boundary_geometry", COLUMNS, self.rows)
        by_name = dict(zip(_MEASURED, self._numbers.T, strict=True))
        found = ~by_name["distance"].isnan()
        if not bool(found.any()):
            return
        by_name = {name: column[found] for name, column in by_name.items()}
        distances = by_name["distance"]
        attack = type(self.attack).__name__
        count = f"{int(found.sum())} of {len(found)} test images"
        title = f"Nearest decision boundary, {task_name(pl_module)}: {count}, {attack}"
        figure = boundary_geometry_figure(
            by_name["ratio"] / distances * by_name["attack_distance"],
            by_name["ratio"],
            by_name["cosine"],
            self._random[found] * distances[:, None],
            by_name["curvature_top"] * distances,
            CONVERGED,
            title,
        )
        log_figure(trainer, "boundary_geometry", figure)


_MEASURED = (
    "attack_distance",
    "distance",
    "ratio",
    "cosine",
    "angle",
    "tie",
    "step",
    "curvature_top",
    "curvature_top_quotient",
    "settled",
)


def _numbers(found: Boundary, bent: Curvature) -> tuple[Tensor, ...]:
    columns = (
        found.attack_distances,
        found.distances,
        found.ratios,
        found.cosines,
        found.angles,
        found.ties,
        bent.steps,
        bent.top,
        bent.top_quotient,
        bent.settled,
    )
    numbers = torch.stack([column.double() for column in columns], 1).cpu()
    return found.classes.cpu(), found.rivals.cpu(), found.rounds.cpu(), numbers, bent.random.double().cpu()


def _spread(values: Tensor) -> tuple[float | None, float | None, float | None]:
    values = values[~values.isnan()]
    if not len(values):
        return None, None, None
    low, middle, high = (_short(each) for each in (values.min(), values.median(), values.max()))
    return low, middle, high


def _short(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else float(f"{number:.6g}")


def _value(number: Tensor) -> float | None:
    return None if bool(number.isnan()) else float(number)
