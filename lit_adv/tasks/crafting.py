"""The task of runs that only craft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from lit_adv.tasks.demands import check_trainer


class Crafting(pl.LightningModule):
    """Trains nothing and has no weights: hands on the adversarial batches that the data module crafts.

    With `lightning predict` and `AdversarialWriter`, which writes them.
    """

    # `lightning` asks no checkpoint of it
    needs_weights = False

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        """None; refuses a trainer that the task cannot work with, see `check_trainer`."""
        check_trainer(self)
        return []

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The batch itself."""
        return batch

    def setup(self, stage: str) -> None:
        """Refuses to be trained.

        Raises:
            ValueError: The stage is another than prediction.
        """
        if stage != "predict":
            raise ValueError(f"Crafting: there is nothing to {TrainerFn(stage).value} (use `lightning predict`)")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Never reached; Lightning asks for one before it says what is wrong."""

    test_step = validation_step = training_step

    def configure_optimizers(self) -> None:
        """None."""
        return
