"""What `lightning predict` says of a folder of pictures, for eyes and for programs."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import rich
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lit_adv.data import PictureBatch, PictureFile, PictureFolder
from lit_adv.files import replacing, write_json
from lit_adv.tasks.identification import NOT_CALIBRATED, Identification

from .shown_images import gathered
from .tables import print_path


class IdentificationWriter(pl.Callback):
    """Writes `identified.csv`, `identified.json`, `reconstructions/` and `residuals/`, and prints a short table.

    They go into the folder `identify` in the run's folder (`identify-2` where there is one already). The tables have
    one row a file, whether it could be looked at or not: file, verdict (a class, `unknown`, or `not read`), most
    likely class, its probability, residual energy (mean square of the residual, of images in [0, 1]), width, height,
    format, note (what was done to the file, or why it was not read), and `p_CLASS`, the probability of each class. A
    network with heads adds `victim` and `victim_probability` (empty where `clean` is most likely) and `budget`, the
    Linf radius in [0, 1] (empty where the most likely attack has none), before these probabilities. The
    pictures are PNG under the file's own name, such as `residuals/holiday/beach.jpg.png`; a residual is shown as `0.5 +
    scale * residual`, so that grey means unchanged. A network that reconstructs nothing writes tables alone; a picture
    that cannot be written (its name is too long, or taken by a folder) is missing, which the note says. Several
    processes write one table.

    Args:
        pictures: Write reconstructions and residuals.
        scale: Factor on the residual, > 0.
        shown: Most rows of the printed table, >= 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    COLUMNS = (
        *("file", "verdict", "most_likely", "probability", "residual_energy"),
        *("width", "height", "format", "note"),
    )

    def __init__(self, pictures: bool = True, scale: float = 8.0, shown: int = 20) -> None:
        for name, value, good, least in (("scale", scale, scale > 0, "> 0"), ("shown", shown, shown >= 1, ">= 1")):
            if not good:
                raise ValueError(
                    f"IdentificationWriter: {name} must be {least}, got {value} (leave it out for the default)"
                )
        self.pictures = pictures
        self.scale = scale
        self.shown = shown
        self._folder = Path()
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self._found: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage == "predict" and not isinstance(data, PictureFolder):
            raise TypeError(
                f"IdentificationWriter: data must be a PictureFolder, got {type(data).__name__} (--data PictureFolder "
                "--data.path FOLDER)"
            )

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rows, self._found = [], None
        self._folder = Path(trainer.strategy.broadcast(str(_free(Path(trainer.default_root_dir) / "identify"))))

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(batch, PictureBatch) or not isinstance(outputs, Identification):
            raise TypeError(
                f"IdentificationWriter: the step must return an Identification, got {type(outputs).__name__} (use this "
                "callback with REDRL)"
            )
        files: list[PictureFile] = trainer.datamodule.files  # type: ignore[attr-defined]
        self._rows += [(row, {"problem": reason}) for row, reason in batch.failed]
        energies = None if outputs.residual_energy is None else outputs.residual_energy.tolist()
        for number, row in enumerate(batch.rows):
            probabilities = outputs.probabilities[number].tolist()
            cells = {
                "verdict": outputs.verdicts[number],
                "most_likely": outputs.most_likely[number],
                "probability": max(probabilities),
                "residual_energy": None if energies is None else energies[number],
                "probabilities": dict(zip(outputs.classes, probabilities, strict=True)),
                **_heads(outputs, number),
            }
            if self.pictures and outputs.reconstructed is not None and outputs.residual is not None:
                name = f"{files[row].name}.png"
                try:
                    _save(outputs.reconstructed[number], self._folder / "reconstructions" / name)
                    _save(0.5 + self.scale * outputs.residual[number], self._folder / "residuals" / name)
                except OSError as error:
                    cells["note"] = f"pictures not written: {error.strerror or error}"
            self._rows.append((row, cells))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rows = [row for part in gathered(self._rows) for row in part]
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        task: Any = pl_module
        columns = [name for head in task.hparams["heads"] for name in _HEADS[head]]
        self._found = {
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "folder": str(data.path),
            "classes": list(task.attack_classes),
            "calibration": task.calibrator.state(),
            "note": "" if task.calibration else NOT_CALIBRATED,
            "scale": self.scale,
            "heads": list(task.hparams["heads"]),
            "files": _table_rows(data.files, dict(rows), columns),
        }
        self._write()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since the bar is live until here
        if stage == "predict" and self._found is not None:
            self._print()
            self._found = None

    def _write(self) -> None:
        assert self._found is not None
        classes = self._found["classes"]
        plain = [*self.COLUMNS, *(name for head in self._found["heads"] for name in _HEADS[head])]
        # the name of a file may hold bytes that are no text
        how: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
        with replacing(self._folder / "identified.csv") as path, path.open("w", **how) as file:
            writer = csv.writer(file)
            writer.writerow([*plain, *(f"p_{name}" for name in classes)])
            for row in self._found["files"]:
                probabilities = row["probabilities"] or {}
                cells = [row[name] for name in plain] + [probabilities.get(name) for name in classes]
                writer.writerow(["" if cell is None else cell for cell in cells])
        write_json(self._folder / "identified.json", self._found, indent=2)

    def _print(self) -> None:
        assert self._found is not None
        console, rows = rich.get_console(), self._found["files"]
        counts = Counter(row["verdict"] for row in rows)
        table = Table(title=f"Identified, {len(rows):,} files", title_justify="left", title_style="bold")
        table.add_column("file", overflow="fold", ratio=3)
        for name in ("verdict", "most likely", "energy"):
            table.add_column(name, justify="right" if name == "energy" else "left", no_wrap=True)
        table.add_column("note", overflow="fold", ratio=3)
        # what could not be read comes first: it is what somebody has to look after
        for row in sorted(rows, key=lambda row: row["verdict"] != "not read")[: self.shown]:
            likely = "" if row["probability"] is None else f"{row['most_likely']} {100 * row['probability']:.0f} %"
            energy = "" if row["residual_energy"] is None else f"{row['residual_energy']:.1e}"
            style = {"not read": "red", "unknown": "yellow"}.get(row["verdict"], "")
            # one below the other: columns of their own would leave the note no room
            budget = "" if row.get("budget") is None else f"{255 * row['budget']:.1f}/255"
            likely = "\n".join(filter(None, (likely, row.get("victim"), budget)))
            cells = (row["file"], row["verdict"], likely, energy, row["note"])
            table.add_row(*(Text(_printable(cell), style=style) for cell in cells))
        console.print(table)
        console.print(Text("   ".join(f"{name}: {count:,}" for name, count in counts.most_common())))
        calibration = self._found["calibration"]
        if calibration is None:
            console.print(Text(NOT_CALIBRATED, style="yellow"))
        else:
            console.print(
                Text(
                    f"unknown: less likely than {100 * calibration['threshold']:.0f} %, as "
                    f"{100 * (1 - calibration['achieved']):.1f} % of the {calibration['images']:,} validation images"
                )
            )
        hidden = len(rows) - self.shown
        told = f" (all {len(rows):,} rows)" if hidden > 0 else ""
        paths = [("table", f"{self._folder.absolute() / 'identified.csv'}{told}")]
        for name in ("reconstructions", "residuals"):
            if (self._folder / name).is_dir():
                paths.append((name, str(self._folder.absolute() / name)))
        for name, path in paths:
            print_path(console, name, _printable(path))


# what each head of the network adds to a row
_HEADS = {"victim": ("victim", "victim_probability"), "budget": ("budget",)}


def _heads(outputs: Identification, number: int) -> dict[str, Any]:
    """What the heads say of an image, None where that has no meaning."""
    cells: dict[str, Any] = {}
    if outputs.attacked is not None and outputs.victim_probabilities is not None:
        name = outputs.attacked[number]
        sure = float(outputs.victim_probabilities[number].max())
        cells |= {"victim": name, "victim_probability": None if name is None else sure}
    if outputs.budgets is not None:
        budget = float(outputs.budgets[number])
        cells["budget"] = None if math.isnan(budget) else budget
    return cells


def _table_rows(files: list[PictureFile], found: dict[int, dict[str, Any]], columns: list[str]) -> list[dict[str, Any]]:
    """One row a file, in the order of the files, with the heads' columns."""
    rows = []
    for number, file in enumerate(files):
        cells = found.get(number, {})
        problem = file.problem or cells.get("problem", "")
        if not problem and not cells:
            problem = "not looked at (trainer.limit_predict_batches?)"
        rows.append(
            {
                "file": file.name,
                "verdict": cells.get("verdict", "not read"),
                "most_likely": cells.get("most_likely"),
                "probability": cells.get("probability"),
                "residual_energy": cells.get("residual_energy"),
                "width": file.width or None,
                "height": file.height or None,
                "format": file.format,
                "note": problem or ", ".join(filter(None, (file.note, cells.get("note")))),
                **{name: cells.get(name) for name in columns},
                "probabilities": cells.get("probabilities"),
            }
        )
    return rows


def _free(folder: Path) -> Path:
    """The folder, or the next `folder-2`, `folder-3`, ... that is not there yet."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _save(picture: Tensor, path: Path) -> None:
    """A PNG of a picture (C, H, W) in [0, 1]; what lies outside is clipped."""
    levels = (picture.clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(np.moveaxis(levels, 0, -1))).save(path)


def _printable(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "backslashreplace")
