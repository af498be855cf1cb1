"""Where the numbers and tables of a run go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger


def log_numbers(trainer: pl.Trainer, numbers: Mapping[str, float | None]) -> None:
    """Hand numbers that are of all processes already to every logger, at the current step; those that are None not."""
    known = {name: value for name, value in numbers.items() if value is not None}
    for logger in trainer.loggers:
        logger.log_metrics(known, step=trainer.global_step)


def log_table(trainer: pl.Trainer, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Show a table in Weights & Biases under `results/<name>`; other loggers take none.

    Holds no collective operation: call it on the main process alone.

    Args:
        trainer: The trainer of the run.
        name: Of the table.
        columns: Its columns.
        rows: By column; one that is missing is empty.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            data = [[row.get(column) for column in columns] for row in rows]
            logger.log_table(f"results/{name}", list(columns), data, step=trainer.global_step)
