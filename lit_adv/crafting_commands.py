"""`lightning estimate` and `lightning verify`: what a crafting job will take, and whether what it wrote is whole."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lit_adv.callbacks import AdversarialWriter
from lit_adv.compose import ConfigError
from lit_adv.data import AdversarialDataModule, verify_set
from lit_adv.data.adversarial import Split, VersionEstimate
from lit_adv.data.adversarial_set import describe, png, read_image, read_manifest, stored_images
from lit_adv.data.cache_budget import free_disk, size_text

if TYPE_CHECKING:
    from lit_adv.app import AdvCLI

_SPLITS: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
# of the pixels: an image crafted beside others differs by rounding, which now and then turns a step's sign
_ROUNDING = 0.05
_SHOWN = 20


def estimate(cli: AdvCLI) -> None:
    """Prints the disk and the time that a job's crafting takes.

    Raises:
        ConfigError: The job's data craft nothing.
    """
    data, trainer, subcommand = cli.datamodule, cli.trainer, str(cli.subcommand)
    if not isinstance(data, AdversarialDataModule):
        raise ConfigError(f"estimate: data must be an AdversarialDataModule, got {type(data).__name__}")
    writer = next((one for one in getattr(trainer, "callbacks", ()) if isinstance(one, AdversarialWriter)), None)
    writing = writer is not None and subcommand == "predict"
    splits = writer.splits if writer is not None and writing else _SPLITS.get(subcommand, ("test",))
    device = trainer.strategy.root_device
    data.prepare_data()
    versions = data.estimate(splits, device)
    threads = writer.threads if writer is not None and writing else None
    for line in [*estimate_lines(data, splits, versions, trainer.world_size, threads), _memory(device)]:
        print(line, flush=True)


def estimate_lines(
    data: AdversarialDataModule,
    splits: tuple[Split, ...],
    versions: list[VersionEstimate],
    ranks: int,
    threads: int | None,
) -> list[str]:
    """The statement of `estimate`.

    Args:
        data: The job's.
        splits: What it shows.
        versions: What each version takes.
        ranks: Processes that share the work.
        threads: Where the images are written as PNG files, how many are compressed at once in a process; else None.
    """
    writing = threads is not None
    left = [one.images - one.cached for one in versions]
    seconds = sum(count * one.seconds_per_image for count, one in zip(left, versions, strict=True)) / ranks
    images = sum(one.images for one in versions)
    lines = [
        f"{one.split}: {one.name}: {one.images:,} images, {one.cached:,} cached, "
        f"{1000 * one.seconds_per_image:.3g} ms an image"
        for one in versions
    ]
    each = "" if data.prefill_first or data.cache_dir is not None or writing else " each time they are shown"
    lines.append(
        f"crafting: {sum(left):,} of {images:,} images, about {_time(seconds)}"
        f" on {ranks} process{'es' if ranks > 1 else ''}{each}"
    )
    if data.cache_dir is not None:
        folder = Path(data.cache_dir)
        limit = "no limit" if data.cache_limit is None else f"cache_limit {data.cache_limit}"
        lines.append(
            f"cache: {size_text(data.cache_bytes(splits))} in {folder} once all are there ({limit}; "
            f"{size_text(free_disk(folder))} free)"
        )
    if threads is not None:
        clean = {split: data.plan(split, 1).versions[0][1].size for split in splits}
        kinds = [(one.images, one.sample[:32]) for one in versions]
        for split, count in clean.items():
            # which compress better than crafted ones
            pictures, _ = next(iter(data.clean_batches(split)))
            kinds.append((count, (pictures[:32] * 255).round().to(torch.uint8)))
        size, seconds = 0.0, 0.0
        for count, levels in kinds:
            began = time.monotonic()
            bytes_each = np.mean([len(png(one)) for one in levels])
            seconds += count * (time.monotonic() - began) / len(levels)
            size += count * float(bytes_each)
        lines.append(
            f"files: {images + sum(clean.values()):,} pictures of about {size_text(size)} in all, tables beside them; "
            f"to compress them, about {_time(seconds / ranks / min(threads, os.cpu_count() or 1))}"
        )
    return lines


def _memory(device: torch.device) -> str:
    """What the chunks have taken so far in this process."""
    taken = []
    if device.type == "cuda":
        taken.append(f"{size_text(torch.cuda.max_memory_reserved(device))} of the GPU's")
    with contextlib.suppress(ImportError):  # not there on Windows
        import resource

        # in kB, on macOS in bytes
        unit = 1 if sys.platform == "darwin" else 1024
        taken.append(f"{size_text(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} of the machine's")
    return f"memory: at most {' and '.join(taken) or 'unknown'} in each process, without workers"


def verify(folder: Path, sample: int | None, seed: int) -> bool:
    """Prints what is wrong with a written set; whether it is whole.

    Raises:
        FileNotFoundError: There is no set.
        ValueError: The manifest is damaged.
    """
    check = verify_set(folder, sample, seed)
    for what in ("missing", "damaged", "extra"):
        names = getattr(check, what)
        for name in names[:_SHOWN]:
            print(f"{what}: {name}")
        if len(names) > _SHOWN:
            print(f"{what}: and {len(names) - _SHOWN:,} more")
    if not check.complete:
        print("not complete: the run that wrote it has not come to its end (start it again: it goes on)")
    counts = ", ".join(f"{len(getattr(check, what)):,} {what}" for what in ("missing", "damaged", "extra"))
    print(f"{'whole' if check.whole else 'NOT whole'}: {check.images:,} images, {check.checked:,} read; {counts}")
    return check.whole


class Recraft:
    """Crafts some images of a set again, with the job's own config, and compares them.

    Args:
        folder: The set's.
        count: How many.
        seed: Which.

    Attributes:
        same: Whether all were the same, up to rounding.
    """

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self.folder, self.count, self.seed = folder, count, seed
        self.same = False

    def __call__(self, cli: AdvCLI) -> None:
        """Takes the place of the run.

        Raises:
            ConfigError: The config is not the one that the set was written with.
        """
        data, manifest = cli.datamodule, read_manifest(self.folder)
        if not isinstance(data, AdversarialDataModule):
            raise ConfigError(f"verify: data must be an AdversarialDataModule, got {type(data).__name__}")
        about = manifest["set"]
        splits = tuple(about["splits"])
        data.prepare_data()
        data.read_splits(splits)
        mine = describe(data, splits, about["images_per_shard"], about["form"])
        differing = [name for name in mine if about.get(name) != mine[name]]
        if differing:
            raise ConfigError(
                f"verify: {self.folder} was written with other {', '.join(differing)} than this config has (give the "
                "config.yaml beside the set)"
            )
        rows = [found for found in stored_images(self.folder, manifest) if found[0]["setting"]]
        draws = np.random.default_rng(self.seed)
        chosen = [rows[number] for number in sorted(draws.permutation(len(rows))[: self.count].tolist())]
        equal, close, apart = self._compare(data, chosen, cli.trainer.strategy.root_device)
        for name in apart[:_SHOWN]:
            print(f"crafted otherwise: {name}")
        print(
            f"crafted again: {len(chosen):,} images; {equal:,} equal, {close:,} up to rounding, "
            f"{len(apart):,} otherwise"
        )
        self.same = not apart

    def _compare(
        self, data: AdversarialDataModule, chosen: list[Any], device: torch.device
    ) -> tuple[int, int, list[str]]:
        groups = defaultdict(list)
        for row, path, member in chosen:
            groups[row["split"], row["setting"], row["victim"]].append((row, path, member))
        equal, close, apart = 0, 0, []
        for (split, setting, victim), members in groups.items():
            indices = [int(row["index"]) for row, _, _ in members]
            for (row, path, member), crafted in zip(
                members, data.craft(split, setting, victim, indices, device), strict=True
            ):
                stored = read_image(path, member)
                share = 1.0 if stored.shape != crafted.shape else float((stored != crafted).float().mean())
                if share == 0:
                    equal += 1
                elif share <= _ROUNDING:
                    close += 1
                else:
                    apart.append(f"{row['file']} ({100 * share:.1f} % of its values differ)")
        return equal, close, apart


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
