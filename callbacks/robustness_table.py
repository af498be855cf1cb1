"""A table of accuracies under attack at the end of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import rich

from lit_adv.attacks import Attack, Region
from lit_adv.evaluation import COLUMNS, Evaluation, attack_batch, check_attacks
from lit_adv.metrics import RobustAccuracy

from .loggers import log_numbers, log_table
from .repeats import fresh_pair
from .tables import print_path


class RobustnessTable(pl.Callback):
    """Attacks every test image with every attack and tabulates clean, robust and worst-case accuracy.

    For tasks whose ``forward`` maps images to logits, on batches (images, labels). Only images that are classified
    rightly are attacked. Logs ``robust/clean``, ``robust/worst_case`` and ``robust/<attack>`` and writes
    ``robustness.csv`` and ``robustness.json`` into the run folder, with mean norms, SSIM, passes and seconds; Weights &
    Biases gets the table as well. Several processes give the numbers of one.

    Args:
        attacks: By any names.
        regions: For some of these names, the only region that the attack may change.
        seed: Of the attacks; an image gets the same random numbers in any batch and on any rank.
        limit_batches: Attack only the first test batches of each process; None attacks all.

    Raises:
        ValueError: No attacks, a region for none of them, a limit below 1; in the test, batches of another kind.
    """

    def __init__(
        self,
        attacks: dict[str, Attack],
        regions: dict[str, Region] | None = None,
        seed: int = 0,
        limit_batches: int | None = None,
    ) -> None:
        check_attacks("RobustnessTable", attacks, regions)
        if limit_batches is not None and limit_batches < 1:
            raise ValueError(f"RobustnessTable: limit_batches must be at least 1 or null, got {limit_batches}")
        self.attacks = dict(attacks)
        self.regions = dict(regions or {})
        self.seed = seed
        self.limit_batches = limit_batches
        self.evaluation: Evaluation | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.evaluation = None
        self._metric = RobustAccuracy(list(self.attacks)).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.limit_batches is not None and batch_idx >= self.limit_batches:
            return
        owner = f"RobustnessTable with {type(pl_module).__name__}"
        images, labels = fresh_pair(owner, trainer, batch, batch_idx, dataloader_idx)
        self._metric.update(*attack_batch(pl_module, images, labels, self.attacks, self.regions, self.seed))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.evaluation = Evaluation(**self._metric.compute())
        values = {"clean": self.evaluation.clean_accuracy, "worst_case": self.evaluation.worst_case_accuracy}
        values |= {name: found["robust_accuracy"] for name, found in self.evaluation.attacks.items()}
        # already of all processes
        log_numbers(trainer, {f"robust/{name}": value for name, value in values.items()})

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or self.evaluation is None:
            return
        self.evaluation.save(trainer.default_root_dir)
        log_table(trainer, "robustness", COLUMNS, self.evaluation.rows())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since Lightning prints its own table after on_test_end and the bar is live until here
        if stage != "test" or self.evaluation is None or not trainer.is_global_zero:
            return
        console = rich.get_console()
        console.print(self.evaluation.table())
        path = Path(trainer.default_root_dir).absolute() / "robustness.csv"
        print_path(console, "robustness", path)
