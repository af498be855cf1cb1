"""A run's folder: its name, its checkpoints, its metrics, what it was started with, and whether it may be resumed.

runs/cifar10/redrl/2026-11-20_10-15-00/
  config.yaml     the resolved config; `lightning test --config config.yaml --ckpt_path best` uses it again
  git.json        commit, versions and command
  metrics.csv     every logged number, one row a step
  checkpoints/    best.ckpt and last.ckpt
"""

import csv
import errno
import io
import math
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lit_adv.files import append, remove_leftovers, replacing, write_json, write_rows

# What shapes a network, so that weights of one do not fit the other; the class counts with `data` below.
ARCHITECTURE = (
    *("name", "num_classes", "image_size", "in_channels"),
    *("inputs", "width", "blocks", "recognizer", "feature_network", "feature_layer", "num_attacks"),
)
DATA_FACTS = ("num_classes", "in_channels", "image_size", "attack_classes")
# What decides, under `data`, which images are trained on and how they are crafted.
_SPLIT = frozenset({"seed", "validation", "train_limit"})
# Differ between any two runs and change nothing of the result.
_INCIDENTAL = frozenset({"config", "ckpt_path", "run_dir", "untrained", "weights_only", "trainer.default_root_dir"})


class Checkpoint(ModelCheckpoint):
    """Keeps `best.ckpt` and `last.ckpt` in the run's `checkpoints` folder, the last also when the run is interrupted.

    Args:
        monitor: The logged number that decides what is best. None: the task's attribute `monitor`.
        mode: Whether more or less of it is better. None: the task's attribute `monitor_mode`, "max" without one.
        every_n_epochs: Save after so many epochs. None: after each.
        every_n_train_steps: Save `last.ckpt` after so many steps as well; what is best is known after a validation.
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
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(
                f"Checkpoint: every_n_train_steps must be at least 1, got {every_n_train_steps} (null saves no steps)"
            )
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode or "max",
            save_last=True,
            every_n_epochs=every_n_epochs,
            enable_version_counter=False,
        )
        self._mode_given = mode is not None
        self._steps_apart, self._step_saved = every_n_train_steps, 0
        # batches trained when this callback last had a validation's numbers
        self._judged_at: int | None = None
        self._begun = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the folder from the run and what to monitor from the task."""
        self._begun = False
        if type(getattr(trainer.strategy, "checkpoint_io", None)) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(Path(trainer.default_root_dir))
        self.dirpath = os.path.realpath(os.path.join(trainer.default_root_dir, "checkpoints"))
        self.monitor = self.monitor or getattr(pl_module, "monitor", None)
        if not self._mode_given and getattr(pl_module, "monitor_mode", "max") == "min":
            self.mode, self.kth_value = "min", torch.tensor(torch.inf)
        with warnings.catch_warnings():
            # a resumed run's folder is not empty
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Knows the best again, also in a folder that was copied or moved; a new folder has none yet."""
        here = str(self.dirpath)

        def moved(path: str) -> str:
            return os.path.join(here, os.path.basename(path)) if path else ""

        if os.path.isfile(moved(state_dict["best_model_path"])):
            paths = {name: moved(state_dict[name]) for name in ("best_model_path", "kth_best_model_path")}
            scores = {moved(path): score for path, score in state_dict["best_k_models"].items()}
            last = moved(state_dict["last_model_path"])
            super().load_state_dict(
                {**state_dict, **paths, "dirpath": here, "best_k_models": scores, "last_model_path": last}
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes that all is restored: what is saved from now on is no less than what was resumed."""
        super().on_train_start(trainer, pl_module)
        self._begun = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves `last.ckpt` where `every_n_train_steps` says so."""
        step, before = trainer.global_step, self._last_global_step_saved
        due = self._steps_apart is not None and step % self._steps_apart == 0 and step != self._step_saved
        if due and not getattr(trainer, "fast_dev_run", False):
            with _held(trainer):
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            # or the end of the epoch, in the same step, would be taken for saved
            self._step_saved, self._last_global_step_saved = step, before

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves where validation is not at the end of each epoch."""
        with _held(trainer):
            if not self._should_save_on_train_epoch_end(trainer):
                self._judged_at = _batches_trained(trainer)
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, `last.ckpt` also after an epoch that is not the best (Lightning 2.6.6 leaves it at the best one)."""
        with _held(trainer):
            self._judged_at = _batches_trained(trainer)
            super().on_train_epoch_end(trainer, pl_module)
            due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
            if due and not self._should_skip_saving_checkpoint(trainer):
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end where it fell between two regular checkpoints; nothing in a `fast_dev_run`."""
        if getattr(trainer, "fast_dev_run", False):
            return  # which Lightning 2.6.6 forgets here
        super().on_train_end(trainer, pl_module)
        if trainer.global_step != self._last_global_step_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts Lightning's counters into a state that it can go on from."""
        if trainer.state.fn == TrainerFn.FITTING:
            _make_resumable(checkpoint["loops"]["fit_loop"], trainer, self._judged_at == _batches_trained(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes `last.ckpt` when the user or the cluster stops a run that has begun to train.

        An error leaves the last regular checkpoint, as the state it struck may be what is wrong.
        """
        stopped = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not stopped or not fitting or getattr(trainer, "fast_dev_run", False) or not self._begun:
            return
        self.last_model_path = os.path.join(str(self.dirpath), "last.ckpt")
        # Trainer.save_checkpoint ends in a barrier, which a rank that was stopped elsewhere never reaches
        content = trainer._checkpoint_connector.dump_checkpoint(False)
        trainer.strategy.save_checkpoint(content, self.last_model_path)


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, and then puts it in its place.

    Lightning 2.6.6 writes to the folder for temporary files and copies from there if that is another disk: a kill or a
    full disk amid the copy would leave a torn `last.ckpt` and no other.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the file as a whole, and onto the disk.

        Raises:
            OSError: The disk is full; the old file is there still.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            # or a machine that loses power may have the new name and not the content
            os.fsync(file.fileno())


def _batches_trained(trainer: pl.Trainer) -> int:
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(total.processed)


def _make_resumable(loops: dict[str, Any], trainer: pl.Trainer, judged: bool) -> None:
    """Brings a checkpoint's counters to one of three states, from which Lightning 2.6.6 goes on as if never stopped.

    From others it leaves out a validation that was due, or runs only as many of its batches as were left (the first
    ones), takes an epoch that began for one that ended, or counts a step twice in the logs.

    Args:
        loops: The state of the fit loop.
        trainer: The run that is saved.
        judged: Whether the validation of the batches trained until now has been used.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    validated = loops["epoch_loop.val_loop.batch_progress"]
    loop, fetcher = trainer.fit_loop.epoch_loop, cast(Any, trainer.fit_loop._data_fetcher)
    epoch, here, length = epochs["current"], batches["current"]["processed"], trainer.num_training_batches
    # the states are: amid the batches of an epoch, before a validation, and between two epochs
    under_way = epoch["started"] > epoch["completed"] and here > 0
    due = under_way and (trainer.validating or loop._should_check_val_fx(fetcher))
    before_validation = due and not judged
    through = here == length or (length == math.inf and epoch["processed"] == epoch["started"])
    amid = under_way and (before_validation or not through)
    for name in ("total", "current"):
        # a batch without its step comes again; one with it misses no more than what is logged of it
        trained = batches[name]["processed"] if amid or name == "total" else 0
        batches[name] = dict.fromkeys(batches[name], trained)
        ended = epochs[name]["started"] - amid if under_way else epochs[name]["processed"]
        epochs[name] = {"ready": ended + amid, "started": ended + amid, "processed": ended, "completed": ended}
        # started, but not completed: Lightning's sign of a validation under way, here one that is at its first batch
        first = int(before_validation)
        validated[name] = {"ready": first, "started": first, "processed": 0, "completed": 0}
    # set when the last batch is fetched, which may not have been trained on
    batches["is_last_batch"], validated["is_last_batch"] = amid and through, False
    if trainer.lightning_module.automatic_optimization:
        # after a batch with a validation, what follows it comes again, and counts the batch
        again = amid and due and not loop._should_accumulate()
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step - again


class StopSignals(Callback):
    """Turns Ctrl-C, SIGTERM and SLURM's warning into an exception: at once, but a step and a checkpoint end first.

    The checkpoint of half a step would hold BatchNorm's statistics of a batch that the resumed run trains on again. A
    second signal does not wait. Of several ranks, rank 0 saves and ends, and its end is that of the others; a rank that
    ended sooner would leave rank 0 in the middle of its step.

    SIGUSR1 counts in a SLURM job only, which gets it before its time is up (`#SBATCH --signal=SIGUSR1@120`). Lightning
    leaves the signal to a handler that is there before its own, which would save in the middle of a step and go on.

    Attributes:
        warned: Whether it was SIGUSR1 that stopped the run: the job is to be put into the queue again.
    """

    def __init__(self) -> None:
        self.warned = False
        self._holding = False
        self._waiting: int | None = None
        self._handlers: dict[int, Any] = {}
        self._is_first = True
        self._told = False

    @contextmanager
    def received(self, by_rank_zero: bool = False) -> Iterator[None]:
        """Handles the signals, in the main thread.

        Args:
            by_rank_zero: Rank 0 started this process, and ends it: Ctrl-C, which reaches both, is left to rank 0.
        """
        handlers: dict[int, Any] = {
            signal.SIGINT: signal.SIG_IGN if by_rank_zero else self._receive,
            signal.SIGTERM: self._receive,
        }
        if "SLURM_JOB_ID" in os.environ:
            handlers[signal.SIGUSR1] = self._receive
        main = threading.current_thread() is threading.main_thread()
        # what is ignored, such as Ctrl-C in the background, stays so
        heard = [number for number in handlers if main and signal.getsignal(number) is not signal.SIG_IGN]
        self._handlers = {number: handlers[number] for number in heard}
        before = {number: signal.signal(number, handler) for number, handler in self._handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets signals wait for the end of the block."""
        self._holding = True
        yield
        self._release()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Learns which rank this is."""
        self._is_first = trainer.global_rank == 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes SIGTERM back from Lightning, whose handler starts a collective amid those of the step."""
        if signal.SIGTERM in self._handlers:
            signal.signal(signal.SIGTERM, self._handlers[signal.SIGTERM])

    on_validation_start = on_test_start = on_predict_start = on_train_start

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Lets signals wait; crafting, which takes longest, lies before."""
        self._holding = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raises what has waited."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lets nothing wait any more."""
        self._holding, self._waiting = False, None

    def _release(self) -> None:
        self._holding = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._raise(waiting)

    def _receive(self, number: int, frame: Any) -> None:
        if number != signal.SIGINT and not self._is_first and not self._told:
            self._told = True
        elif self._holding and self._waiting is None:
            self._waiting = number
        else:
            self._waiting = None
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        self.warned = number == signal.SIGUSR1
        # Lightning does the same with Ctrl-C while it shuts down
        for each in (signal.SIGTERM, signal.SIGUSR1):
            if each in self._handlers:
                signal.signal(each, signal.SIG_IGN)
        raise SIGTERMException


def _held(trainer: pl.Trainer) -> AbstractContextManager[None]:
    callbacks = getattr(trainer, "callbacks", [])
    signals = next((callback for callback in callbacks if isinstance(callback, StopSignals)), None)
    return signals.held() if signals else nullcontext()


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
        there = self.path.is_file()
        if not self._columns and there:
            _cut_torn_line(self.path)
            with self.path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file), [])
        new = sorted({name for row in self._rows for name in row} - set(self._columns))
        if new:
            head = [name for name in ("step", "epoch") if name in {*new, *self._columns}]
            columns = head + [name for name in (*self._columns, *new) if name not in head]
            old: list[dict[str, Any]] = []
            if there:
                with self.path.open(newline="", encoding="utf-8") as file:
                    old = list(csv.DictReader(file))
            write_rows(self.path, columns, [{name: row.get(name) for name in columns} for row in old + self._rows])
            self._columns = columns
        else:
            text = io.StringIO(newline="")
            csv.DictWriter(text, self._columns).writerows(self._rows)
            append(self.path, text.getvalue())
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
        with replacing(folder / f"config{suffix}.yaml") as path:
            path.write_text(self.text, encoding="utf-8")
        write_json(folder / f"git{suffix}.json", {**self.source, "command": sys.argv}, indent=2)


def _cut_torn_line(path: Path) -> None:
    """Takes off the end of a file that is no whole line: what a kill or a full disk has left."""
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


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
        # only a zip, torch's format, can be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        # zipfile seeks to before the beginning of what is damaged
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"ckpt_path: {path} is truncated or not a checkpoint (copy it again, or give another)"
        ) from error
    except pickle.UnpicklingError as error:
        # torch names what it refuses to build or to run; a damaged file can look the same
        what = "holds" if "unsupported" in str(error).lower() else "may hold"
        raise ValueError(
            f"ckpt_path: {path} cannot be loaded safely, since it {what} pickled objects that may run code (give a "
            f"checkpoint that lightning fit has written)"
        ) from error
    # a damaged pickle stops its reader in any way: KeyError, IndexError, EOFError, UnicodeDecodeError, ...
    except Exception as error:
        raise ValueError(
            f"ckpt_path: {path} is truncated or not a checkpoint (copy it again, or give another)"
        ) from error
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
    """What makes a checkpoint unusable with a config: another architecture or class count and, to resume, another seed
    or split of the data.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        config: The plain config of the new run.
        facts: `data_facts` of the new run, empty where they are not known yet.
        resume: Whether training goes on from the checkpoint.

    Returns:
        (key, value in the checkpoint, value now).
    """
    # a checkpoint of plain Lightning has no config
    old = checkpoint.get("config", config)
    shared = dict(_flatten(old)).keys() & dict(_flatten(config)).keys()
    found = [
        (key, before, now)
        for key, before, now in differences(old, config)
        if key == "model.class_path"
        or (key.startswith("model.init_args.") and key.rpartition(".")[2] in ARCHITECTURE and None not in (before, now))
        or (key == "seed_everything" and resume)
        # an attack that was added may have a seed of its own
        or (key.startswith("data.") and key.rpartition(".")[2] in _SPLIT and resume and key in shared)
    ]
    if found and found[0][0] == "model.class_path":
        found = [entry for entry in found if not entry[0].startswith("model.init_args.")]
    known = checkpoint.get("data", {})
    both = [name for name in DATA_FACTS if name in known and name in facts]
    return found + [(f"data: {name}", known[name], facts[name]) for name in both if known[name] != facts[name]]


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
