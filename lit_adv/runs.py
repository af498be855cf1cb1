"""A run's folder: its name, its checkpoints, its metrics, what it was started with, and whether it may be resumed.

runs/cifar10/redrl/2026-11-20_10-15-00/
  config.yaml     the resolved config; `lightning test --config config.yaml --ckpt_path best` uses it again
  git.json        commit, versions and command
  metrics.csv     every logged number, one row a step
  checkpoints/    best.ckpt and last.ckpt
"""

import csv
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

# What shapes a network, so that weights of one do not fit the other; the class counts with `data` below.
ARCHITECTURE = (
    *("name", "num_classes", "image_size", "in_channels"),
    *("inputs", "width", "blocks", "recognizer", "feature_network", "feature_layer", "num_attacks"),
)
DATA_FACTS = ("num_classes", "in_channels", "image_size", "attack_classes")
# Differ between any two runs and change nothing of the result.
_INCIDENTAL = frozenset({"config", "ckpt_path", "run_dir", "untrained", "weights_only", "trainer.default_root_dir"})


class Checkpoint(ModelCheckpoint):
    """Keeps `best.ckpt` and `last.ckpt` in the run's `checkpoints` folder, the last also when the run is interrupted.

    Args:
        monitor: The logged number that decides what is best. None: the task's attribute `monitor`.
        mode: Whether more or less of it is better. None: the task's attribute `monitor_mode`, "max" without one.
        every_n_epochs: Save after so many epochs. None: after each, unless `every_n_train_steps` is given.
        every_n_train_steps: Save after so many steps instead.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: str | None = None,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
    ) -> None:
        if mode not in (None, "min", "max"):
            raise ValueError(f"Checkpoint: mode must be min or max, got {mode!r}")
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode or "max",
            save_last=True,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )
        self._mode_given = mode is not None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the folder from the run and what to monitor from the task."""
        self.dirpath = os.path.realpath(os.path.join(trainer.default_root_dir, "checkpoints"))
        self.monitor = self.monitor or getattr(pl_module, "monitor", None)
        if not self._mode_given and getattr(pl_module, "monitor_mode", "max") == "min":
            self.mode, self.kth_value = "min", torch.tensor(torch.inf)
        with warnings.catch_warnings():
            # a resumed run's folder is not empty
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, `last.ckpt` also after an epoch that is not the best (Lightning 2.6.6 leaves it at the best one)."""
        super().on_train_epoch_end(trainer, pl_module)
        due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end where it fell between two regular checkpoints; nothing in a `fast_dev_run`."""
        if getattr(trainer, "fast_dev_run", False):
            return  # which Lightning 2.6.6 forgets here
        super().on_train_end(trainer, pl_module)
        if self._every_n_train_steps >= 1 and trainer.global_step != self._last_global_step_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes `last.ckpt` when the user or the cluster stops a run that has begun to train.

        An error leaves the last regular checkpoint, as the state it struck may be what is wrong.
        """
        stopped = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not stopped or not fitting or getattr(trainer, "fast_dev_run", False) or not trainer.strategy.optimizers:
            return
        self.last_model_path = os.path.join(str(self.dirpath), "last.ckpt")
        # Trainer.save_checkpoint ends in a barrier, which a rank that was stopped elsewhere never reaches
        content = trainer._checkpoint_connector.dump_checkpoint(False)
        trainer.strategy.save_checkpoint(content, self.last_model_path)


class MetricsFile(Logger):
    """Writes every logged number to `metrics.csv`; a resumed or tested run goes on below what is there.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """Empty: the run's folder is the name."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the run's folder is the version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's `config.yaml` has them all."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keeps one row until the next `save`."""
        self._rows.append({"step": step, **{name: float(value) for name, value in metrics.items()}})

    @rank_zero_only
    def save(self) -> None:
        """Appends the rows; the file is rewritten only when a new column comes."""
        if not self._rows:
            return
        old: list[dict[str, Any]] = []
        if not self._columns and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file), [])
        new = sorted({name for row in self._rows for name in row} - set(self._columns))
        if new and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                old = list(csv.DictReader(file))
        if new:
            head = [name for name in ("step", "epoch") if name in {*new, *self._columns}]
            self._columns = head + [name for name in (*self._columns, *new) if name not in head]
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w" if new else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            if new:
                writer.writeheader()
            writer.writerows(old + self._rows)
        self._rows = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is left."""
        self.save()


class RunRecord(Callback):
    """Puts what the run was started with into its folder, logger and checkpoints, and notes how it was stopped.

    Args:
        folder: The run's folder.
        config: The resolved config as plain mappings, lists and scalars.
        text: The same as YAML, for `config.yaml`.
        facts: What the data say about themselves (see `data_facts`).
    """

    def __init__(self, folder: Path, config: dict[str, Any], text: str, facts: dict[str, Any]) -> None:
        self.folder, self.config, self.text, self.facts = folder, config, text, facts
        self.source = source_of_the_code()
        self.stopped_by: BaseException | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Agrees on rank 0's folder; rank 0 tells Weights & Biases."""
        folder = trainer.strategy.broadcast(str(self.folder))
        if folder != str(self.folder):
            # ranks that torchrun or SLURM started could not inherit it
            self.folder = Path(folder)
            vars(trainer)["_default_root_dir"] = folder
        if trainer.is_global_zero:
            # no collective may be in here (`trainer.log_dir` is one): the other ranks do not come
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.experiment.config.update({"cli": self.config, "source": self.source}, allow_val_change=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores config, data facts and source, for the checks when the run is resumed."""
        checkpoint["config"], checkpoint["data"], checkpoint["source"] = self.config, self.facts, self.source

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Notes it for the message at the end."""
        self.stopped_by = exception

    def write(self, folder: Path, subcommand: str) -> None:
        """Writes config and source to the folder, on one rank; beside a run's own, under the subcommand's name."""
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "" if subcommand == "fit" or not (folder / "config.yaml").exists() else f"_{subcommand}"
        (folder / f"config{suffix}.yaml").write_text(self.text, encoding="utf-8")
        source = json.dumps({**self.source, "command": sys.argv}, indent=2)
        (folder / f"git{suffix}.json").write_text(source + "\n", encoding="utf-8")


def new_folder(name: str, root: Path = Path("runs")) -> Path:
    """Makes `root/name/<date>_<time>`, with `-1`, `-2`, ... where another run began in the same second."""
    stamp = root / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    number = 0
    while True:
        folder = Path(f"{stamp}-{number}") if number else stamp
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has left something in the folder that another would overwrite."""
    return any((folder / "checkpoints").glob("*.ckpt"))


def data_facts(data: Any) -> dict[str, Any]:
    """Class count, channels, size and attack classes of a data module, those that it has."""
    facts = {name: getattr(data, name, None) for name in DATA_FACTS}
    return {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in facts.items() if v is not None}


def source_of_the_code() -> dict[str, Any]:
    """Versions, and the commit of the git checkout that lit_adv runs from (of the working directory for a wheel).

    `commit` and `dirty` are None where there is no commit to name.
    """
    for folder in (Path(__file__).parent, Path.cwd()):
        commit, changes = _git(folder, "rev-parse", "--verify", "HEAD"), _git(folder, "status", "--porcelain")
        if commit:
            break
    return {
        "commit": commit or None,
        "dirty": bool(changes) if commit and changes is not None else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("lit_adv", "torch", "torchvision", "pytorch-lightning")},
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, read as data only.

    Raises:
        FileNotFoundError: There is no such file; the message names those beside it.
        ValueError: The file is torn, or holds more than tensors and plain values.
    """
    if not path.is_file():
        there = ", ".join(str(p) for p in sorted(path.parent.glob("*.ckpt"))) or "none in that folder"
        raise FileNotFoundError(f"ckpt_path: {path} does not exist (checkpoints: {there})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"ckpt_path: {path} cannot be loaded safely ({reason})") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"ckpt_path: {path} is not a checkpoint of a run (it has no state_dict)")
    return content


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that differ between two plain configs: (dotted key, old, new); without those that change no result."""
    left, right = dict(_flatten(old)), dict(_flatten(new))
    keys = [key for key in (*left, *(k for k in right if k not in left)) if key not in _INCIDENTAL]
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def mismatches(
    checkpoint: dict[str, Any], config: dict[str, Any], facts: dict[str, Any], resume: bool
) -> list[tuple[str, Any, Any]]:
    """What makes a checkpoint unusable with a config: another architecture or class count and, to resume, another seed.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        config: The plain config of the new run.
        facts: `data_facts` of the new run, empty where they are not known yet.
        resume: Whether training goes on from the checkpoint.

    Returns:
        (key, value in the checkpoint, value now).
    """
    # a checkpoint of plain Lightning has no config
    found = [
        (key, before, now)
        for key, before, now in differences(checkpoint.get("config", config), config)
        if key == "model.class_path"
        or (key.startswith("model.init_args.") and key.rpartition(".")[2] in ARCHITECTURE and None not in (before, now))
        or (key == "seed_everything" and resume)
    ]
    if found and found[0][0] == "model.class_path":
        found = [entry for entry in found if not entry[0].startswith("model.init_args.")]
    known = checkpoint.get("data", {})
    shared = [name for name in DATA_FACTS if name in known and name in facts]
    return found + [(f"data: {name}", known[name], facts[name]) for name in shared if known[name] != facts[name]]


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list) and any(isinstance(item, dict) for item in content):
        for number, item in enumerate(content):
            yield from _flatten(item, f"{prefix}.{number}")
    else:
        same_as_none = content in ({}, []) or (isinstance(content, float) and math.isnan(content))
        yield prefix, None if same_as_none else content


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
