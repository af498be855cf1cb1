"""In which layers does each attack strike? Saliency profiles, their curves and numbers, at the end of a test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import rich
import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lit_adv.attacks import Attack
from lit_adv.files import write_json, write_rows
from lit_adv.metrics import SaliencyProfileMean
from lit_adv.plots import Profile, profile_figure

from .figures import log_figure
from .loggers import log_numbers
from .repeats import fresh_pair
from .saliency_callback import SaliencyCallback
from .tables import print_path


class SaliencyProfile(SaliencyCallback):
    """Parameter-space saliency of each attack's images (Souri et al. 2021, section 5.1, Figures 5 and 8 to 15).

    A filter's saliency is its mean absolute gradient, standardised by mean and standard deviation over the clean
    validation images (see `parameter_saliency` and `SaliencyStatistics`). Of the test set, those images count that the
    victim takes for their true class before the attack and for another one after it; as ``clean``, all that it takes
    for their true class. With an AdversarialDataModule, every attack of it counts on every victim; with any other
    data, whose batches are (images, labels), `attacks` are run on the task itself, whose ``forward`` must give logits.

    Writes ``saliency_profile.csv`` (images, mean saliency, shares of all positive saliency that lie in the first and
    in the last third of the layers), ``saliency_profile.json`` with the mean of every layer and all curves, signed and
    absolute, in both orders of sorting and averaging, for each victim ``figures/saliency_profile.png``, and the
    statistics under ``saliency/``; prints the table and logs it as ``saliency/<attack>/<number>``. Several processes
    give the numbers of one.

    Args:
        attacks: By any names, where there is no AdversarialDataModule; None takes those of the data module.
        order: Of the figure's curves: ``sort_then_mean`` as in the paper, or ``mean_then_sort``, see
            `SaliencyProfileMean`.
        absolute: Absolute standardised saliency in the figure, as in equation 6; the authors' code has the sign.
        share_y: One y-axis for all attacks in the figure, or one for each.
        shown: The attacks in the figure, in this order; None shows all, the clean images first.
        statistics_dir: The folder ``saliency`` of an earlier run, whose statistics are used in place of the validation
            set where they are of these victims; a file of other weights is refused.
        chunk_size: Most images whose saliency is computed at once; None takes whole batches.
        seed: Of `attacks`.
        floor: Least standard deviation of a filter, as a share of the root mean square of its layer's; 0 is the paper's
            formula. In a small or narrow network a filter may hardly ever matter on clean images; a warning says when
            such filters make up more than half of an attack's profile.

    Raises:
        ValueError: An argument is out of range; in the test, data and `attacks` that do not fit, or no validation set.
    """

    COLUMNS = ("attack", "victim", "images", "mean", "first_third", "last_third")

    def __init__(
        self,
        attacks: dict[str, Attack] | None = None,
        order: Literal["sort_then_mean", "mean_then_sort"] = "sort_then_mean",
        absolute: bool = False,
        share_y: bool = True,
        shown: Sequence[str] | None = None,
        statistics_dir: str | None = None,
        chunk_size: int | None = None,
        seed: int = 0,
        floor: float = 0.0,
    ) -> None:
        super().__init__(attacks, statistics_dir, chunk_size, seed, floor)
        if order not in SaliencyProfileMean.ORDERS:
            raise ValueError(
                f"SaliencyProfile: order must be one of {', '.join(SaliencyProfileMean.ORDERS)}, got {order!r}"
            )
        self.order = order
        self.absolute = absolute
        self.share_y = share_y
        self.shown = None if shown is None else list(shown)
        self.results: list[dict[str, Any]] = []
        self._means: dict[tuple[str, str], SaliencyProfileMean] = {}
        self._rare: dict[str, float] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.results = []
        self._means = {}
        super().on_test_start(trainer, pl_module)
        keys = self._keys(trainer)
        unknown = [key for key in self.shown or () if key not in keys]
        if unknown:
            raise ValueError(f"SaliencyProfile: shown must be attacks ({', '.join(keys)}), got {unknown[0]!r}")
        for victim, statistics in self.statistics.items():
            for key in keys:
                mean = SaliencyProfileMean(statistics.layers).to(pl_module.device)
                # a process may get no image of this attack
                mean.update(torch.zeros(0, sum(statistics.layers.values()), device=pl_module.device))
                self._means[key, victim] = mean

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.attacks is not None:
            owner = f"{self._name} with {type(pl_module).__name__}"
            batch = fresh_pair(owner, trainer, batch, batch_idx, dataloader_idx)
        for each in self._attacked(trainer, pl_module, batch):
            right, changed = each.before == each.labels, each.after != each.labels
            kept = right if each.attack == "clean" else right & changed
            raw = self._saliency(each.model, each.images[kept], each.labels[kept])
            self._means[each.attack, each.victim].update(
                self.statistics[each.victim].standardise(raw, floor=self.floor)
            )

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.results = []
        self._rare = {}
        numbers: dict[str, float] = {}
        for (attack, victim), mean in self._means.items():
            found = mean.compute()
            shares = found.pop("shares")
            row = {"attack": attack, "victim": victim, **_plain(found)}
            self.results.append(row)
            share = float(shares[self.statistics[victim].rare()].sum())
            self._rare[victim] = max(self._rare.get(victim, 0.0), 0.0 if math.isnan(share) else share)
            name = "/".join(part for part in ("saliency", victim * self._several, attack) if part)
            numbers |= {f"{name}/{column}": row[column] for column in self.COLUMNS[2:] if row[column] is not None}
        # already of all processes
        log_numbers(trainer, numbers)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.results:
            return
        self._save(Path(trainer.default_root_dir))
        for victim, statistics in self.statistics.items():
            mine = {row["attack"]: row for row in self.results if row["victim"] == victim}
            profiles = {}
            for key in self.shown or mine:
                row = mine[key]
                curve = row["absolute" if self.absolute else "signed"][self.order]
                first, last = _percent(row["first_third"]), _percent(row["last_third"])
                about = f"{row['images']:,} images · first third {first} · last third {last}"
                profiles[key] = Profile(curve, about if row["images"] else "no images")
            suffix, where = (f"_{victim}", victim) if self._several else ("", victim or type(pl_module).__name__)
            kind = "absolute" if self.absolute else "signed"
            floor = f", floor {self.floor:g}" if self.floor else ""
            title = f"Parameter saliency: {where}, {kind}, {self.order.replace('_', ' ')}{floor}"
            figure = profile_figure(profiles, list(statistics.layers.values()), self.share_y, self.absolute, title)
            log_figure(trainer, f"saliency_profile{suffix}", figure)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since Lightning prints its own table after on_test_end and the bar is live until here
        if stage != "test" or not self.results or not trainer.is_global_zero:
            return
        console = rich.get_console()
        console.print(self._printed())
        for victim, share in self._rare.items():
            if share > 0.5:
                rare, of = self.statistics[victim].rare(), f" of {victim}" if victim else ""
                console.print(
                    f"{int(rare.sum())} of the {len(rare)} filters{of} hardly ever matter on clean images, and make up"
                    f" to {_percent(share)} of a profile: set floor, e.g. 0.01, to see the others."
                )
        path = Path(trainer.default_root_dir).absolute() / "saliency_profile.csv"
        print_path(console, "saliency profile", path)

    def _save(self, folder: Path) -> None:
        rows = [{name: row[name] for name in self.COLUMNS} for row in self.results]
        write_rows(folder / "saliency_profile.csv", self.COLUMNS, rows)
        victims = {
            victim: {"layers": each.layers, "network": each.network, "validation_images": int(each.compute()["images"])}
            for victim, each in self.statistics.items()
        }
        content = {
            "order": self.order,
            "absolute": self.absolute,
            "floor": self.floor,
            "victims": victims,
            "attacks": self.results,
        }
        write_json(folder / "saliency_profile.json", content)

    def _printed(self) -> Table:
        title = "Saliency in standard deviations, and its shares in the layers"
        style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
        table = Table(title=title, min_width=len(title), pad_edge=False, padding=(0, 1, 0, 0), **style)
        table.add_column("attack", overflow="fold")
        for heading in ("images", "mean", "first third", "last third"):
            table.add_column(heading, justify="right", no_wrap=True)
        for victim in self.statistics:
            if self._several:
                table.add_row(Text(victim, style="bold"))
            for row in self.results:
                if row["victim"] == victim:
                    mean = "–" if row["mean"] is None else f"{row['mean']:.3g}"
                    shares = _percent(row["first_third"]), _percent(row["last_third"])
                    table.add_row(row["attack"], f"{row['images']:,}", mean, *shares)
            table.add_section()
        return table


def _plain(found: Any) -> Any:
    """Tensors as numbers of 6 digits or lists of them, None for nan."""
    if isinstance(found, dict):
        return {name: _plain(value) for name, value in found.items()}
    if isinstance(found, Tensor):
        return _plain(found.tolist())
    if isinstance(found, list):
        return [_plain(value) for value in found]
    if isinstance(found, float):
        return None if math.isnan(found) else float(f"{found:.6g}")
    return found


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
