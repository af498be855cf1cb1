"""The task of runs that only craft."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class Crafting(pl.LightningModule):
    """Trains nothing and has no weights: hands on the adversarial batches that the data module crafts.

    With `lightning predict` and `AdversarialWriter`, which writes them.
    """

    # `lightning` asks no checkpoint of it
    needs_weights = False

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The batch itself."""
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing can be trained.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Crafting: there is nothing to train (use `lightning predict`)")

    def configure_optimizers(self) -> None:
        """None."""
        return
