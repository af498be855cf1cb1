"""The results of a run, for eyes and for programs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import rich
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table

from lit_adv.files import replacing, write_json

from .attribution_tables import attribution_rows, attribution_tables
from .tables import percent, plain_table, print_path


class ResultsTable(pl.Callback):
    """Prints the results of a test and writes them to `results.csv` and `results.json` in the run folder.

    The tables: recognition per attack class; how much is answered and how much is unknown; where there is something to
    tell, recognition by family, with victims held out apart, the victims named and the budgets estimated; accuracy of
    each victim before and after reconstruction; success of the attacks before and after rounding to 8 bits. They come
    as the last output of the test and fit 80 columns. The CSV has one number a row (section, attack, setting, victim,
    metric, value, count), where `count` is the number of images behind the value; the JSON is `results` of the task,
    with null for nan. Weights & Biases gets the tables as well. A task without `results` gets a warning and no table.
    """

    COLUMNS = ("section", "attack", "setting", "victim", "metric", "value", "count")

    def __init__(self) -> None:
        self._results: dict[str, Any] | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._results = None

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        results = getattr(pl_module, "results", None)
        if not results:
            rank_zero_warn(
                f"ResultsTable: no table, since {type(pl_module).__name__} has no results "
                "(use this callback with REDRL)"
            )
            return
        self._results = results = _plain(results)
        rows = _tidy(results)
        folder = Path(trainer.default_root_dir)
        with replacing(folder / "results.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.COLUMNS)
            writer.writerows(rows)
        write_json(folder / "results.json", results, indent=2)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for section in dict.fromkeys(row[0] for row in rows):
                    data = [list(row[1:]) for row in rows if row[0] == section]
                    columns = list(self.COLUMNS[1:])
                    logger.log_table(f"results/{section}", columns, data, step=trainer.global_step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since Lightning prints its own table after on_test_end and the bar is live until here
        if stage != "test" or self._results is None:
            return
        console = rich.get_console()
        for table in _tables(self._results, console):
            console.print(table)
            console.print()
        folder = Path(trainer.default_root_dir).absolute()
        for name, path in (("figures", folder / "figures"), ("results", folder / "results.csv")):
            if path.exists():
                print_path(console, name, path)
        self._results = None


def _plain(value: Any) -> Any:
    """Return `value` with plain numbers, lists and dicts only, None for nan: what JSON can hold."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _tidy(results: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return one row a number, in the order of `ResultsTable.COLUMNS`; a value that is not known is None."""
    rows: list[tuple[Any, ...]] = []
    recognition = results.get("recognition") or {}
    counts = recognition.get("counts", {})
    for attack, value in recognition.get("per_class", {}).items():
        rows.append(("recognition", attack, "", "", "accuracy", value, counts[attack]))
    for metric in ("micro", "macro", "weighted"):
        if recognition.get(metric) is not None:
            rows.append(("recognition", "", "", "", metric, recognition[metric], sum(counts.values())))
    rows += attribution_rows(results)
    calibration = results.get("calibration") or {}
    for metric, value in calibration.items():
        if metric not in ("test", "images"):
            rows.append(("calibration", "", "", "", metric, value, calibration["images"]))
    scores = calibration.get("test") or {}
    for metric in ("coverage", "accuracy_answered", "accuracy", "calibration_error"):
        if scores:
            rows.append(("answers", "", "", "", metric, scores[metric], scores["images"]))
    for victim, attacks in (results.get("reconstruction") or {}).items():
        for attack, cell in attacks.items():
            for when in ("before", "after"):
                rows.append(("reconstruction", attack, "", victim, f"accuracy_{when}", cell[when], cell["images"]))
    for row in results.get("crafting") or []:
        for metric in ("success_before", "success_after", "unchanged"):
            share = row[metric] / row["images"] if row["images"] else None
            rows.append(("crafting", row["attack"], row["setting"], row["victim"], metric, share, row["images"]))
    return rows


