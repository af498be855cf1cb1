"""Accuracies under attacks that must agree, and a verdict on gradient masking, at the end of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import rich
import torch
from matplotlib.figure import Figure
from torch import nn

from lit_adv.attacks import Radius
from lit_adv.masking import Probes, check_judgement
from lit_adv.masking_verdict import COLUMNS, Diagnosis, attack_name, judge, radius_text
from lit_adv.models import load_classifier
from lit_adv.plots import robustness_report_figure

from .figures import log_figure
from .loggers import log_numbers, log_table
from .repeats import fresh_pair
from .tables import print_path


class RobustnessReport(pl.Callback):
    """Tells whether a classifier is robust or only looks so, since its gradients are masked.

    Clean accuracy and accuracies under FGSM, RAND-FGSM, PGD with restarts, Auto-PGD on the margin, Square and, if
    wanted, AutoAttack and PGD on an undefended network: all at one Linf radius, on the same images, those that the
    classifier has right. From them the diagnostics D1 to D9, each with its interval (differences of accuracies: of
    paired images), and a verdict: masking is likely where two of D1 to D7 are beyond their intervals.

    For tasks whose ``forward`` maps images to logits, on batches (images, labels). Prints both tables and the verdict,
    logs ``masking/<diagnostic>`` and ``masking/accuracy/<attack>`` and writes ``robustness_report.csv``,
    ``robustness_report.json`` and a figure into the run folder. Several processes give the numbers of one.

    Args:
        eps: Linf radius of all attacks in pixel units of [0, 1], in (0, 1).
        undefended: A network of the same kind trained without a defence, or the path of a checkpoint made by
            `VictimClassifier`; without it there is no transfer attack and neither D3 nor D4.
        steps: Of PGD and Auto-PGD, at least 50.
        restarts: Of the two.
        queries: Of Square.
        draws: Of the random search (D6), at least 1000.
        autoattack: Whether AutoAttack runs too.
        radii: Further radii for FGSM and PGD, which the figure shows as curves.
        thresholds: In place of some of `lit_adv.masking_verdict.THRESHOLDS`, by the names of the diagnostics.
        confidence: Of all intervals, in (0, 1).
        min_images: With fewer images attacked there is no verdict, unless two signs are beyond their intervals.
        seed: Of the attacks; an image gets the same random numbers in any batch and on any rank.
        limit_batches: Attack only the first test batches of each process; None attacks all.

    Raises:
        ValueError: A field is out of range, or there is no such checkpoint; in the test, batches of another kind.
    """

    def __init__(
        self,
        eps: Radius,
        undefended: nn.Module | str | None = None,
        steps: int = 50,
        restarts: int = 3,
        queries: int = 1000,
        draws: int = 1000,
        autoattack: bool = False,
        radii: list[Radius] | None = None,
        thresholds: dict[str, float] | None = None,
        confidence: float = 0.95,
        min_images: int = 50,
        seed: int = 0,
        limit_batches: int | None = None,
    ) -> None:
        self.thresholds = check_judgement("RobustnessReport", thresholds, confidence, min_images)
        self.probes = Probes(
            eps,
            steps=steps,
            restarts=restarts,
            queries=queries,
            draws=draws,
            autoattack=autoattack,
            radii=radii or (),
            undefended=undefended is not None,
            owner="RobustnessReport",
        )
        if limit_batches is not None and limit_batches < 1:
            raise ValueError(f"RobustnessReport: limit_batches must be at least 1 or null, got {limit_batches}")
        if isinstance(undefended, str) and not Path(undefended).is_file():
            raise ValueError(
                f"RobustnessReport: there is no checkpoint '{undefended}' for undefended (train it with `lightning fit`"
                " and the config of that network, or give null: then D3 and D4 are left out)"
            )
        self.undefended = undefended
        self.confidence, self.min_images = confidence, min_images
        self.seed, self.limit_batches = seed, limit_batches
        self.diagnosis: Diagnosis | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.diagnosis = None
        self._metric = self.probes.metric().to(pl_module.device)
        self._metric.nothing()
        # what is made in inference mode, in which Lightning tests, no gradient can pass through
        with torch.inference_mode(False):
            given = self.undefended
            network = load_classifier(given) if isinstance(given, str) else given
            self._source = None if network is None else network.to(pl_module.device)

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
        owner = f"RobustnessReport with {type(pl_module).__name__}"
        images, labels = fresh_pair(owner, trainer, batch, batch_idx, dataloader_idx)
        self._metric.update(**self.probes.batch(pl_module, images, labels, self._source, self.seed))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # collective, and so on every process
        counts = self._metric.compute()
        self.diagnosis = found = judge(counts, self.probes.eps, self.thresholds, self.confidence, self.min_images)
        values = {name: each.value for name, each in found.diagnostics.items()}
        values |= {f"accuracy/{name}": each["accuracy"] for name, each in found.accuracies.items()}
        log_numbers(trainer, {f"masking/{name}": value for name, value in values.items()})

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._source = None
        if not trainer.is_global_zero or self.diagnosis is None:
            return
        self.diagnosis.save(trainer.default_root_dir)
        if self.diagnosis.images:
            log_figure(trainer, "robustness_report", _figure(self.diagnosis))
        log_table(trainer, "robustness_report", COLUMNS, self.diagnosis.rows())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since Lightning prints its own table after on_test_end and the bar is live until here
        if stage != "test" or self.diagnosis is None or not trainer.is_global_zero:
            return
        console = rich.get_console()
        console.print(self.diagnosis.table())
        path = Path(trainer.default_root_dir).absolute() / "robustness_report.csv"
        print_path(console, "robustness report", path)


def _figure(found: Diagnosis) -> Figure:
    # other radii are in the curves
    shown = {name: each for name, each in found.accuracies.items() if "@" not in name or name == "pgd@1"}
    accuracies = {attack_name(name): each for name, each in shown.items()}
    signs = {}
    for name, each in found.diagnostics.items():
        if name == "D8":  # a ratio, on no scale with the others
            continue
        flag = "beyond" if each.beyond else "within" if each.flag else "no"
        ends = {key: getattr(each, key) for key in ("value", "low", "high")}
        label = f"{each.quantity}  {name}{' (informs)' if each.informs else ''}"
        signs[label] = {
            **ends, "limit": each.limit, "flag": flag, "both_sides": name == "D9"
        }  # fmt: skip
    title = f"Linf {radius_text(found.eps)}, {found.images:,} images, {found.attacked:,} attacked"
    return robustness_report_figure(accuracies, signs, found.curves(), title, found.text)
