"""Learning curves of a run beside those of others."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lit_adv.files import write_rows
from lit_adv.plots import learning_figure

from .figures import log_figure

Curve = tuple[list[int], list[float]]


class LearningCurves(pl.Callback):
    """Draws what was logged in each epoch of this run, and of others (as figure 4 of Cisse et al. 2017).

    The figure is ``figures/learning_curves.png``, its numbers are in ``learning_curves.csv``, one row a run,
    quantity and epoch. A resumed run goes on with the history of its checkpoint.

    Args:
        runs: By name, run folders, or the folder of several, of which the last by name counts; their `metrics.csv` is
            read before training starts.
        name: Of this run.
        metrics: What is drawn, a panel each.

    Raises:
        ValueError: No metric, a name twice, or a folder without any of the metrics.
        FileNotFoundError: A folder without `metrics.csv`.
    """

    def __init__(
        self,
        runs: dict[str, str] | None = None,
        name: str = "this run",
        metrics: Sequence[str] = ("train/loss", "val/loss", "val/acc"),
    ) -> None:
        self.runs, self.name, self.metrics = dict(runs or {}), name, list(metrics)
        if not self.metrics:
            raise ValueError("LearningCurves: metrics must be at least one, got none")
        if name in self.runs:
            raise ValueError(f"LearningCurves: name must not be one of runs, got {name!r}")
        self.others = {name: read_curves(folder, self.metrics) for name, folder in self.runs.items()}
        self.own: dict[str, dict[int, float]] = {metric: {} for metric in self.metrics}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for metric in self.metrics:
            if metric in trainer.callback_metrics:
                self.own[metric][trainer.current_epoch + 1] = float(trainer.callback_metrics[metric])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        curves = self.curves()
        rows = [
            {"run": run, "metric": metric, "epoch": epoch, "value": value}
            for metric, lines in curves.items()
            for run, (epochs, values) in lines.items()
            for epoch, value in zip(epochs, values, strict=True)
        ]
        write_rows(Path(trainer.default_root_dir) / "learning_curves.csv", ("run", "metric", "epoch", "value"), rows)
        if curves:
            log_figure(trainer, "learning_curves", learning_figure(curves, "Learning curves"))

    def curves(self) -> dict[str, dict[str, Curve]]:
        """By metric and run, epochs (1 is after the first) and values; metrics that nobody has are left out."""
        own = {metric: (list(found), list(found.values())) for metric, found in self.own.items()}
        found = {}
        for metric in self.metrics:
            lines = {name: curves[metric] for name, curves in {self.name: own, **self.others}.items()}
            lines = {name: line for name, line in lines.items() if line[0]}
            if lines:
                found[metric] = lines
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"own": self.own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.own |= {metric: dict(found) for metric, found in state_dict["own"].items() if metric in self.own}


def read_curves(folder: str | Path, metrics: Sequence[str]) -> dict[str, Curve]:
    """The last value of each metric in each epoch, out of a run's `metrics.csv`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has none of the metrics.
    """
    path = Path(folder) / "metrics.csv"
    if not path.is_file():
        inside = sorted(Path(folder).glob("*/metrics.csv"))
        if not inside:
            raise FileNotFoundError(
                f"LearningCurves: there is no metrics.csv in '{folder}' (train that network first, or correct it)"
            )
        path = inside[-1]
    found: dict[str, dict[int, float]] = {metric: {} for metric in metrics}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for metric in metrics:
                if row.get(metric) and row.get("epoch"):
                    found[metric][int(float(row["epoch"])) + 1] = float(row[metric])
    if not any(found.values()):
        raise ValueError(f"LearningCurves: '{path}' must hold one of {', '.join(metrics)}, got none")
    return {metric: (list(values), list(values.values())) for metric, values in found.items()}
