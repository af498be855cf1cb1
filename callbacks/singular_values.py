"""Are the layers tight frames? Singular values of every layer over the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lit_adv.files import write_rows
from lit_adv.models import ParsevalConv2d, ParsevalLinear
from lit_adv.plots import singular_value_figure

from .figures import log_figure

COLUMNS = ("epoch", "layer", "rows", "columns", "constrained", "smallest", "median", "largest", "deviation", "row_sum")


class SingularValues(pl.Callback):
    """Follows the singular values of all convolutions and linear layers that are trained, as in Cisse et al. 2017.

    Values are those of the stored weight, flattened to ``(O, the rest)``: of a Parseval layer the frame, without the
    factor of its kernel's size. Writes ``singular_values.csv`` into the run folder, a row an epoch and layer, where
    ``deviation`` is max |s - 1| and ``row_sum`` the largest sum of a row's absolute values, its norm in the infinity
    norm; and draws histograms over the epochs, ``figures/singular_values.png``. Logs ``singular_values/deviation``,
    over the layers that are to be tight frames, all layers where there are none, and ``singular_values/largest``. A
    resumed run goes on with the history of its checkpoint.

    Args:
        every_n_epochs: Look after so many epochs, and before the first.
        panels: Most layers in the figure, evenly from the first to the last.
        bins: Of the histograms; an odd multiple of ``upper / 2`` has 1 in the middle of a bin.
        upper: Where their last bin ends, which holds all that is larger.

    Raises:
        ValueError: An argument is out of range; in training, there is no such layer.
    """

    def __init__(self, every_n_epochs: int = 1, panels: int = 12, bins: int = 82, upper: float = 4.0) -> None:
        for field, value in (("every_n_epochs", every_n_epochs), ("panels", panels), ("bins", bins)):
            if value < 1:
                raise ValueError(f"SingularValues: {field} must be at least 1, got {value}")
        if not 1 < upper < float("inf"):
            raise ValueError(f"SingularValues: upper must be finite and above 1, got {upper}")
        self.every_n_epochs, self.panels, self.bins, self.upper = every_n_epochs, panels, bins, float(upper)
        self.rows: list[dict[str, Any]] = []
        self.counts: dict[str, dict[int, list[int]]] = {}

    @property
    def epochs(self) -> list[int]:
        """After how many epochs it has looked."""
        return sorted({row["epoch"] for row in self.rows})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.epochs:
            self._look(pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._look(pl_module, epoch)
        for name, value in self.summary().items():
            pl_module.log(f"singular_values/{name}", value, rank_zero_only=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        write_rows(Path(trainer.default_root_dir) / "singular_values.csv", COLUMNS, self.rows)
        log_figure(trainer, "singular_values", self.figure())

    def summary(self) -> dict[str, float]:
        """The numbers that are logged, as of the last look."""
        last = [row for row in self.rows if row["epoch"] == self.epochs[-1]]
        frames = [row for row in last if row["constrained"] == "l2"] or last
        return {
            "deviation": max(row["deviation"] for row in frames),
            "largest": max(row["largest"] for row in last),
        }

    def figure(self) -> Any:
        """Histograms over the epochs."""
        names = list(self.counts)
        kept = np.unique(np.linspace(0, len(names) - 1, min(self.panels, len(names))).round().astype(int))
        sizes = {row["layer"]: f"{row['rows']} × {row['columns']}" for row in self.rows}
        counts = {f"{names[place]} ({sizes[names[place]]})": list(self.counts[names[place]].values()) for place in kept}
        edges = np.linspace(0, self.upper, self.bins + 1)
        return singular_value_figure(self.epochs, edges, counts, "Singular values of the weights")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.counts = list(state_dict["rows"]), dict(state_dict["counts"])

    def _look(self, pl_module: pl.LightningModule, epoch: int) -> None:
        layers = {
            name.removeprefix("model.").removeprefix("network."): layer
            for name, layer in pl_module.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.requires_grad
        }
        if not layers:
            raise ValueError(
                f"SingularValues: {type(pl_module).__name__} must have convolutions or linear layers that are trained,"
                " got none"
            )
        # what a resumed run repeats is replaced
        self.rows = [row for row in self.rows if row["epoch"] != epoch]
        for name, layer in layers.items():
            matrix = layer.weight.detach().double().cpu().flatten(1)
            values = singular_values(matrix)
            parseval = isinstance(layer, ParsevalConv2d | ParsevalLinear)
            self.rows.append(
                {
                    "epoch": epoch,
                    "layer": name,
                    "rows": matrix.shape[0],
                    "columns": matrix.shape[1],
                    "constrained": layer.constraint if parseval else None,
                    "smallest": float(values.min()),
                    "median": float(values.median()),
                    "largest": float(values.max()),
                    "deviation": float((values - 1).abs().max()),
                    "row_sum": float(matrix.abs().sum(1).max()),
                }
            )
            places = (values / self.upper * self.bins).long().clamp(0, self.bins - 1)
            self.counts.setdefault(name, {})[epoch] = torch.bincount(places, minlength=self.bins).tolist()


def singular_values(matrix: Tensor) -> Tensor:
    """Of a float64 matrix ``(m, n)``, ``(min(m, n),)`` ascending, through the Gram matrix of its shorter side."""
    shorter = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(shorter @ shorter.T).clamp(min=0).sqrt()
