"""Whether images of a class can be joined by paths that stay inside the class, at the end of a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.attacks import Attack, DeepFool
from lit_adv.attacks.attack import predictions
from lit_adv.data.sampling import rank_and_world
from lit_adv.explain import class_paths, points_on_path
from lit_adv.explain.class_paths import check_paths
from lit_adv.files import write_rows
from lit_adv.plots import Panel, panel_grid
from lit_adv.plots.panels import as_array

from .figures import log_figure
from .loggers import log_numbers, log_table
from .shown_images import class_names, gathered
from .visualization import Visualization, task_name

COLUMNS = ("class", "first", "second", "straight", "connected", "corners", "length")


class ClassConnectedness(Visualization):
    """Looks for paths inside a class between pairs of its test images, see `class_paths`.

    Pairs are images of one true class that are rightly classified, next to each other in the order shown.
    ``class_paths.csv`` has a row a pair; ``length`` is the path's over the straight one's. ``figures/class_paths.png``
    shows images along some paths, first those that are bent. Logged are the shares of the pairs
    ``geometry/straight_paths`` and ``geometry/connected``. Several processes find what one finds.

    Args:
        attack: Targeted, to pull points into the class; None takes `DeepFool`.
        images: Most test images.
        depth: How often a piece of a path may be halved.
        samples: Points looked at on a straight path.
        shown: Pairs in the figure.
        frames: Images along a path in the figure.
        seed: Of the attack.
        batch_size: Pairs at once.

    Raises:
        ValueError: An argument is out of range; in the test, no two images are of one class.
    """

    def __init__(
        self,
        attack: Attack | None = None,
        images: int = 100,
        depth: int = 6,
        samples: int = 64,
        shown: int = 4,
        frames: int = 9,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        super().__init__(images)
        check_paths(self._name, depth, samples, batch_size)
        for field, value, least in (("images", images, 2), ("shown", shown, 1), ("frames", frames, 2)):
            if value < least:
                raise ValueError(f"ClassConnectedness: {field} must be at least {least}, got {value}")
        self.attack = DeepFool() if attack is None else attack
        if not isinstance(self.attack, Attack):
            raise ValueError(f"ClassConnectedness: attack must be one of lit_adv.attacks, got {attack!r}")
        self.depth, self.samples, self.shown, self.frames = depth, samples, shown, frames
        self.seed, self.batch_size = seed, batch_size
        self.rows: list[dict[str, Any]] = []

    def _try(self, trainer: pl.Trainer, pl_module: pl.LightningModule, image: Tensor) -> None:
        self.rows = []
        labels = self._shown.first(self.images).labels
        if not _pairs(labels, torch.ones_like(labels, dtype=torch.bool)):
            raise ValueError(
                f"ClassConnectedness: images must hold two of one class, got {len(labels)} of several (more images)"
            )
        before = predictions(pl_module, image)
        self.attack(pl_module, image, before, targets=before, seed=self.seed)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batch = self._shown.first(self.images)
        device = pl_module.device
        parts = batch.images.split(self.batch_size)
        before = torch.cat([predictions(pl_module, part.to(device)) for part in parts])
        labels = batch.labels.to(device)
        pairs = _pairs(batch.labels, (before == labels).cpu())
        if not pairs:
            raise ValueError(
                f"ClassConnectedness: two of the {len(labels)} images must be of one class and rightly classified, got"
                " no such pair (more images, or a trained network)"
            )
        rank, ranks = rank_and_world()
        mine = []
        # so many pairs at once however many processes there are, since what is at once may decide about a rounding
        for number, part in enumerate(torch.tensor(pairs).split(self.batch_size)):
            if number % ranks != rank:
                continue
            first, second = part.T
            found = class_paths(
                pl_module,
                batch.images[first].to(device),
                batch.images[second].to(device),
                labels[first],
                attack=self.attack,
                depth=self.depth,
                samples=self.samples,
                seed=self.seed,
            )
            numbers = zip(found.straight.tolist(), found.connected.tolist(), found.lengths.tolist(), strict=True)
            for pair, path, (straight, connected, length) in zip(part.tolist(), found.paths, numbers, strict=True):
                place = {"first": int(batch.places[pair[0]]), "second": int(batch.places[pair[1]])}
                row = {"class": int(batch.labels[pair[0]]), **place, "straight": straight, "connected": connected}
                row |= {"corners": len(path) - 2, "length": float(f"{length:.6g}")}
                mine.append((row, path.cpu()))
        found_pairs = sorted(
            (each for part in gathered(mine) for each in part), key=lambda each: (each[0]["class"], each[0]["first"])
        )
        self.rows = [row for row, _ in found_pairs]
        self._paths = [path for _, path in found_pairs]
        shares = {name: sum(row[name] for row in self.rows) / len(self.rows) for name in ("straight", "connected")}
        log_numbers(trainer, {"geometry/straight_paths": shares["straight"], "geometry/connected": shares["connected"]})

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        write_rows(Path(trainer.default_root_dir) / "class_paths.csv", COLUMNS, self.rows)
        log_table(trainer, "class_paths", COLUMNS, self.rows)
        # those that say most: bent, then not joined, then straight
        order = sorted(
            range(len(self.rows)), key=lambda place: (self.rows[place]["straight"], not self.rows[place]["connected"])
        )
        rows = []
        for place in order[: self.shown]:
            row, path = self.rows[place], self._paths[place]
            rows.append(self._line(trainer, pl_module, row, path[[0, -1]], "straight"))
            if not row["straight"]:
                corners = f"{row['corners']} corner{'s' if row['corners'] > 1 else ''}"
                how = f"bent, {corners}" if row["connected"] else "no path found"
                rows.append(self._line(trainer, pl_module, row, path, how))
        straight, connected = (sum(row[name] for row in self.rows) for name in ("straight", "connected"))
        shares = f"{straight} of {len(self.rows)} pairs joined by straight ones, {connected} by any"
        title = f"Paths inside a class, {task_name(pl_module)}: {shares}"
        log_figure(trainer, "class_paths", panel_grid(rows, (), title))

    def _line(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, row: dict[str, Any], path: Tensor, how: str
    ) -> tuple[str, Sequence[Panel]]:
        points = points_on_path(path, self.frames)
        after = predictions(pl_module, points.to(pl_module.device)).tolist()
        names = class_names(trainer, sorted({row["class"], *after}))
        words = ["" if each == row["class"] else f"seen as {names[each]}" for each in after]
        panels = [Panel(as_array(point), word) for point, word in zip(points, words, strict=True)]
        return f"{names[row['class']]}: {row['first']} to {row['second']}\n{how}", panels


def _pairs(labels: Tensor, usable: Tensor) -> list[tuple[int, int]]:
    """Places of the usable images of each class, two by two."""
    found = []
    for label in labels.unique().tolist():
        places = ((labels == label) & usable).nonzero()[:, 0].tolist()
        found += [(places[each], places[each + 1]) for each in range(0, len(places) - 1, 2)]
    return found
