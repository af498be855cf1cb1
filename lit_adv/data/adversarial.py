"""Adversarial images on the fly: any clean data module, any victims, any attacks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler, Subset, default_collate

from lit_adv.attacks import Attack, Region, attack_family, linf_budget
from lit_adv.attacks.randomness import Draws, mix, mix_int
from lit_adv.data.batches import (
    EpochBatches,
    Keys,
    OrderedBatches,
    PredictionLoader,
    ResumableLoader,
    ShuffledBatches,
    batches_trained,
)
from lit_adv.data.cache import AdversarialCache
from lit_adv.data.cache_budget import disk_bytes, free_disk, parse_size, share_that_fits, size_text, taken
from lit_adv.data.cache_plans import CachePlans
from lit_adv.data.chunks import Chunk, ChunkSize, is_out_of_memory
from lit_adv.data.datasets import ImageDataset
from lit_adv.data.degradation import Degradation
from lit_adv.data.sampling import rank_and_world
from lit_adv.data.set_plan import SetBatches, SetPlan
from lit_adv.models import fingerprint, freeze_, load_classifier

Split = Literal["train", "val", "test"]
_BEFORE, _AFTER, _SAME = (
    1,
    2,
    4,
)  # flags of a crafted row: succeeded before and after rounding, equal to the clean image
# a block for the text beside each variant's images
_KEY_BYTES = 4096
# rows of a table of random numbers
_PIECE = 1 << 16
_FACTORS = [round(1 + 0.1 * step, 1) for step in range(21)]


class AdversarialBatch(NamedTuple):
    """What the adversarial data module hands to tasks and callbacks.

    Attributes:
        clean: ``(B, C, H, W)`` float32 in [0, 1].
        adversarial: ``(B, C, H, W)`` float32 in [0, 1]; equals ``clean`` where ``attack`` is 0.
        label: ``(B,)`` int64, the true class.
        attack: ``(B,)`` int64, index into the data module's `attack_classes`; 0 is clean.
        setting: ``(B,)`` int64, index into the settings of that class; 0 for clean.
        victim: ``(B,)`` int64, index into the data module's `victim_names`; -1 for clean.
        index: ``(B,)`` int64, position in the clean data set.
    """

    clean: Tensor
    adversarial: Tensor
    label: Tensor
    attack: Tensor
    setting: Tensor
    victim: Tensor
    index: Tensor  # type: ignore[assignment]


class VersionEstimate(NamedTuple):
    """What crafting one version of a split's images takes.

    Attributes:
        split: The split.
        name: Setting and victim.
        images: How many are wanted.
        cached: How many of them the cache holds.
        seconds_per_image: On one process.
        sample: The images crafted to find that out, as stored, ``(n, C, H, W)``.
    """

    split: Split
    name: str
    images: int
    cached: int
    seconds_per_image: float
    sample: Tensor


class AdversarialDataModule(pl.LightningDataModule):
    """Crafts adversarial images of a clean data module's images, on the device, and keeps them in a cache.

    A *variant* of an image is (setting, victim). In training each image is shown once an epoch in a version whose
    class is drawn uniformly (clean is a class), with setting and victim drawn once a class and batch; in evaluation
    every image is shown clean and in every variant. A crafted image depends on (seed, image, attack, victim) alone,
    never on epoch, batch or rank. Every image, the clean ones too, goes through the same rounding to 8 bits: otherwise
    the rounding error alone would tell clean images from crafted ones. Under several processes each sample is
    evaluated once.

    Args:
        source: A data module whose training, validation and test sets give (image, label) pairs: float images
            ``(C, H, W)`` in [0, 1], or uint8 ones, and the same image each time (augmentation belongs here, after
            crafting).
        victims: The networks attacked, by name: modules, or paths of checkpoints made by `VictimClassifier`. They are
            frozen, and moved to the batch's device on first use.
        attacks: Attacks by ``class`` or ``class/setting``: ``pgd/4`` and ``pgd/8`` are two settings of the class
            ``pgd``.
        regions: For some of these keys, the only region that the attack may change.
        batch_size: Images a training batch and process.
        eval_batch_size: Images an evaluation batch and process; None takes ``batch_size``.
        craft_batch_size: Most images that are attacked at once; ``auto``: as many as fit (from 1024 on a GPU, 256 on a
            CPU, halved whenever the memory does not suffice), with the same images as a result.
        num_workers: DataLoader workers; they read the cache.
        variants: How many versions of each image exist in training, the clean one included, spread evenly over the
            classes and fixed by the seed (a class with fewer settings has fewer); None: all of them. Which ones differs
            from image to image, so that a batch's are crafted a few at a time: ``prefill`` crafts them in full batches.
        paired: Show each training image in every class within one batch, in place of one drawn class: an epoch is then
            as many times longer. A recogniser that sees only the image starts to learn much sooner from such batches.
        seed: Of the order, the draws and the attacks.
        quantise: ``round`` or ``floor`` of 255 times the image, or ``none``.
        survive_rounding: Enlarge a minimal-norm attack's perturbation that rounding has undone by the smallest of the
            factors 1, 1.1, ..., 3 after which the rounded image fools; a budget is kept.
        labels: Which class an attack leaves: the victim's ``prediction`` on the clean image, as the papers have it, or
            the ``true`` one.
        cache_dir: Folder for crafted images; None keeps nothing.
        cache_limit: Most disk that ``cache_dir`` may take, what other jobs keep there included: ``20 GB``, ``20 GiB``
            or bytes; None sets no limit; jobs on one machine that set it keep it together. The same first part of the
            images is kept of every version, the rest is crafted each time it is shown; ``prefill``, which promises all
            of them, refuses before it crafts any.
        prefill: Craft all that a run will show before it starts; refuses where the disk has no room for it.
        augment: Random shifts (an eighth of the side) and flips in training, the same for clean and adversarial image.
        held_out: Victims that training and validation never show; only the test (and prediction) does, so that what has
            been learnt is tried on networks that nothing was learnt from, nor chosen by.
        families: The family of an attack class in hierarchical scores, where it is not what its attacks say
            (`lit_adv.attacks.attack_family`; ``mixed`` where they disagree).
        degradation: Resizing and JPEG after crafting, in training and validation, the same for clean and adversarial
            image; another one each epoch in training, always the same one of a version in validation. The test set
            stays as it is.

    Raises:
        ValueError: A field out of its range, a name that is there twice, victims that do not fit the data.
    """

    def __init__(
        self,
        source: pl.LightningDataModule,
        victims: dict[str, nn.Module | str],
        attacks: dict[str, Attack],
        regions: dict[str, Region] | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        craft_batch_size: ChunkSize = 256,
        num_workers: int = 0,
        variants: int | None = None,
        paired: bool = False,
        seed: int = 0,
        quantise: Literal["round", "floor", "none"] = "round",
        survive_rounding: bool = False,
        labels: Literal["prediction", "true"] = "prediction",
        cache_dir: str | None = None,
        cache_limit: int | str | None = None,
        prefill: bool = False,
        augment: bool = False,
        held_out: tuple[str, ...] = (),
        families: dict[str, str] | None = None,
        degradation: Degradation | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.attacks = dict(attacks)
        self.regions = dict(regions or {})
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.craft_batch_size = craft_batch_size
        self.num_workers = num_workers
        self.variants = variants
        self.paired = paired
        self.seed = seed
        self.quantise = quantise
        self.survive_rounding = survive_rounding
        self.labels = labels
        self.cache_dir = cache_dir
        self.cache_limit = cache_limit
        self.prefill_first = prefill
        self.augment = augment
        self.held_out = tuple(held_out)
        self.families = dict(families or {})
        self.degradation = degradation
        self._given = dict(victims)
        self._check()

        self.attack_classes = ["clean", *dict.fromkeys(key.partition("/")[0] for key in self.attacks)]
        self.settings: dict[str, list[str]] = {
            name: [key for key in self.attacks if key.partition("/")[0] == name] for name in self.attack_classes[1:]
        }
        self.victim_names = list(victims)
        self._check_names()
        # variant v is setting v // V of all settings in class order, on victim v % V
        self._keys = [key for name in self.attack_classes[1:] for key in self.settings[name]]
        if variants is not None and variants < len(self.attack_classes):
            raise ValueError(
                f"AdversarialDataModule: variants must be at least {len(self.attack_classes)}, one for each class "
                f"(clean included), got {variants}"
            )
        if paired and batch_size < len(self.attack_classes):
            raise ValueError(
                f"AdversarialDataModule: batch_size must be at least {len(self.attack_classes)} where paired is true, "
                f"one version for each class, got {batch_size}"
            )
        self._victims: dict[str, nn.Module] = {}
        self._sets: dict[str, Dataset[Any]] = {}
        self._caches: dict[tuple[str, int], AdversarialCache] = {}
        self._counts: dict[str, Tensor] = {}
        self._ready: set[str] = set()
        self._tables: dict[int, np.ndarray | None] = {}
        self._everything: dict[str, np.ndarray] = {}
        self._words: dict[int, tuple[str, ...]] = {}
        self._victim_words: dict[str, str] = {}
        self._shape: tuple[int, ...] | None = None
        self._evaluated: Split = "test"
        self._chunk = Chunk(craft_batch_size)
        # the share of a split's images that the cache keeps
        self._kept: dict[str, float] = {}
        self._plans: CachePlans | None = None
        self._planned: dict[str, tuple[int, float]] = {}
        self._shown: list[tuple[Split, SetPlan, list[int]]] | None = None

    @property
    def num_classes(self) -> int:
        """Classes of the clean data.

        Raises:
            ValueError: The source does not say how many it has.
        """
        found = getattr(self.source, "num_classes", None)
        if found is None:
            raise ValueError(f"{type(self.source).__name__}: needs an attribute num_classes, the number of its labels")
        return int(found)

    @property
    def trained_victims(self) -> list[str]:
        """The victims that training shows, which are all but those held out."""
        return [name for name in self.victim_names if name not in self.held_out]

    @property
    def attack_families(self) -> dict[str, str]:
        """The family of each attack class; clean, which is no attack, has none."""
        found = {}
        for name, keys in self.settings.items():
            own = {attack_family(self.attacks[key]) for key in keys}
            found[name] = self.families.get(name, own.pop() if len(own) == 1 else "mixed")
        return found

    @property
    def budgets(self) -> dict[str, list[float | None]]:
        """The Linf radius of each setting of each attack class, in pixel units of [0, 1]; None where it has none."""
        return {name: [linf_budget(self.attacks[key]) for key in keys] for name, keys in self.settings.items()}

    def victim_fingerprints(self) -> dict[str, str]:
        """A hash of each victim's weights and buffers, by which a victim trained anew is noticed."""
        for name in self.victim_names:
            if name not in self._victim_words:
                self._victim_words[name] = fingerprint(self.victim(name))
        return {name: self._victim_words[name] for name in self.victim_names}

    @property
    def image_size(self) -> int:
        """Height of the images in pixels."""
        return int(self.source.image_size) if hasattr(self.source, "image_size") else self._image_shape()[1]

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return int(self.source.in_channels) if hasattr(self.source, "in_channels") else self._image_shape()[0]

    def victim(self, name: str, device: torch.device | str | None = None) -> nn.Module:
        """A victim, frozen and in eval mode; the only copy in the process.

        Raises:
            KeyError: No such victim.
        """
        if name not in self._given:
            raise KeyError(f"AdversarialDataModule: no victim {name!r} (there are {', '.join(self.victim_names)})")
        # a weight made or moved in inference mode could never again be part of a gradient
        with torch.inference_mode(False):
            if name not in self._victims:
                given = self._given[name]
                self._victims[name] = freeze_(load_classifier(given) if isinstance(given, str | Path) else given)
            module = self._victims[name]
            if device is not None and next((p.device for p in module.parameters()), None) != torch.device(device):
                module.to(device)
        return module

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        splits: dict[str | None, tuple[Split, ...]] = {
            None: ("train", "val", "test"),
            "fit": ("train", "val"),
            "validate": ("val",),
        }
        wanted = splits.get(stage, ("test",))
        self._take(wanted, "test" if stage == "predict" else stage)
        self._check_victims()
        if self.trainer is not None and not getattr(self.trainer, "fast_dev_run", False):
            self._check_room(wanted)
            if self.prefill_first:
                self.prefill(wanted)

    def teardown(self, stage: str) -> None:
        """Tells other jobs that nothing more is going to be written."""
        if self._plans is not None:
            self._plans.withdraw()

    def train_dataloader(self) -> ResumableLoader:
        rank, ranks = rank_and_world()
        items = _Items(self, "train")
        batches = _TrainingBatches(items, self, ranks, rank)
        progress = None if self.trainer is None else functools.partial(batches_trained, self.trainer)
        return self._loader(items, batches, progress)

    def val_dataloader(self) -> ResumableLoader:
        return self._evaluation("val")

    def test_dataloader(self) -> ResumableLoader:
        return self._evaluation("test")

    def predict_dataloader(self) -> PredictionLoader:
        if self._shown is None:
            return PredictionLoader(self._evaluation("test"))
        loaders = []
        for split, plan, shards in self._shown:
            items = _Items(self, split, plain=True)
            loaders.append(self._loader(items, SetBatches(items, plan, shards, self.eval_batch_size), None))
        return PredictionLoader(*loaders)

    def read_splits(self, splits: Sequence[Split]) -> None:
        """Reads splits beside those of the stage, and checks them and the victims; crafts nothing."""
        for split in splits:
            self._take((split,), {"train": "fit", "val": "validate", "test": "test"}[split])
        self._check_victims()

    def plan(self, split: Split, images_per_shard: int) -> SetPlan:
        """All that is shown of a split that has been read, in shards."""
        variants = [(variant, self._needed(split, variant)) for variant in self._variants(split)]
        return SetPlan([(-1, self._all(split)), *variants], images_per_shard)

    def split_digest(self, split: Split) -> str:
        """A hash of up to 64 images and labels, evenly spaced, of a split that has been read."""
        dataset = self._sets[split]
        count = len(dataset)  # type: ignore[arg-type]
        images, labels = _read(dataset, np.unique(np.linspace(0, count - 1, min(64, count)).astype(int)).tolist())
        digest = hashlib.sha256(f"{count} {tuple(images.shape)} ".encode())
        digest.update(_to_stored(self.quantise, images).numpy().tobytes() + labels.numpy().tobytes())
        return digest.hexdigest()

    def show_in_prediction(self, shown: list[tuple[Split, SetPlan, list[int]]] | None) -> None:
        """Makes prediction show some shards of plans, on this rank, in place of the test set; None: the test set.

        Images are as they were crafted: neither augmented nor degraded.
        """
        self._shown = shown

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Crafts what the cache did not have; batches that are not ours pass."""
        if not isinstance(batch, _Raw):
            return batch
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        return self._finish(batch, epoch)

    def batches(self, split: Split = "test", device: torch.device | str = "cpu") -> Iterator[AdversarialBatch]:
        """The batches of one epoch without a Trainer, crafted on ``device``."""
        self.prepare_data()
        self.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        loader = self.train_dataloader() if split == "train" else self._evaluation(split)
        for raw in loader:
            moved = {name: value.to(device) for name, value in raw._asdict().items() if isinstance(value, Tensor)}
            groups = [(variant, rows.to(device)) for variant, rows in raw.groups]
            yield self._finish(raw._replace(**moved, groups=groups), 0)

    def clean_batches(self, split: Split = "val") -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of a split's clean images, rounded as in every batch, and labels; nothing is crafted.

        Raises:
            ValueError: The split is empty or of another kind.
        """
        self.source.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        dataset = _dataset(self.source, split)
        self._check_source(split, dataset)
        rank, ranks = rank_and_world()
        mine = range(rank, len(dataset), ranks)  # type: ignore[arg-type]
        for start in range(0, len(mine), self.eval_batch_size):
            images, labels = _read(dataset, list(mine[start : start + self.eval_batch_size]))
            yield _to_float(_to_stored(self.quantise, images)), labels

    def prefill(self, splits: tuple[Split, ...] = ("train", "val", "test"), device: Any = None) -> None:
        """Crafts into the cache every image that an epoch over these splits can show; goes on where it was stopped.

        Under several processes each crafts its share. Shows a progress bar, and a line for each variant with the time
        it took and the share of successes before and after rounding.

        Raises:
            ValueError: There is no ``cache_dir``.
        """
        if self.cache_dir is None:
            raise ValueError("AdversarialDataModule: prefill needs a cache_dir to keep the images in, got None")
        self._check_room(splits, all_of_them=True)
        trainer = self.trainer
        if device is None:
            device = trainer.strategy.root_device if trainer is not None else torch.device("cpu")
        rank, ranks = rank_and_world()
        todo = [
            (split, variant, rows[rank::ranks])
            for split in splits
            if split not in self._ready
            for variant in self._variants(split)
            if len(rows := self._needed(split, variant))
        ]
        total = sum(len(rows) for _, _, rows in todo)
        bar = Progress(
            TextColumn("[bold]crafting[/] {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            transient=True,
            disable=rank != 0,
        )
        if todo and rank == 0:
            print(
                f"Adversarial images: {total * ranks:,} in {len(todo)} variants, "
                f"cache {Path(self.cache_dir).resolve()}",
                flush=True,
            )
        with bar:
            task = bar.add_task("", total=total)
            for number, (split, variant, rows) in enumerate(todo, 1):
                began, crafted = time.monotonic(), 0
                items = _Items(self, split)
                name = f"{self._variant_name(variant)} ({split})"
                bar.update(task, description=name)
                counts = np.zeros(4, np.int64)
                step = self._chunk.size(device)
                for start in range(0, len(rows), step):
                    part = rows[start : start + step]
                    raw = items[[(int(row), variant) for row in part]]
                    flags = raw.flags.clone()
                    for _, missing in raw.groups:
                        moved = raw.clean.to(device)[missing.to(device)]
                        label, index = raw.label[missing], raw.index[missing]
                        flags[missing] = self._craft(split, variant, moved, label.to(device), index)[1].cpu()
                        crafted += len(missing)
                    counts += _tally(flags).numpy()
                    bar.advance(task, len(part))
                if rank == 0:
                    seconds = time.monotonic() - began
                    print(
                        f"  [{number}/{len(todo)}] {name}: {crafted} crafted, {len(rows) - crafted} cached, "
                        f"{seconds:.1f} s, fooled {_percent(counts[1], counts[0])} "
                        f"({_percent(counts[2], counts[0])} after rounding)",
                        flush=True,
                    )
        self._ready.update(splits)
        if trainer is not None:
            trainer.strategy.barrier("prefill")

    def cache_bytes(self, splits: Sequence[Split]) -> int:
        """Disk that the crafted images of splits take in the cache, in blocks of 4096 bytes, once all are there."""
        total = 0
        for split in splits:
            for variant in self._variants(split):
                rows = self._needed(split, variant)
                total += sum(disk_bytes(rows, size) for size in self._row_bytes()) + _KEY_BYTES * (len(rows) > 0)
        return total

    def craft(
        self, split: Split, setting: str, victim: str, indices: Sequence[int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Some images of a split that has been read, crafted anew, whatever the cache holds: ``(n, C, H, W)`` as kept.

        Raises:
            ValueError: There is no such setting or victim.
        """
        if setting not in self._keys or victim not in self.victim_names:
            raise ValueError(f"AdversarialDataModule: there is no {setting} on {victim}")
        variant = self._keys.index(setting) * len(self.victim_names) + self.victim_names.index(victim)
        clean, label = _read(self._sets[split], list(indices))
        stored, rows = _to_stored(self.quantise, clean).to(device), torch.tensor(list(indices))
        return self._craft(split, variant, stored, label.to(device), rows, keep=False)[0].cpu()

    def estimate(self, splits: Sequence[Split], device: torch.device | str = "cpu") -> list[VersionEstimate]:
        """What crafting all of some splits takes, from one chunk of each version, which is crafted and thrown away.

        A chunk has as many images as the run attacks at once: ``craft_batch_size`` with ``prefill``, else at most a
        batch's. It is crafted twice where nothing of that victim was crafted before, since a device's first run is
        slower.

        Raises:
            ValueError: A split is empty or of another kind.
        """
        self.read_splits(splits)
        found, warm = [], set()
        for split in splits:
            items = _Items(self, split)
            for variant in self._variants(split):
                rows = self._needed(split, variant)
                chosen = rows[: self._at_once(split, device)]
                if not len(chosen):
                    continue
                clean, label = _read(items.clean, chosen.tolist())
                stored, label = _to_stored(self.quantise, clean).to(device), label.to(device)
                victim, images = variant % len(self.victim_names), None
                for _ in range(1 if victim in warm else 2):
                    began = time.monotonic()
                    images, flags = self._craft(split, variant, stored, label, torch.tensor(chosen), keep=False)
                    flags.cpu()  # waits for the device
                    seconds = time.monotonic() - began
                warm.add(victim)
                assert images is not None
                found.append(
                    VersionEstimate(
                        split=split,
                        name=self._variant_name(variant),
                        images=len(rows),
                        cached=self._cached(items, variant, rows),
                        seconds_per_image=seconds / len(chosen),
                        sample=images.cpu(),
                    )
                )
        return found

    def _at_once(self, split: Split, device: torch.device | str) -> int:
        """How many images of one version a run attacks at once."""
        most = self._chunk.size(device)
        if self.prefill_first:
            return most
        if split != "train":
            return min(most, self.eval_batch_size)
        # a batch is spread over the classes, and where images have some of the versions alone, over all of them
        parts = len(self.attack_classes) if self.variants is None else 1 + len(self._variants(split))
        return max(1, min(most, self.batch_size // parts))

    def _cached(self, items: _Items, variant: int, rows: np.ndarray) -> int:
        """How many of some images the cache holds, by the share of up to 64 written rows that fit their images."""
        cache = items.caches[variant]
        there = rows[:0] if cache is None else cache.written(rows)
        if cache is None or not len(there):
            return 0
        looked_at = there[np.unique(np.linspace(0, len(there) - 1, min(64, len(there))).astype(int))]
        clean, label = _read(items.clean, looked_at.tolist())
        hit = cache.read(looked_at.tolist(), _to_stored(self.quantise, clean).numpy(), label.numpy())[2]
        return round(len(there) * float(hit.mean()))

    def report(self, split: Split | None = None) -> list[dict[str, Any]]:
        """How well the attacks did on what the last pass over a split has shown; collective, call it on every rank.

        Args:
            split: None takes the split evaluated last.

        Returns:
            One row a (setting, victim): ``attack``, ``setting``, ``victim``, and counts: ``images``,
            ``success_before`` and ``success_after`` rounding, and ``unchanged`` (equal to the clean image). Success is
            to leave the class that the attack was told to leave.
        """
        counts = self._counts.get(split or self._evaluated)
        if counts is None:
            return []
        counts = counts.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
            moved = counts.to(device)
            torch.distributed.all_reduce(moved)
            counts = moved.cpu()
        names = ("images", "success_before", "success_after", "unchanged")
        return [
            {
                "attack": self._class_of(variant)[0],
                "setting": self._keys[variant // len(self.victim_names)],
                "victim": self.victim_names[variant % len(self.victim_names)],
                **dict(zip(names, map(int, counts[variant]), strict=True)),
            }
            for variant in range(len(counts))
            if counts[variant, 0]
        ]

    def _evaluation(self, split: Split) -> ResumableLoader:
        rank, ranks = rank_and_world()
        items = _Items(self, split)
        return self._loader(items, _EvaluationBatches(items, self, ranks, rank), None)

    def _loader(self, items: _Items, batches: EpochBatches, progress: Callable[[], int] | None) -> ResumableLoader:
        return ResumableLoader(
            items,
            sampler=batches,
            num_workers=self.num_workers,
            progress=progress,
            pin_memory=torch.cuda.is_available(),
        )

    def _begin(self, split: Split) -> None:
        self._counts[split] = torch.zeros(len(self._keys) * len(self.victim_names), 4, dtype=torch.int64)
        self._evaluated = split

    def _finish(self, raw: _Raw, epoch: int) -> AdversarialBatch:
        """The batch with its missing images crafted, in float, augmented where asked."""
        raw = raw._replace(clean=_unsealed(raw.clean), adversarial=_unsealed(raw.adversarial))
        adversarial, flags = raw.adversarial, raw.flags
        for variant, rows in raw.groups:
            crafted, found = self._craft(raw.split, variant, raw.clean[rows], raw.label[rows], raw.index[rows].cpu())
            adversarial = adversarial.index_copy(0, rows, crafted)
            flags = flags.index_copy(0, rows, found)
        self._count(raw, flags)
        clean, adversarial = _to_float(raw.clean), _to_float(adversarial)
        if self.augment and raw.split == "train" and not raw.plain:
            seeds = mix(raw.index + mix_int(self.seed, epoch, 3))
            flips = getattr(self.source, "flips", True)  # a mirrored digit is another character
            clean, adversarial = (_shift_and_flip(each, seeds, flips) for each in (clean, adversarial))
        if self.degradation is not None and raw.split != "test" and not raw.plain:
            clean, adversarial = self.degradation(self._degradation_seeds(raw, epoch), clean, adversarial)
        return AdversarialBatch(clean, adversarial, raw.label, raw.attack, raw.setting, raw.victim, raw.index)

    def _degradation_seeds(self, raw: _Raw, epoch: int) -> Tensor:
        """A seed of each row: of the image and, in validation, the version; alike in the versions of a paired batch."""
        if raw.split == "train":
            return mix(raw.index + mix_int(self.seed, epoch, 5))
        version = torch.stack([raw.attack, raw.setting, raw.victim], 1) * torch.tensor(
            [1_000_003, 10_007, 101], device=raw.attack.device
        )
        return mix(mix(raw.index + mix_int(self.seed, 6)) + version.sum(1))

    def _count(self, raw: _Raw, flags: Tensor) -> None:
        if raw.split not in self._counts:
            self._begin(raw.split)
        shown = flags.cpu()
        for variant in raw.variants:
            self._counts[raw.split][variant] += _tally(shown[raw.variant_rows == variant])

    def _craft(
        self, split: Split, variant: int, stored: Tensor, label: Tensor, index: Tensor, keep: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Adversarial images of one variant, as stored, and their flags; into the cache as well, where asked."""
        images, flags = [], []
        start = 0
        while start < len(stored):
            stop = min(start + self._chunk.size(stored.device), len(stored))
            problem = ""
            try:
                kept, flag = self._attacked(variant, stored[start:stop], label[start:stop])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            if problem:
                # only here, where the exception no longer holds the tensors of the attempt
                self._chunk.halve(stop - start, problem)
                continue
            cache = self._cache(split, variant)
            if cache is not None and keep:
                part = slice(start, stop)
                cache.write(
                    index[part].tolist(),
                    stored[part].cpu().numpy(),
                    label[part].cpu().numpy(),
                    kept.cpu().numpy(),
                    flag.cpu().numpy(),
                )
            images.append(kept)
            flags.append(flag)
            start = stop
        return torch.cat(images), torch.cat(flags)

    def _attacked(self, variant: int, stored: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial images of one variant, all at once."""
        key, name = self._keys[variant // len(self.victim_names)], self.victim_names[variant % len(self.victim_names)]
        attack, victim = self.attacks[key], self.victim(name, stored.device)
        seed = mix_int(self.seed, *(int(part, 16) for part in self._seed_words(variant)))
        with torch.inference_mode(False):
            clean = _to_float(stored.clone())
            if self.labels == "true":
                leave = truth.clone()
            else:
                with torch.no_grad():
                    leave = victim(clean).argmax(1)
            crafted = attack(victim, clean, leave, region=self.regions.get(key), seed=seed)
            with torch.no_grad():
                return self._rounded(victim, attack, clean, stored, crafted, leave)

    def _rounded(
        self, victim: nn.Module, attack: Attack, clean: Tensor, stored: Tensor, crafted: Tensor, leave: Tensor
    ) -> tuple[Tensor, Tensor]:
        before = victim(crafted).argmax(1) != leave
        kept = _to_stored(self.quantise, crafted)
        after = before if self.quantise == "none" else victim(_to_float(kept)).argmax(1) != leave
        if self.survive_rounding and self.quantise != "none" and attack.minimal_norm:
            for factor in _FACTORS[1:]:
                lost = (before & ~after).nonzero()[:, 0]
                if not len(lost):
                    break
                larger = attack.within_budget(clean[lost], clean[lost] + factor * (crafted[lost] - clean[lost]))
                larger = _to_stored(self.quantise, larger.clamp(0, 1))
                fools = victim(_to_float(larger)).argmax(1) != leave[lost]
                kept[lost[fools]] = larger[fools]
                after = after.index_copy(0, lost, fools)
        same = (kept == stored).flatten(1).all(1)
        flags = before.to(torch.uint8) * _BEFORE + after.to(torch.uint8) * _AFTER + same.to(torch.uint8) * _SAME
        return kept, flags

    def _cache(self, split: str, variant: int) -> AdversarialCache | None:
        if self.cache_dir is None:
            return None
        if (split, variant) not in self._caches:
            self._caches[split, variant] = AdversarialCache(
                self.cache_dir,
                "\n".join(
                    [
                        *self._seed_words(variant),
                        f"seed {self.seed}",
                        f"split {split}",
                        f"quantise {self.quantise}",
                        f"survive_rounding {self.survive_rounding}",
                        f"labels {self.labels}",
                        "precision float32",
                        f"lit_adv {version('lit_adv')}",  # an attack may be mended from one release to the next
                        *self._foreign_code(variant),
                    ]
                ),
                self._image_shape(),
                "float32" if self.quantise == "none" else "uint8",
            )
            if split in self._kept:
                count = len(self._sets[split])  # type: ignore[arg-type]
                self._caches[split, variant].rows = int(self._kept[split] * count)
        return self._caches[split, variant]

    def _seed_words(self, variant: int) -> tuple[str, ...]:
        """What the crafted image depends on, besides seed and image, as hexadecimal digests."""
        if variant in self._words:
            return self._words[variant]
        key, name = self._keys[variant // len(self.victim_names)], self.victim_names[variant % len(self.victim_names)]
        region = self.regions.get(key)
        self._words[variant] = (
            self.attacks[key].fingerprint(),
            "0" if region is None else region.fingerprint(),
            self.victim_fingerprints()[name],
        )
        return self._words[variant]

    def _foreign_code(self, variant: int) -> list[str]:
        """What must be crafted anew when a user's own attack or region has been edited."""
        key = self._keys[variant // len(self.victim_names)]
        return [f"code {digest}" for digest in map(_code, (self.attacks[key], self.regions.get(key))) if digest]

    def _class_of(self, variant: int) -> tuple[str, int, int]:
        """Class, index of the setting within it, and index of the victim."""
        key = self._keys[variant // len(self.victim_names)]
        name = key.partition("/")[0]
        return name, self.settings[name].index(key), variant % len(self.victim_names)

    def _variant_name(self, variant: int) -> str:
        return (
            f"{self._keys[variant // len(self.victim_names)]} on {self.victim_names[variant % len(self.victim_names)]}"
        )

    def _variants(self, split: Split) -> list[int]:
        """The variants that a split shows."""
        names = self.victim_names if split == "test" else self.trained_victims
        shown = [self.victim_names.index(name) for name in names]
        return [key * len(self.victim_names) + victim for key in range(len(self._keys)) for victim in shown]

    def _variants_of(self, attack: int) -> np.ndarray:
        """The variants of an attack class (1 is the first) that training shows."""
        keys = {self._keys.index(key) for key in self.settings[self.attack_classes[attack]]}
        victims = len(self.victim_names)
        return np.array([variant for variant in self._variants("train") if variant // victims in keys])

    def _table(self, attack: int) -> np.ndarray | None:
        """Which variants of the class each training image has, ``(N, n)``; None where it has them all."""
        if self.variants is None:
            return None
        if attack in self._tables:
            return self._tables[attack]
        choices = self._variants_of(attack)
        classes = len(self.attack_classes) - 1
        each, rest = divmod(self.variants - 1, classes)
        count = min(each + (attack <= rest), len(choices))
        images = len(self._sets["train"])  # type: ignore[arg-type]
        generator = np.random.default_rng([self.seed, attack, 1])
        table = self._tables[attack] = np.empty((images, count), np.int32)
        # pieces bound the memory, and draw what one piece would
        for start in range(0, images, _PIECE):
            draws = generator.random((min(_PIECE, images - start), len(choices)))
            table[start : start + _PIECE] = choices[draws.argsort(axis=1)[:, :count]]
        return table

    def _needed(self, split: Split, variant: int) -> np.ndarray:
        """The images of a split that can be shown in a variant."""
        table = None
        if split == "train":
            table = self._table(self.attack_classes.index(self._class_of(variant)[0]))
        return self._all(split) if table is None else (table == variant).any(1).nonzero()[0]

    def _all(self, split: Split) -> np.ndarray:
        """All images of a split: one array, of which every variant of a large set has the same."""
        count = len(self._sets[split])  # type: ignore[arg-type]
        if len(self._everything.get(split, ())) != count:
            self._everything[split] = np.arange(count)
            self._everything[split].setflags(write=False)
        return self._everything[split]

    def _image_shape(self) -> tuple[int, ...]:
        if self._shape is None:
            raise AttributeError("AdversarialDataModule: the images' shape is known after setup(); call setup() first")
        return self._shape

    def _check(self) -> None:
        def fail(message: str) -> None:
            raise ValueError(f"AdversarialDataModule: {message}")

        if not self._given:
            fail("victims must name at least one network, got none")
        if not self.attacks:
            fail("attacks must name at least one attack, got none")
        for field in ("batch_size", "eval_batch_size", "craft_batch_size"):
            value = getattr(self, field)
            if field == "craft_batch_size" and value == "auto":
                continue
            if not isinstance(value, int) or value < 1:
                also = " or auto" if field == "craft_batch_size" else ""
                fail(f"{field} must be at least 1{also}, got {value}")
        if self.cache_limit is not None:
            if self.cache_dir is None:
                fail(f"cache_limit needs a cache_dir that it limits, got cache_dir=None and {self.cache_limit!r}")
            try:
                parse_size(self.cache_limit)
            except ValueError as error:
                fail(f"cache_limit {error}")
        if self.quantise not in ("round", "floor", "none"):
            fail(f"quantise must be round, floor or none, got {self.quantise!r}")
        if self.labels not in ("prediction", "true"):
            fail(f"labels must be prediction or true, got {self.labels!r}")
        if self.prefill_first and self.cache_dir is None:
            fail("prefill needs a cache_dir to keep the images in, got cache_dir=None")
        for key, attack in self.attacks.items():
            name, slash, setting = key.partition("/")
            if not name or (slash and not setting) or name == "clean":
                fail(f"attacks: a key must be class or class/setting and not clean, got {key!r}")
            if not isinstance(attack, Attack):
                fail(f"attacks: {key} must be an Attack, got {type(attack).__name__}")
        for key in self.regions:
            if key not in self.attacks:
                fail(f"regions: {key!r} is not one of the attacks ({', '.join(self.attacks)})")
        for name, victim in self._given.items():
            if isinstance(victim, str | Path) and not Path(victim).is_file():
                raise FileNotFoundError(
                    f"AdversarialDataModule: victims: there is no checkpoint {str(victim)!r} for {name} (train it with "
                    "`lightning fit` and the config of that victim, or give the path of another checkpoint)"
                )

    def _take(self, splits: Sequence[Split], stage: str | None) -> None:
        """Reads splits that have not been read yet."""
        new = [split for split in splits if split not in self._sets]
        if new:
            self.source.setup(stage)  # type: ignore[arg-type]
            for split in new:
                dataset = _dataset(self.source, split)
                self._check_source(split, dataset)
                self._sets[split] = dataset

    def _check_room(self, splits: Sequence[Split], all_of_them: bool | None = None) -> None:
        """Says what of the splits the cache keeps, or, where it is to keep all and cannot, refuses."""
        if self.cache_dir is None:
            return
        promised = self.prefill_first if all_of_them is None else all_of_them
        folder = Path(self.cache_dir)
        own = {(split, variant): self._cache(split, variant) for split in splits for variant in self._variants(split)}
        there = sum(taken(cache.folder) for cache in own.values() if cache is not None)
        needed = self.cache_bytes(splits)
        if promised and needed - there > (free := free_disk(folder)):
            raise ValueError(
                f"AdversarialDataModule: prefill needs {size_text(needed - there)} more in cache_dir {folder}, and its "
                f"disk has {size_text(free)} free (set cache_dir to another disk, variants to fewer versions, or "
                "prefill to false and cache_limit to what may be kept)"
            )
        if self.cache_limit is None or (not promised and all(split in self._kept for split in splits)):
            return
        limit = parse_size(self.cache_limit)
        if promised and needed > limit and not folder.exists():
            self._refuse(needed, 0)
        folder.mkdir(parents=True, exist_ok=True)
        if self._plans is None:
            self._plans = CachePlans(folder)
        names = {key: cache.folder.name for key, cache in own.items() if cache is not None}
        with self._plans.deciding() as plans:
            strangers = [(folder / name, count) for name, (count, _) in plans.items() if name not in names.values()]
            # what is planned and not yet written
            coming = sum(max(0, count - taken(place)) for place, count in strangers)
            others = taken(folder) - there + coming
            known = [plans[name][1] for name in names.values() if name in plans]
            if not promised and len(known) == len(names):
                share = min(known, default=1.0)  # another process of this job has decided, or one with the same images
            elif others + needed <= limit:
                share = 1.0
            elif promised:
                self._refuse(needed, others)
            else:
                rows = [(self._needed(split, variant), len(self._sets[split])) for split, variant in own]  # type: ignore[arg-type]
                budget = limit - others - _KEY_BYTES * (len(own) + 1)
                share = share_that_fits(rows, self._row_bytes(), budget) if budget > 0 else 0.0
            self._kept |= dict.fromkeys(splits, share)
            for (split, variant), cache in own.items():
                if cache is None:
                    continue
                end = int(share * len(self._sets[split]))  # type: ignore[arg-type]
                cache.rows = None if share == 1 else end
                kept = (wanted := self._needed(split, variant))[: np.searchsorted(wanted, end)]
                count = sum(disk_bytes(kept, size) for size in self._row_bytes()) + _KEY_BYTES
                self._planned[cache.folder.name] = (count, share)
            self._plans.announce(self._planned)
        if share < 1 and rank_and_world()[0] == 0:
            print(
                f"adversarial cache: all of {' and '.join(splits)} would take {size_text(needed)}, cache_limit is "
                f"{self.cache_limit}: {100 * share:.1f} % of the images are kept, the rest is crafted each time",
                flush=True,
            )

    def _refuse(self, needed: int, others: int) -> NoReturn:
        also = f", where other jobs keep or plan {size_text(others)}" if others else ""
        raise ValueError(
            f"AdversarialDataModule: prefill needs {size_text(needed)} in cache_dir {self.cache_dir}{also}, and "
            f"cache_limit is {self.cache_limit} (raise it, set variants to fewer versions, or set prefill to "
            "false: what does not fit is then crafted each time it is shown)"
        )

    def _row_bytes(self) -> tuple[int, int]:
        """Bytes of an image and of its record."""
        return int(np.prod(self._image_shape())) * (4 if self.quantise == "none" else 1), AdversarialCache.record_bytes

    def _check_names(self) -> None:
        strangers = [name for name in self.held_out if name not in self.victim_names]
        if strangers or len(set(self.held_out)) == len(self.victim_names):
            raise ValueError(
                f"AdversarialDataModule: held_out must name some of the victims ({', '.join(self.victim_names)}) and "
                f"leave at least one to train on, got {', '.join(self.held_out)}"
            )
        for name, family in self.families.items():
            if name not in self.settings or not family:
                raise ValueError(
                    f"AdversarialDataModule: families must give names to attack classes ({', '.join(self.settings)}), "
                    f"got {name!r}: {family!r}"
                )

    def _check_source(self, split: Split, dataset: Dataset[Any]) -> None:
        name = type(self.source).__name__
        if not len(dataset):  # type: ignore[arg-type]
            raise ValueError(f"{name}: the {split} set is empty")
        image = dataset[0][0]
        if not isinstance(image, Tensor) or image.ndim != 3 or not _holds_pixels(image):
            found = (
                f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            )
            raise ValueError(
                f"{name}: the {split} set must give float images (C, H, W) in [0, 1], or uint8 ones, got {found} "
                "(use ToTensor, and leave normalisation to the classifier)"
            )
        # a flip may leave an image as it was several times running
        if not all(torch.equal(image, dataset[0][0]) for _ in range(10)):
            raise ValueError(
                f"{name}: the {split} set gives another image each time, so crafted images could not be kept "
                "(switch its augmentation off and set augment of AdversarialDataModule)"
            )
        if self._shape is not None and self._shape != tuple(image.shape):
            raise ValueError(f"{name}: images must have one shape, got {self._shape} and {tuple(image.shape)}")
        self._shape = tuple(image.shape)

    def _check_victims(self) -> None:
        shape = self._image_shape()
        for name in self.victim_names:
            victim = self.victim(name)
            device = next((p.device for p in victim.parameters()), torch.device("cpu"))
            try:
                with torch.no_grad():
                    logits = victim(torch.zeros(1, *shape, device=device))
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"AdversarialDataModule: victim {name} does not take images of shape {shape} ({error}); "
                    "its image_size and in_channels must be the data's"
                ) from error
            if logits.ndim != 2 or logits.shape[1] != self.num_classes:
                raise ValueError(
                    f"AdversarialDataModule: victim {name} has {logits.shape[-1]} classes, the data have "
                    f"{self.num_classes} (train the victim on {type(self.source).__name__})"
                )


class _Raw(NamedTuple):
    """A batch on its way to the device: 8-bit where images are rounded, with the rows that still have to be crafted."""

    clean: Tensor
    adversarial: Tensor
    label: Tensor
    attack: Tensor
    setting: Tensor
    victim: Tensor
    index: Tensor  # type: ignore[assignment]
    flags: Tensor
    split: Any
    variants: Any  # list of the variants in the batch
    variant_rows: Any  # numpy (B,), the variant of each row, -1 for clean
    groups: Any  # list of (variant, rows not in the cache)
    plain: Any  # whether the images are wanted as they were crafted


class _Items(Dataset[_Raw]):
    """Collated batches for lists of (index, variant); reads the cache, in the worker where there is one."""

    def __init__(self, module: AdversarialDataModule, split: Split, plain: bool = False) -> None:
        self.clean = module._sets[split]
        self.split = split
        self.plain = plain
        self.module = module
        variants = range(len(module._keys) * len(module.victim_names))
        # made here, in the main process, so that workers need no victim
        self.caches = [module._cache(split, variant) for variant in variants]
        self.classes = [
            (module.attack_classes.index(name), setting, victim)
            for name, setting, victim in map(module._class_of, variants)
        ]
        self.quantise = module.quantise

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "module": None}

    def __len__(self) -> int:
        return len(self.clean)  # type: ignore[arg-type]

    def __getitem__(self, keys: Keys) -> _Raw:
        index = np.array([key[0] for key in keys])
        variant = np.array([key[1] for key in keys])
        stacked, label = _read(self.clean, index.tolist())
        # one pass that catches NaN as well; levels cannot be wrong
        if stacked.dtype != torch.uint8 and not bool(((stacked >= 0) & (stacked <= 1)).all()):
            bad = int(index[int((~((stacked >= 0) & (stacked <= 1))).flatten(1).any(1).nonzero()[0])])
            raise ValueError(f"image {bad} of the {self.split} set holds values outside [0, 1] or NaN")
        clean = _to_stored(self.quantise, stacked)
        adversarial = clean.clone()
        flags = torch.zeros(len(keys), dtype=torch.uint8)
        attack, setting, victim = torch.zeros(3, len(keys), dtype=torch.int64)
        victim = victim.fill_(-1)
        groups = []
        shown = [int(one) for one in np.unique(variant) if one >= 0]
        for one in shown:
            rows = np.flatnonzero(variant == one)
            attack[rows], setting[rows], victim[rows] = map(torch.tensor, self.classes[one])
            cache = self.caches[one]
            hit = np.zeros(len(rows), bool)
            if cache is not None:
                found, flag, hit = cache.read(index[rows], clean[rows].numpy(), label[rows].numpy())
                adversarial[rows[hit]] = torch.from_numpy(found[hit])
                flags[rows[hit]] = torch.from_numpy(flag[hit])
            if not hit.all():
                groups.append((one, torch.from_numpy(rows[~hit])))
        return _Raw(
            _sealed(clean),
            _sealed(adversarial),
            label,
            attack,
            setting,
            victim,
            torch.from_numpy(index),
            flags,
            self.split,
            shown,
            variant,
            groups,
            self.plain,
        )


class _TrainingBatches(ShuffledBatches):
    """Keys (index, variant), variant -1 for clean: class uniform an image, setting and victim one a class and batch."""

    def __init__(self, items: _Items, module: AdversarialDataModule, ranks: int, rank: int) -> None:
        versions = len(module.attack_classes) if module.paired else 1
        super().__init__(items, module.batch_size, module.seed, ranks, rank, versions)
        self.module = module

    def keys(self, indices: np.ndarray, batch: int) -> Keys:
        module, classes = self.module, len(self.module.attack_classes)
        draws = np.random.default_rng([self.shuffle_seed, self.epoch, batch, 2])
        if module.paired:
            attack = np.tile(np.arange(classes), len(indices))
            indices = np.repeat(indices, classes)
        else:
            attack = draws.integers(classes, size=len(indices))
        variant = np.full(len(indices), -1)
        for number in range(1, classes):
            choices, table = module._variants_of(number), module._table(number)
            rows = attack == number
            if table is None:
                variant[rows] = choices[draws.integers(len(choices))]
            else:
                variant[rows] = table[indices[rows], draws.integers(table.shape[1])]
        return list(zip(indices.tolist(), variant.tolist(), strict=True))

    def __iter__(self) -> Iterator[Keys]:
        self.module._begin("train")
        yield from super().__iter__()


class _EvaluationBatches(OrderedBatches):
    """Every image clean, then every image in each variant."""

    def __init__(self, items: _Items, module: AdversarialDataModule, ranks: int, rank: int) -> None:
        self.images = len(items)
        self.variants = np.array([-1, *module._variants(items.split)])  # -1 is clean
        super().__init__(items, self.images * len(self.variants), module.eval_batch_size, ranks, rank)
        self.module = module
        self.split = items.split

    def keys(self, positions: np.ndarray) -> Keys:
        numbers, indices = np.divmod(positions, self.images)
        return list(zip(indices.tolist(), self.variants[numbers].tolist(), strict=True))

    def __iter__(self) -> Iterator[Keys]:
        self.module._begin(self.split)
        yield from super().__iter__()


def _dataset(source: pl.LightningDataModule, split: Split) -> Dataset[Any]:
    """The data set behind a data module's loader, ours or anybody's."""
    own = getattr(source, f"{split}_dataset", None)
    if own is not None and hasattr(own, "__getitem__"):
        return own
    loader = getattr(source, f"{split}_dataloader")()
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__getitem__"):
        raise ValueError(
            f"{type(source).__name__}: {split}_dataloader must give one DataLoader over a data set with indices, got "
            f"{type(loader).__name__}"
        )
    if loader.collate_fn is not default_collate:
        raise ValueError(
            f"{type(source).__name__}: {split}_dataloader must put its batches together in the ordinary way, got "
            f"collate_fn {getattr(loader.collate_fn, '__name__', loader.collate_fn)!r} (images are read one by one: do "
            "in the data set what it does)"
        )
    if isinstance(loader.sampler, SequentialSampler | RandomSampler):
        return loader.dataset
    if isinstance(indices := getattr(loader.sampler, "indices", None), Sequence):
        return Subset(loader.dataset, sorted(indices))
    raise ValueError(
        f"{type(source).__name__}: {split}_dataloader must have an ordinary sampler or one with indices, got "
        f"{type(loader.sampler).__name__} (give the images themselves: torch.utils.data.Subset)"
    )


def _holds_pixels(image: Tensor) -> bool:
    return image.is_floating_point() or image.dtype == torch.uint8


def _read(dataset: Dataset[Any], indices: list[int]) -> tuple[Tensor, Tensor]:
    """Images ``(B, C, H, W)``, uint8 where they are kept so, and labels ``(B,)``; at once where the data set can."""
    if isinstance(dataset, ImageDataset):
        return dataset.batch(indices, levels=True)
    if hasattr(dataset, "batch"):
        images, labels = dataset.batch(indices)
        return images, labels
    images, labels = zip(*(dataset[index] for index in indices), strict=True)
    return torch.stack(images), torch.tensor([int(label) for label in labels])


def _to_stored(quantise: str, images: Tensor) -> Tensor:
    """Images as they are kept: 8-bit levels, or float32 where nothing is rounded."""
    if quantise == "none":
        return _to_float(images).to(torch.float32)
    if images.dtype == torch.uint8:
        # in float32, 255 (k / 255) is k for each of them, also where it is rounded down
        return images
    levels = images.to(torch.float32) * 255
    return (levels.round() if quantise == "round" else levels.floor()).to(torch.uint8)


def _to_float(stored: Tensor) -> Tensor:
    return stored.to(torch.float32) / 255 if stored.dtype == torch.uint8 else stored


def _sealed(stored: Tensor) -> Tensor:
    """Float images as the integers of the same bits.

    Lightning rounds all floats of a batch to the trainer's precision before it can be crafted from: at `bf16-true`
    clean images would be others than the cache's, at `64-true` of another type.
    """
    return stored if stored.dtype == torch.uint8 else stored.view(torch.int32)


def _unsealed(sealed: Tensor) -> Tensor:
    return sealed if sealed.dtype == torch.uint8 else sealed.view(torch.float32)


def _tally(flags: Tensor) -> Tensor:
    """Images, successes before and after rounding, unchanged ones."""
    return torch.stack([torch.tensor(len(flags)), *((flags & flag > 0).sum() for flag in (_BEFORE, _AFTER, _SAME))])


def _shift_and_flip(images: Tensor, seeds: Tensor, flips: bool) -> Tensor:
    """Each image shifted by up to an eighth of its side (zeros move in) and, where allowed, flipped left to right."""
    draws = Draws(seeds)
    height, width = images.shape[-2:]
    reach = max(1, max(height, width) // 8)
    padded = F.pad(images, [reach] * 4)
    down, right = draws.integers((1,), 2 * reach + 1), draws.integers((1,), 2 * reach + 1)
    across = torch.arange(width, device=images.device).expand(len(images), -1)
    if flips:
        across = torch.where(draws.integers((1,), 2) == 1, width - 1 - across, across)
    rows = (torch.arange(height, device=images.device) + down)[:, None, :, None]
    columns = (across + right)[:, None, None, :]
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[batch, channel, rows, columns]


def _code(described: object) -> str:
    """A hash of the source of a class that is not ours, which may be edited from one run to the next; ours is empty."""
    theirs = [
        kind for kind in type(described).__mro__ if kind.__module__.split(".")[0] not in ("lit_adv", "builtins", "abc")
    ]
    digest = hashlib.sha256()
    for kind in theirs:
        with contextlib.suppress(OSError, TypeError):  # made where there is no file, as in a notebook
            digest.update(inspect.getsource(inspect.getmodule(kind) or kind).encode())
    return digest.hexdigest() if theirs else ""


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
