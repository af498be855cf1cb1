"""Where a figure of a run goes."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from lit_adv.files import replacing


def log_figure(trainer: pl.Trainer, name: str, figure: Figure) -> Path:
    """Save a figure as PNG in the run folder and show it in the loggers that take images.

    Weights & Biases and TensorBoard get it under `figures/<name>` at the current step; other loggers, the CSV one among
    them, are left alone. Holds no collective operation: call it on the main process alone.

    Args:
        trainer: The trainer of the run; the file goes to `<default_root_dir>/figures/<name>.png`.
        name: File name without ending.
        figure: The figure to save.

    Returns:
        The path of the PNG.
    """
    path = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"figures/{name}", [str(path)], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(f"figures/{name}", figure, global_step=trainer.global_step)
    return path
