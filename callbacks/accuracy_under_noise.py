"""How fast does accuracy fall when adversarial noise grows? Several classifiers, a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import rich
import torch
from torch import Tensor, nn

from lit_adv.attacks import noise_at_snr
from lit_adv.attacks.attack import predictions
from lit_adv.evaluation import check_comparable
from lit_adv.files import write_json, write_rows
from lit_adv.metrics import NoiseAccuracy
from lit_adv.models import load_classifier
from lit_adv.plots import noise_figure

from .figures import log_figure
from .loggers import log_numbers
from .repeats import fresh_pair
from .tables import percent, plain_table, print_path

CLEAN = "clean"


class AccuracyUnderNoise(pl.Callback):
    """Accuracy over the signal-to-noise ratio, under FGSM as in Cisse et al. 2017 (table 1, figure 3) and under PGD.

    Each classifier gets noise made against itself, see `lit_adv.attacks.noise_at_snr`; ratios are of pixels in [0, 1]
    and hold after clipping. All images count, those misclassified without noise too. FGSM alone says little: a network
    may have hidden its gradient, which PGD in the same ball would find more often.

    For tasks whose ``forward`` maps images to logits, on batches (images, labels). Writes ``accuracy_under_noise.csv``
    (one row a classifier, kind of noise and ratio), ``accuracy_under_noise.json`` and
    ``figures/accuracy_under_noise.png`` into the run folder, prints a table and logs
    ``noise/<classifier>/<kind>/<dB>``. Several processes give the numbers of one.

    Args:
        classifiers: By name, networks or paths of checkpoints, beside the task under test.
        tested: Name of the task under test; None leaves it out.
        decibels: Ratios; the published ones are 50, 45, 40 and 33.
        steps: Of PGD; 0 leaves it out.
        limit_batches: Only the first test batches of each process; None takes all.

    Raises:
        ValueError: An argument is out of range; in the test, batches of another kind.
    """

    def __init__(
        self,
        classifiers: dict[str, nn.Module | str] | None = None,
        tested: str | None = "tested",
        decibels: Sequence[float] = (60, 55, 50, 45, 40, 33, 30, 25, 20),
        steps: int = 20,
        limit_batches: int | None = None,
    ) -> None:
        self.classifiers, self.tested = dict(classifiers or {}), tested
        self.names = [*([] if tested is None else [tested]), *self.classifiers]
        self.decibels = [float(each) for each in decibels]
        self.steps, self.limit_batches = steps, limit_batches
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(
                f"AccuracyUnderNoise: tested and classifiers must give one or more different names, got {self.names}"
            )
        if not self.decibels or len(set(self.decibels)) != len(self.decibels):
            raise ValueError(f"AccuracyUnderNoise: decibels must be one or more different numbers, got {self.decibels}")
        if steps < 0 or steps == 1:
            raise ValueError(f"AccuracyUnderNoise: steps must be 0 (no PGD) or at least 2, got {steps}")
        if limit_batches is not None and limit_batches < 1:
            raise ValueError(f"AccuracyUnderNoise: limit_batches must be at least 1 or null, got {limit_batches}")
        for name, model in self.classifiers.items():
            if isinstance(model, str) and not Path(model).is_file():
                raise ValueError(
                    f"AccuracyUnderNoise: classifiers: there is no checkpoint '{model}' for {name} (train it with"
                    " `lightning fit` and the config of that network, or give the path of another checkpoint)"
                )
        self.kinds = {"FGSM": 1} | ({f"PGD-{steps}": steps} if steps else {})
        self.results: dict[str, Any] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.results = {}
        self._models: dict[str, nn.Module] = {} if self.tested is None else {self.tested: pl_module}
        # what is made in inference mode no gradient can pass through
        with torch.inference_mode(False):
            for name, given in self.classifiers.items():
                model = load_classifier(given) if isinstance(given, str) else given
                self._models[name] = model.to(pl_module.device).eval()
        self._metric = NoiseAccuracy(self.names, list(self.kinds), self.decibels).to(pl_module.device)
        # a process may get no image
        nothing = torch.zeros(len(self.names), len(self.kinds), len(self.decibels), 0, device=pl_module.device)
        self._metric.update(nothing[:, 0, 0].bool(), nothing.bool())

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
        owner = f"AccuracyUnderNoise with {type(pl_module).__name__}"
        images, labels = fresh_pair(owner, trainer, batch, batch_idx, dataloader_idx)
        for name in self.classifiers:
            check_comparable("AccuracyUnderNoise", f"classifiers: {name}", self._models[name], pl_module, images)
        if len(images):
            found = [self._right(model, images, labels) for model in self._models.values()]
            self._metric.update(torch.stack([clean for clean, _ in found]), torch.stack([noisy for _, noisy in found]))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # collective, and so on every process
        self.results = self._metric.compute()
        values = {
            f"noise/{row['classifier']}/{row['noise']}" + (f"/{row['decibels']:g}" if row["decibels"] else ""): value
            for row in self.rows()
            if (value := row["accuracy"]) is not None
        }
        log_numbers(trainer, values)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._models = {}
        if not trainer.is_global_zero or not self.results or not self.results["images"]:
            return
        folder = Path(trainer.default_root_dir)
        write_rows(folder / "accuracy_under_noise.csv", ("classifier", "noise", "decibels", "accuracy"), self.rows())
        write_json(folder / "accuracy_under_noise.json", self.results, indent=1)
        found = self.results["classifiers"]
        curves = {kind: {name: shares[kind] for name, shares in found.items()} for kind in self.kinds}
        title = f"Accuracy under noise, {self.results['images']:,} images"
        log_figure(trainer, "accuracy_under_noise", noise_figure(self.decibels, curves, title))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since Lightning prints its own table after on_test_end and the bar is live until here
        if stage != "test" or not self.results or not trainer.is_global_zero:
            return
        console = rich.get_console()
        found = self.results["classifiers"].values()
        lines = [[CLEAN, *(shares[CLEAN] for shares in found for _ in self.kinds)]]
        for place, ratio in enumerate(self.decibels):
            lines.append([f"{ratio:g}", *(shares[kind][place] for shares in found for kind in self.kinds)])
        # a column a curve: there are more ratios than a terminal has room for
        columns = [f"{name}, {kind}" for name in self.results["classifiers"] for kind in self.kinds]
        title = f"Accuracy under noise, {self.results['images']:,} images"
        table = plain_table(title, "SNR in dB", columns)
        for first, *shares in lines:
            table.add_row(first, *map(percent, shares))
        console.print(table)
        print_path(console, "accuracy", Path(trainer.default_root_dir).absolute() / "accuracy_under_noise.csv")

    def rows(self) -> list[dict[str, Any]]:
        """A row a classifier, kind of noise and ratio, with one without noise."""
        rows = []
        for name, shares in self.results["classifiers"].items():
            rows.append({"classifier": name, "noise": CLEAN, "decibels": None, "accuracy": shares[CLEAN]})
            for kind in self.kinds:
                for ratio, share in zip(self.decibels, shares[kind], strict=True):
                    rows.append({"classifier": name, "noise": kind, "decibels": ratio, "accuracy": share})
        return rows

    def _right(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which are classified rightly: ``(B,)`` without noise and ``(N, S, B)`` with it."""
        kinds = []
        for steps in self.kinds.values():
            noisy = noise_at_snr(model, images, labels, self.decibels, steps)
            kinds.append(torch.stack([predictions(model, each) == labels for each in noisy]))
        return predictions(model, images) == labels, torch.stack(kinds)
