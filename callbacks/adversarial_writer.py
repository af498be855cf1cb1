"""Adversarial images in files, written by `lightning predict`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import rich
import torch
from torch import Tensor

from lit_adv.data import AdversarialBatch, AdversarialDataModule
from lit_adv.data.adversarial import Split
from lit_adv.data.adversarial_set import (
    COLUMNS,
    MANIFEST,
    PARQUET,
    TABLE,
    Names,
    class_names,
    describe,
    is_written,
    png,
    read_manifest,
    read_table,
    sha256,
    shard_name,
    table_of,
    write_manifest,
    write_tar,
)
from lit_adv.files import inside, remove_leftovers, replacing, write_rows

from .tables import percent, plain_table, print_path

_SPLITS = ("train", "val", "test")


class AdversarialWriter(pl.Callback):
    """Writes all versions of a data module's images, the clean one too, as PNG files with a table and a manifest.

    An image folder has `images/SPLIT/CLASS/ATTACK/INDEX-SETTING--VICTIM.png`; WebDataset's form has tar files
    `shards/SPLIT-NUMBER.tar` with `KEY.png`, `KEY.cls` and `KEY.json`. `table.csv` (also `table.parquet`, where pyarrow
    is installed) has a row an image: file, split, label, class, attack, setting, victim, index (position in the split),
    success (1 where the victim's class of the image as it is written is not the one that the attack was to leave;
    empty for clean images), the distance to the clean image (l0: pixels, l2 and linf: pixel units of [0, 1]), and the
    SHA-256 of the PNG. `manifest.json` says what the set was made of and how much is in it.

    A set is cut into shards, dealt to the processes; its files do not depend on their number. A shard's own table is
    written last and makes it whole: a run that is started again goes on with the shards that are not. What is
    written is 8-bit, as it was crafted, neither augmented nor degraded.

    Args:
        splits: What to write.
        form: `folder` or `webdataset`.
        max_images_per_shard: Images a shard, >= 1; they are held in memory until it is written.
        folder: Where to; None for `adversarial` in the run's folder.
        threads: Pictures compressed at once, >= 1; None for the number of processors, 8 at most.

    Raises:
        ValueError: An argument is out of range; later, the folder holds another set, or the images are not 8-bit.
        TypeError: The data are not an AdversarialDataModule.
    """

    def __init__(
        self,
        splits: tuple[Split, ...] = ("test",),
        form: Literal["folder", "webdataset"] = "folder",
        max_images_per_shard: int = 1000,
        folder: str | None = None,
        threads: int | None = None,
    ) -> None:
        splits = tuple(splits)
        if not splits or len(set(splits)) < len(splits) or any(split not in _SPLITS for split in splits):
            raise ValueError(f"AdversarialWriter: splits must be some of {', '.join(_SPLITS)}, each once, got {splits}")
        if form not in ("folder", "webdataset"):
            raise ValueError(f"AdversarialWriter: form must be folder or webdataset, got {form!r}")
        for name, value in (("max_images_per_shard", max_images_per_shard), ("threads", threads)):
            if value is not None and value < 1:
                raise ValueError(f"AdversarialWriter: {name} must be at least 1, got {value}")
        self.splits: tuple[Split, ...] = splits
        self.form = form
        self.max_images_per_shard = max_images_per_shard
        self.folder = folder
        self.threads = threads or min(8, os.cpu_count() or 1)
        self._folder = Path()
        self._data: AdversarialDataModule
        self._names: Names
        self._described: dict[str, Any] = {}
        self._todo: Iterator[tuple[Split, int, int]] = iter(())
        self._shard: tuple[Split, int, int] | None = None
        self._held: list[tuple[dict[str, Any], Tensor]] = []
        self._active = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Looks for what has been written already, and makes prediction show the rest."""
        self._active = stage == "predict" and not getattr(trainer, "fast_dev_run", False)
        if not self._active:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, AdversarialDataModule):
            raise TypeError(f"AdversarialWriter: data must be an AdversarialDataModule, got {type(data).__name__}")
        if data.quantise == "none" or data.in_channels not in (1, 3):
            raise ValueError(
                f"AdversarialWriter: images must be 8-bit and grey or RGB to be written, got quantise {data.quantise} "
                f"and {data.in_channels} channels (set data.quantise to round)"
            )
        data.read_splits(self.splits)
        self._data, self._names = data, Names(data)
        folder = self.folder or str(Path(trainer.default_root_dir) / "adversarial")
        self._folder = Path(trainer.strategy.broadcast(folder))
        self._described = describe(data, self.splits, self.max_images_per_shard, self.form)
        self._refuse_another_set()
        shown, todo = [], []
        for split in self.splits:
            plan = data.plan(split, self.max_images_per_shard)
            mine = range(trainer.global_rank, plan.shards, trainer.world_size)
            left = [shard for shard in mine if not is_written(self._folder, split, shard, self.form)]
            shown.append((split, plan, left))
            todo += [(split, shard, plan.size(shard)) for shard in left]
        data.show_in_prediction(shown)
        self._todo, self._shard, self._held = iter(todo), None, []
        # every rank has compared its set with the manifest that is there
        trainer.strategy.barrier("AdversarialWriter.setup")
        if trainer.is_global_zero:
            remove_leftovers(self._folder)
            write_manifest(self._folder, self._described, None)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch's images, and writes the shard that they fill."""
        if not self._active:
            return
        if not isinstance(batch, AdversarialBatch):
            raise TypeError(f"AdversarialWriter: a batch must be an AdversarialBatch, got {type(batch).__name__}")
        if self._shard is None:
            self._shard = next(self._todo)
        self._held += self._rows(batch, self._shard[0])
        if len(self._held) == self._shard[2]:
            self._write_shard(*self._shard[:2])
            self._shard, self._held = None, []

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Puts the shards' tables together once all are there."""
        # after an exception Lightning does not come here
        if not self._active or stage != "predict":
            return
        self._active = False
        self._data.show_in_prediction(None)
        trainer.strategy.barrier("AdversarialWriter.teardown")
        if trainer.is_global_zero:
            self._finish()

    def _refuse_another_set(self) -> None:
        if not (self._folder / MANIFEST).exists():
            if self._folder.is_dir() and any(self._folder.iterdir()):
                raise ValueError(
                    f"AdversarialWriter: folder {self._folder} holds files of something else (give an empty one with "
                    "folder, or another --run_dir)"
                )
            return
        old = read_manifest(self._folder)["set"]
        differing = [name for name in self._described if old.get(name) != self._described[name]]
        if differing:
            raise ValueError(
                f"AdversarialWriter: folder {self._folder} holds a set with other {', '.join(differing)} (delete it, "
                "or write to another with folder or --run_dir)"
            )

    def _rows(self, batch: AdversarialBatch, split: Split) -> list[tuple[dict[str, Any], Tensor]]:
        """Each image's row of the table, all but the file's name and hash, and its levels."""
        data, classes = self._data, class_names(self._data)
        clean, crafted = (_levels(images) for images in (batch.clean, batch.adversarial))
        # of what is written: no longer apart than 8 bits can tell
        delta = (crafted.double() - clean.double()).abs() / 255
        l0 = (delta > 0).any(1).flatten(1).sum(1).tolist()
        l2, linf = delta.flatten(1).square().sum(1).sqrt().tolist(), delta.flatten(1).amax(1).tolist()
        success = self._success(batch)
        rows = []
        for number, (label, attack, setting, victim, index) in enumerate(
            zip(*(column.tolist() for column in batch[2:]), strict=True)
        ):
            name = data.attack_classes[attack]
            row = {
                "split": split,
                "label": label,
                "class": classes[label],
                "attack": name,
                "setting": data.settings[name][setting] if attack else None,
                "victim": data.victim_names[victim] if attack else None,
                "index": index,
                "success": success[number] if attack else None,
                "l0": l0[number],
                "l2": float(f"{l2[number]:.6g}"),
                "linf": float(f"{linf[number]:.6g}"),
            }
            rows.append((row, crafted[number]))
        return rows

    def _success(self, batch: AdversarialBatch) -> list[int]:
        fooled = torch.zeros(len(batch.label), dtype=torch.bool, device=batch.label.device)
        with torch.no_grad():
            for number in batch.victim.unique().tolist():
                if number < 0:
                    continue
                victim = self._data.victim(self._data.victim_names[number], batch.clean.device)
                rows = (batch.victim == number).nonzero()[:, 0]
                leave = batch.label[rows]
                if self._data.labels == "prediction":
                    leave = victim(batch.clean[rows]).argmax(1)
                fooled[rows] = victim(batch.adversarial[rows]).argmax(1) != leave
        return [int(one) for one in fooled.tolist()]

    def _write_shard(self, split: Split, shard: int) -> None:
        with ThreadPoolExecutor(self.threads) as pool:
            pictures = list(pool.map(png, (levels for _, levels in self._held)))
        rows = [row for row, _ in self._held]
        name = shard_name(split, shard)
        for row, picture in zip(rows, pictures, strict=True):
            tar_file = f"shards/{name}.tar/{self._names.key(row)}.png"
            row["file"] = self._names.file(row) if self.form == "folder" else tar_file
            row["sha256"] = hashlib.sha256(picture).hexdigest()
        if self.form == "webdataset":
            with replacing(self._folder / "shards" / f"{name}.tar") as path:
                keys = [self._names.key(row) for row in rows]
                write_tar(path, zip(keys, pictures, rows, strict=True))
        else:
            for row, picture in zip(rows, pictures, strict=True):
                place = inside(self._folder, row["file"])
                if place is None:
                    raise ValueError(f"AdversarialWriter: {row['file']} would be written outside of {self._folder}")
                with replacing(place) as path:
                    path.write_bytes(picture)
        # the table last: until it is there, the shard does not exist
        write_rows(table_of(self._folder, split, shard), COLUMNS, rows)

    def _finish(self) -> None:
        tables = [
            (split, shard)
            for split, about in self._described["splits"].items()
            for shard in range(about["shards"])
            if table_of(self._folder, split, shard).is_file()
        ]
        planned = sum(about["shards"] for about in self._described["splits"].values())
        console = rich.get_console()
        if len(tables) < planned:
            console.print(
                f"adversarial images: {len(tables)} of {planned} shards are written; the same command goes on with the "
                "rest (trainer.limit_predict_batches?)"
            )
            print_path(console, "folder", self._folder)
            return
        counts = self._merge(tables)
        write_manifest(self._folder, self._described, counts)
        table = plain_table("Adversarial images", "attack on victim", ("images", "fooled", "mean l2", "mean linf"))
        for name, one in counts["versions"].items():
            fooled = None if one["success"] is None else one["success"] / one["images"]
            table.add_row(name, f"{one['images']:,}", percent(fooled), f"{one['l2']:.3g}", f"{one['linf']:.3g}")
        console.print(table)
        print_path(console, "folder", self._folder.absolute())

    def _merge(self, tables: list[tuple[str, int]]) -> dict[str, Any]:
        """Writes the table of all shards, row by row, and returns what is in it."""
        versions: dict[str, dict[str, Any]] = {}
        hashes, images = {}, 0
        with replacing(self._folder / TABLE) as merged, merged.open("wb") as file:
            file.write((",".join(COLUMNS) + "\r\n").encode())
            for split, shard in tables:
                path = table_of(self._folder, split, shard)
                hashes[path.relative_to(self._folder).as_posix()] = sha256(path)
                file.write(path.read_bytes().partition(b"\r\n")[2])
                for row in read_table(path):
                    images += 1
                    name = f"{row['setting']} on {row['victim']}" if row["setting"] else "clean"
                    one = versions.setdefault(
                        f"{split}: {name}", {"images": 0, "success": None, "l2": 0.0, "linf": 0.0}
                    )
                    one["images"] += 1
                    if row["success"]:
                        one["success"] = (one["success"] or 0) + int(row["success"])
                    one["l2"] += float(row["l2"])
                    one["linf"] += float(row["linf"])
        for one in versions.values():
            one["l2"], one["linf"] = (float(f"{one[name] / one['images']:.6g}") for name in ("l2", "linf"))
        hashes[TABLE] = sha256(self._folder / TABLE)
        if _write_parquet(self._folder / TABLE, self._folder / PARQUET):
            hashes[PARQUET] = sha256(self._folder / PARQUET)
        return {"images": images, "versions": versions, "tables": hashes}


def _levels(images: Tensor) -> Tensor:
    """8-bit levels, on the CPU, of images that are multiples of 1/255."""
    return (images * 255).round().to(torch.uint8).cpu()


def _write_parquet(table: Path, path: Path) -> bool:
    """The table as parquet; False where pyarrow is not installed."""
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ImportError:
        return False
    text = ("file", "split", "class", "attack", "setting", "victim", "sha256")
    numbers = dict.fromkeys(("label", "index", "success", "l0"), pa.int64())
    numbers |= dict.fromkeys(("l2", "linf"), pa.float64())
    types = {name: pa.string() for name in text} | numbers
    reading = arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=True)
    with (
        replacing(path) as temporary,
        arrow_csv.open_csv(table, convert_options=reading) as batches,
        parquet.ParquetWriter(temporary, batches.schema) as file,
    ):
        for batch in batches:
            file.write_batch(batch)
    return True