def _tables(results: Mapping[str, Any], console: Console) -> Iterable[Table]:
    if results.get("recognition"):
        yield _recognition(results["recognition"])
    yield from attribution_tables(results)
    if (results.get("calibration") or {}).get("test"):
        yield _answers(results["calibration"])
    if results.get("reconstruction"):
        yield from _reconstruction(results["reconstruction"], console.width)
    if results.get("crafting"):
        yield _crafting(results["crafting"])


def _recognition(recognition: Mapping[str, Any]) -> Table:
    table = plain_table("Attack recognition", "attack", ("images", "recognised"))
    for attack, value in recognition["per_class"].items():
        table.add_row(attack, f"{recognition['counts'][attack]:,d}", percent(value))
    table.add_section()
    total = f"{sum(recognition['counts'].values()):,d}"
    table.add_row("micro (all images alike)", total, percent(recognition["micro"]))
    table.add_row("macro (all classes alike)", total, percent(recognition["macro"]), style="bold")
    if recognition.get("weighted") is not None:
        table.add_row("weighted (the paper's Total)", total, percent(recognition["weighted"]))
    return table


def _answers(calibration: Mapping[str, Any]) -> Table:
    scores = calibration["test"]
    table = plain_table("Answers, where the probability is high enough", "", ("validation", "test"))
    table.add_row("answered, not unknown", percent(calibration["achieved"]), percent(scores["coverage"]))
    table.add_row("right where answered", "", percent(scores["accuracy_answered"]))
    table.add_row("expected calibration error", "", percent(scores["calibration_error"]))
    if calibration["temperature"] is None:
        table.caption = "not calibrated: temperature 1, all is answered"
    else:
        asked, threshold = percent(calibration["coverage"]), percent(calibration["threshold"])
        table.caption = f"asked {asked}; threshold {threshold}, temperature {calibration['temperature']:.3g}"
    return table


def _reconstruction(reconstruction: Mapping[str, Mapping[str, Any]], width: int) -> Iterable[Table]:
    """Yield tables of attacks by victims, as many victims side by side as fit."""
    victims = list(reconstruction)
    attacks = list(dict.fromkeys(attack for cells in reconstruction.values() for attack in cells))
    cell = max(len("100.0 → 100.0"), *(min(len(victim), 20) for victim in victims))
    across = max(1, (width - max(len("attack"), *map(len, attacks)) - 4) // (cell + 3))
    for start in range(0, len(victims), across):
        part = victims[start : start + across]
        table = plain_table("Classifier accuracy, image → reconstruction (%)", "attack", part)
        for attack in attacks:
            cells = [reconstruction[victim].get(attack, {}) for victim in part]
            table.add_row(attack, *(_before_after(cell.get("before"), cell.get("after")) for cell in cells))
        yield table


def _crafting(report: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of settings; the victims of a setting are added up."""
    sums: dict[str, dict[str, int]] = {}
    for row in report:
        total = sums.setdefault(
            setting_name(row["attack"], row["setting"]), dict.fromkeys(("images", *_CRAFTING.values()), 0)
        )
        for key in total:
            total[key] += row[key]
    table = plain_table("Attacks crafted, before and after rounding to 8 bits", "attack", ("images", *_CRAFTING))
    for name, total in sums.items():
        images = total["images"]
        shares = [percent(total[key] / images if images else None) for key in _CRAFTING.values()]
        table.add_row(name, f"{images:,d}", *shares)
    victims = {row["victim"] for row in report}
    if len(victims) > 1:
        table.caption = f"all {len(victims)} victims together; each one in results.csv"
    return table


def setting_name(attack: str, setting: str) -> str:
    """Return `attack/setting`, however the setting was written ("8", "pgd/8", "" or "pgd")."""
    if setting in ("", attack):
        return attack
    return setting if setting.startswith(f"{attack}/") else f"{attack}/{setting}"


def _before_after(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "–"
    return f"{100 * before:5.1f} → {100 * after:5.1f}"


# heading to field of the report
_CRAFTING = {
    "success before\nrounding": "success_before",
    "success after\nrounding": "success_after",
    "left\nunchanged": "unchanged",
}
