"""The LightningCLI of lit_adv: how configs become a model, data and a trainer, and how a run is kept.

`lit_adv.cli` is the command around it.
"""

import importlib
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import pytorch_lightning as pl
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import register_type
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import BasePredictionWriter, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

# imported so that configs may say REDRL for lit_adv.tasks.REDRL
import lit_adv.attacks
import lit_adv.callbacks
import lit_adv.data
import lit_adv.tasks
from lit_adv import bolts, ranks, runs, slurm, trust
from lit_adv.attacks import Attack, Radius, Region
from lit_adv.compose import ConfigError, compose, display_name, expand_arguments, is_packaged, load_text
from lit_adv.diagnosis import explain, is_deliberate, message_of, nearest, refused_nulls, tree_of
from lit_adv.html_report import write_report
from lit_adv.tasks.finite import FiniteTraining

# How the ranks that Lightning starts learn rank 0's folder.
_FOLDER_VARIABLE = "LIT_ADV_RUN_DIR"
# Ways to start processes, in names of strategies, in which what this command puts around a run would be lost.
_IN_PYTHON_ALONE = ("spawn", "fork", "notebook")
# Stands for the run's folder anywhere in a config.
_FOLDER_MARK = "<run>"


class Stopped(Exception):
    """The user or the cluster stopped the run; the message says how to go on, `code` is the process's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run(arguments: list[str], instead: Callable[["AdvCLI"], None] | None = None) -> "AdvCLI":
    """Parses a command line such as `["fit", "--config", "configs/cifar10/redrl.yaml"]` and runs it.

    Args:
        arguments: The subcommand and its options.
        instead: Called in place of the trainer's method, with everything made; nothing is then kept of the run.

    Raises:
        ConfigError: The config or the command line cannot be used.
        Stopped: Ctrl-C or SIGTERM.
    """
    subcommand, *rest = arguments
    allow_any = trust.FLAG in rest
    expanded, files = expand_arguments([argument for argument in rest if argument != trust.FLAG])
    if bolts.bolts_available() and any("pl_bolts." in argument for argument in expanded):
        bolts.import_bolts()
    _quieten()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    register_type(Radius, serializer=float, deserializer=Radius)
    tree = _tree(expanded)
    named = [*_class_names(tree), *(_dotted(tree) if allow_any else ())]
    is_rank_zero = int(getattr(rank_zero_only, "rank", 0) or 0) == 0
    if is_rank_zero:
        for file in files:
            if is_packaged(file):
                print(f"config: {file} (installed with lit_adv)", file=sys.stderr)
    signals = runs.StopSignals()
    by_rank_zero = _FOLDER_VARIABLE in os.environ and not is_rank_zero
    with trust.only_known_classes(named, allow_any), signals.received(by_rank_zero=by_rank_zero):
        _import_modules(tree)
        for base in (Attack, Region):
            _resolve_annotations(base)
        try:
            return AdvCLI([subcommand, *expanded], files, signals, instead)
        except SIGTERMException as error:
            if signals.warned:
                raise Stopped(
                    f"stopped by SIGUSR1 before there was anything to save, {slurm.requeue(None)}", 138
                ) from error
            raise Stopped("stopped by SIGTERM before there was anything to save", 143) from error


class AdvCLI(LightningCLI):
    """LightningCLI with a folder a run, checks before resuming, and errors that name the nearest valid key.

    Args:
        arguments: The subcommand and its options, configs composed to text.
        files: The config files that were given, for the run's name.
        signals: Receives Ctrl-C and SIGTERM.
        instead: Called in place of the trainer's method.
    """

    def __init__(
        self,
        arguments: list[str],
        files: list[Path],
        signals: runs.StopSignals,
        instead: Callable[["AdvCLI"], None] | None = None,
    ) -> None:
        self.instead = instead
        self.arguments, self.files, self.signals = arguments, files, signals
        self.folder = Path()
        self.record: runs.RunRecord | None = None
        self._made_folder = False
        try:
            super().__init__(
                pl.LightningModule,
                pl.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                trainer_defaults={"inference_mode": False, "num_sanity_val_steps": 0},
                parser_class=_Parser,
                # abbreviations would let a typo pass
                parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False, "description": "lit_adv"},
                auto_configure_optimizers=False,
                # RunRecord does it: without collectives, and under the names of this package
                save_config_callback=None,
                seed_everything_default=0,
                args=arguments,
            )
        finally:
            self._remove_empty_folder()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what every subcommand has beside trainer, model and data."""
        parser.add_argument("--vars", type=dict, default={}, help="Free values for ${vars.name} in configs.")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run's folder, in place of a new one; <run> stands for it anywhere in a config.",
        )
        parser.add_argument(
            "--untrained",
            type=bool,
            default=False,
            help="Evaluate a model as it is initialised.",
        )
        parser.add_lightning_class_args(runs.Checkpoint, "checkpoint")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods and the arguments that the config supplies in another way."""
        return LightningCLI.subcommands()

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, with one readable message for what is wrong."""
        subcommand, *rest = args
        try:
            self.config = parser.parse_args(args)
        except _ParserError as error:
            refused = trust.refused_in(str(error))
            if refused is not None:
                raise ConfigError(trust.refusal(refused)) from error
            raise ConfigError(explain(str(error), self._parser(subcommand), _tree(rest))) from error
        except OmegaConfBaseException as error:
            raise ConfigError(_interpolation_message(error, subcommand, _tree(rest))) from error
        for group in ("trainer", "checkpoint"):
            value = self.options.get(group)
            if not isinstance(value, Namespace):
                # the parser takes anything for a group of options
                raise ConfigError(f"{group}: must be a mapping of options, name: value, got {value!r:.80}")
        seed = self.options.get("seed_everything")
        if type(seed) is int and not 0 <= seed < 1 << 32:
            raise ConfigError(f"seed_everything: must be in [0, {(1 << 32) - 1}], which numpy takes, got {seed}")
        wrong = next(refused_nulls(self.options), None)
        if wrong is not None:
            raise ConfigError(wrong)

    def _parse_ckpt_path(self) -> None:
        """Nothing: the command line is in charge, not what the checkpoint stored (Lightning #21455)."""

    @property
    def options(self) -> Namespace:
        """The parsed config of the subcommand."""
        options: Namespace = self.config[self.config["subcommand"]]
        return options

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes and speaks for all."""
        return int(getattr(rank_zero_only, "rank", 0) or 0) == 0

    def before_instantiate_classes(self) -> None:
        """Everything that can be refused before a class is made or a file of data is read."""
        options, fitting = self.options, self.subcommand == "fit"
        self._check_strategy()
        given = self._moved_folder() or options.run_dir or options.trainer.get("default_root_dir")
        options.run_dir, options.trainer.default_root_dir = given, None
        if options.get("weights_only") is None:
            options.weights_only = True
        if options.ckpt_path in ("last", "best", "auto"):
            if given is None:
                raise ConfigError(
                    f"ckpt_path: {options.ckpt_path!r} is a checkpoint of the run's folder, which is not given (add "
                    f"--run_dir DIR, or use --config DIR/config.yaml, or give the file)"
                )
            options.ckpt_path = self._kept_checkpoint(Path(given) / "checkpoints", options.ckpt_path)
        if fitting and self.instead is None:
            self._refuse_to_overwrite(given)
        elif (
            self.instead is None
            and not fitting
            and not options.ckpt_path
            and not options.untrained
            and not _get(options.model, "weights")
            and _needs_weights(options.model)
        ):
            raise ConfigError(self._needs_checkpoint(given))
        self._check_victims()
        self._checkpoint = self._read_checkpoint()
        if not fitting:
            # an evaluation keeps no best checkpoint, and needs no state of what chose it
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
            self._take_from_checkpoint()
        self._compare(facts={})
        self._choose_folder(given)
        self._saved = self._resolved()

    def instantiate_classes(self) -> None:
        """Makes the objects, with the run's folder in place of `<run>`; the saved config keeps the mark."""
        config, self.config = self.config, _replace(self.config.clone(), _FOLDER_MARK, str(self.folder))
        try:
            super().instantiate_classes()
        except ValueError as error:
            # a constructor that refuses its arguments, ours or a user's
            if is_deliberate(error):
                raise ConfigError(message_of(error)) from error
            raise
        finally:
            self.config = config
        facts = runs.data_facts(self.datamodule)
        self._compare(facts)
        self._check_head(facts)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A trainer that keeps everything in the run's folder and logs to its `metrics.csv` in any case."""
        trainer = self._get(self.config_init, "trainer")
        logger = trainer.get("logger")
        loggers = [] if logger in (None, True, False) else logger if isinstance(logger, list) else [logger]
        callbacks = trainer.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if trainer.get("enable_progress_bar") is False:
            # the configs name a bar, which Lightning would refuse to leave out
            callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
        text, plain = self._saved
        self.record = runs.RunRecord(self.folder, plain, text, runs.data_facts(self.datamodule))
        try:
            return super().instantiate_trainer(
                default_root_dir=str(self.folder),
                logger=False if logger is False else [*loggers, runs.MetricsFile(self.folder)],
                # a task of ours brings its own of these; one of somebody else's has it from here
                callbacks=[*callbacks, self.record, self.signals, FiniteTraining()],
                **kwargs,
            )
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            # Lightning checks devices, strategy and plugins here
            raise ConfigError(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        """Prints where the run is kept and, on resuming, what differs; dates what an evaluation logs."""
        if self._checkpoint and self.subcommand != "fit":
            # Lightning logs an evaluation at step 0, also one of trained weights
            loop = self.trainer.fit_loop
            loop.epoch_progress.current.completed = int(self._checkpoint.get("epoch", 0))
            loop.epoch_loop._batches_that_stepped = int(self._checkpoint.get("global_step", 0))
        if not self.is_rank_zero or self.instead is not None:
            return
        print(f"run folder: {self.folder}", flush=True)
        if self._checkpoint and self.subcommand == "fit":
            self._print_differences()

    def after_fit(self) -> None:
        """Prints the run's folder and its best checkpoint with the score, or the last where no validation was run."""
        if not self.is_rank_zero or self.options.trainer.fast_dev_run:
            return
        print(f"run folder: {self.folder}", flush=True)
        kept = next((c for c in self.trainer.checkpoint_callbacks if isinstance(c, runs.Checkpoint)), None)
        name = "best" if kept is not None and kept.best_model_path else "last"
        path = self.folder / "checkpoints" / f"{name}.ckpt"
        if kept is None or not path.is_file():
            return
        score = f" (no validation was run: there is no {kept.monitor} to choose the best by)" if name == "last" else ""
        if name == "best" and kept.best_model_score is not None:
            score = f" ({kept.monitor} {float(kept.best_model_score):.4f})"
        print(f"{name} checkpoint: {os.path.relpath(path)}{score}")
        config = shlex.quote(str(self.folder / "config.yaml"))
        print(f"test it with: lightning test{_flag()} --config {config} --ckpt_path {name}", flush=True)

    def after_predict(self) -> None:
        """Says where predictions are, if anywhere."""
        writers = (BasePredictionWriter, lit_adv.callbacks.IdentificationWriter, lit_adv.callbacks.AdversarialWriter)
        kept = any(isinstance(callback, writers) for callback in getattr(self.trainer, "callbacks", []))
        if self.is_rank_zero and not kept:
            print(
                "the predictions were not kept (a BasePredictionWriter of Lightning's in trainer.callbacks keeps them)"
            )

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            # nobody takes what `predict` returns, and all of it would have to fit into memory
            arguments["return_predictions"] = False
        return arguments

    def _run_subcommand(self, subcommand: str) -> None:
        if self.instead is not None:
            self.instead(self)
            return
        if self.is_rank_zero and self.record is not None and not self.options.trainer.fast_dev_run:
            self.record.write(self.folder, subcommand)
        with _in_environment(_FOLDER_VARIABLE, str(self.folder)):
            try:
                with self._rank_watch().watching():
                    super()._run_subcommand(subcommand)
                self._write_report()
            except ranks.LostRank as error:
                raise Stopped(str(error), error.code) from error
            except MisconfigurationException as error:
                raise ConfigError(str(error)) from error
            except SystemExit as error:
                stopped_by = self.record.stopped_by if self.record else None
                if isinstance(stopped_by, KeyboardInterrupt):
                    self._say_how_to_go_on("interrupted", 130, error)
                if isinstance(stopped_by, SIGTERMException):
                    if self.signals.warned:
                        said = slurm.requeue(self.trainer) if self.is_rank_zero else "requeued by rank 0"
                        self._say_how_to_go_on(f"stopped by SIGUSR1, {said}", 138, error)
                    self._say_how_to_go_on("stopped by SIGTERM", 143, error)
                raise

    def _write_report(self) -> None:
        """Writes the run's page, without which the run is as good as with it."""
        if not self.is_rank_zero or self.record is None or self.options.trainer.fast_dev_run:
            return
        try:
            print(f"report: {os.path.relpath(write_report(self.folder))}", flush=True)
        except OSError as error:
            print(f"report: not written: {error} (later: lightning report {self.folder})", file=sys.stderr)

    def _check_strategy(self) -> None:
        strategy = self.options.trainer.get("strategy")
        if isinstance(strategy, str) and strategy.startswith("ddp_") and strategy.split("_")[1] in _IN_PYTHON_ALONE:
            plain = "_".join(part for part in strategy.split("_") if part not in _IN_PYTHON_ALONE)
            raise ConfigError(
                f"trainer.strategy: {strategy} copies one process, and is for notebooks and Python alone"
                f" (--trainer.strategy={plain} starts each by the command line)"
            )

    def _rank_watch(self) -> ranks.RankWatch:
        def stopped() -> bool:
            by = self.record.stopped_by if self.record else None
            return isinstance(by, (KeyboardInterrupt, SIGTERMException))

        return ranks.RankWatch(lambda: getattr(self.trainer.strategy.launcher, "procs", ()), self._advice, stopped)

    def _advice(self) -> str:
        """How to go on after another process has ended, from the last regular checkpoint."""
        command = self._command()
        if self.subcommand != "fit":
            return f"start again: {command}" if self.subcommand == "predict" else ""
        last = self.folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            return f"the last checkpoint is {last}\nresume with: {command} --ckpt_path last"
        return f"there is no checkpoint yet; crafted images are kept in the cache\nstart again: {command}"

    def _command(self) -> str:
        return f"lightning {self.subcommand}{_flag()} --config {shlex.quote(str(self.folder / 'config.yaml'))}"

    def _say_how_to_go_on(self, what: str, code: int, error: BaseException) -> NoReturn:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command = self._command()
        last = self.folder / "checkpoints" / "last.ckpt"
        if self.subcommand != "fit":
            message = f"{what}"
        elif last.is_file():
            trainer = self.trainer
            # a resumed run knows where it is once all is restored
            where = f" in epoch {trainer.current_epoch}, step {trainer.global_step}" if trainer.global_step else ""
            message = f"{what}{where}; a checkpoint is left: {last}\nresume with: {command} --ckpt_path last"
        else:
            message = (
                f"{what} before the first training step; crafted images are kept in the cache\nstart again: {command}"
            )
        raise Stopped(message, code) from error

    def _kept_checkpoint(self, folder: Path, name: str) -> str | None:
        """The file that `last`, `best` or `auto` means; None where `auto` finds no run to go on with.

        Raises:
            ConfigError: `auto` for something else than training.
        """
        if name != "auto":
            return str(folder / f"{name}.ckpt")
        if self.subcommand != "fit":
            raise ConfigError(f"ckpt_path: 'auto' is for fit (lightning {self.subcommand} takes best, last or a file)")
        path = folder / "last.ckpt"
        if path.is_file():
            return str(path)
        if self.is_rank_zero and self.instead is None:
            print(f"ckpt_path auto: {path} does not exist yet, the run starts from the beginning", flush=True)
        return None

    def _moved_folder(self) -> str | None:
        """The folder of the run whose `config.yaml` says the `run_dir`, wherever it was copied or moved."""
        if any(argument.partition("=")[0] == "--run_dir" for argument in self.arguments):
            return None
        file = next((file for file in reversed(self.files) if compose(file).get("run_dir")), None)
        is_of_a_run = file is not None and file.name == "config.yaml" and (file.parent / "checkpoints").is_dir()
        return str(file.parent) if file is not None and is_of_a_run else None

    def _refuse_to_overwrite(self, given: str | None) -> None:
        folder = Path(given) if given else None
        if (
            folder is None
            or not self.is_rank_zero
            or self.options.trainer.fast_dev_run
            or not runs.has_checkpoints(folder)
        ):
            return
        checkpoints = (folder / "checkpoints").resolve()
        if not self.options.ckpt_path or Path(self.options.ckpt_path).resolve().parent != checkpoints:
            raise ConfigError(
                f"run_dir: {folder} already holds the checkpoints of a run (resume it with --ckpt_path last, or start "
                f"a new run elsewhere with --run_dir DIR)"
            )

    def _check_head(self, facts: dict[str, Any]) -> None:
        """Refuses to evaluate ImageNet's weights with a head for other classes, which is drawn at random."""
        options = self.options
        evaluating = self.subcommand != "fit" and not options.ckpt_path and not options.untrained
        classes = _get(options.model, "num_classes") or facts.get("num_classes")
        if evaluating and _get(options.model, "weights") == "imagenet" and classes != 1000:
            raise ConfigError(
                f"{self._needs_checkpoint(options.run_dir)}: the head for {classes} classes is not ImageNet's"
            )

    def _needs_checkpoint(self, given: str | None) -> str:
        there = Path(given) / "checkpoints" / "best.ckpt" if given else None
        hint = f"--ckpt_path best takes {there}" if there and there.is_file() else "give --ckpt_path FILE"
        return (
            f"{self.subcommand}: {self.options.model.class_path.rpartition('.')[2]} needs trained weights ({hint}; "
            f"--untrained=true evaluates it as it is initialised)"
        )

    def _check_victims(self) -> None:
        victims = _get(self.options.data, "victims")
        missing = {
            name: Path(path)
            for name, path in (victims.items() if isinstance(victims, dict) else ())
            if isinstance(path, str) and not Path(path).is_file()
        }
        if not missing:
            return
        makers = self._victim_configs()
        lines = []
        for name, path in missing.items():
            command = makers.get(os.path.normpath(path.parent.parent))
            how = (
                f"lightning fit --config {command}" if command else "lightning fit with a config of a VictimClassifier"
            )
            lines.append(f"data.victims.{name}: {path} does not exist; make it with: {how}")
        raise ConfigError("\n".join(lines))

    def _victim_configs(self) -> dict[str, str]:
        """The folder a victim's config trains in -> the file."""
        places = {place for file in self.files for place in (file.parent, *file.parent.parents[:2])}
        found = {}
        for file in sorted({f for place in places for f in (place / "victims").glob("*.yaml")}):
            folder = compose(file).get("run_dir")
            if isinstance(folder, str):
                found[os.path.normpath(folder)] = display_name(file)
        return found

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self.options.ckpt_path
        if not path or "://" in path or path in ("hpc", "registry") or path.startswith("registry:"):
            return None
        try:
            content = runs.read_checkpoint(Path(path))
        except (OSError, ValueError) as error:
            raise ConfigError(str(error)) from error
        kept = ("config", "data", "epoch", "global_step", "hyper_parameters", "classifier")
        return {key: content[key] for key in kept if key in content}

    def _take_from_checkpoint(self) -> None:
        """Gives the model that is evaluated the checkpoint's value of each plain field that nobody has named."""
        model, checkpoint = self.options.model, self._checkpoint or {}
        trained = checkpoint.get("config", {}).get("model", {})
        arguments = model.get("init_args")
        same = trained.get("class_path", model.class_path) == model.class_path or self._takes_classifier()
        if not same or not isinstance(arguments, Namespace):
            return
        named = _tree(self.arguments[1:]).get("model")
        named = named if isinstance(named, dict) else {}
        named = {**named, **(named.get("init_args") or {})}
        # a run's config has null where the run has found the value in its data
        open_then = {name for name, value in (trained.get("init_args") or {}).items() if value is None}
        named = {name: value for name, value in named.items() if value is not None or name not in open_then}
        for field, value in checkpoint.get("hyper_parameters", {}).items():
            if field in arguments and field not in named and isinstance(value, bool | int | float | str | list | None):
                arguments[field] = value

    def _takes_classifier(self) -> bool:
        """Whether the config's task can evaluate the checkpoint's classifier, whichever task has trained it."""
        if self.subcommand == "fit" or "classifier" not in (self._checkpoint or {}):
            return False
        module, _, name = self.options.model.class_path.rpartition(".")
        found = getattr(importlib.import_module(module), name, None)
        return isinstance(found, type) and issubclass(found, lit_adv.tasks.VictimClassifier)

    def _compare(self, facts: dict[str, Any]) -> None:
        if not self._checkpoint:
            return
        wrong = runs.mismatches(self._checkpoint, self._resolved()[1], facts, resume=self.subcommand == "fit")
        if self._takes_classifier():
            wrong = [entry for entry in wrong if entry[0] != "model.class_path"]
        if wrong:
            listed = "; ".join(f"{key} is {old} in the checkpoint and {new} now" for key, old, new in wrong)
            raise ConfigError(
                f"ckpt_path: {self.options.ckpt_path} does not fit this config: {listed} (give the checkpoint's "
                f"values, or start without --ckpt_path)"
            )

    def _print_differences(self) -> None:
        assert self._checkpoint is not None
        old = self._checkpoint.get("config")
        if old is None:
            print(f"{self.options.ckpt_path} holds no config: what differs from the run it is of cannot be told")
            return
        changed = runs.differences(old, self._resolved()[1])
        print(f"resuming from {self.options.ckpt_path} (epoch {self._checkpoint.get('epoch', '?')})")
        if changed:
            print("settings that differ from the checkpoint's:")
            print("\n".join(f"  {key}: {before} -> {now}" for key, before, now in changed), flush=True)

    def _choose_folder(self, given: str | None) -> None:
        if given is not None:
            self.folder = Path(given)
        elif self.is_rank_zero:
            self.folder, self._made_folder = runs.new_folder(self._name()), True
        else:
            # ranks that Lightning started inherit it; RunRecord tells the others
            self.folder = Path(os.environ.get(_FOLDER_VARIABLE, f"runs/{self._name()}"))
        self.options.run_dir = str(self.folder)

    def _name(self) -> str:
        if not self.files:
            return str(self.options.model.class_path.rpartition(".")[2])
        parts = self.files[0].with_suffix("").parts
        if "configs" in parts[:-1]:
            return str(Path(*parts[len(parts) - parts[::-1].index("configs") :]))
        return parts[-1]

    def _resolved(self) -> tuple[str, dict[str, Any]]:
        options = self.options.clone()
        # a saved path would make every later use of the config start from it
        options.ckpt_path, options.untrained = None, False
        text = self._parser(self.subcommand).dump(options, skip_none=False, skip_validation=True)
        plain = load_text(text, "config")
        return text, plain

    def _remove_empty_folder(self) -> None:
        with suppress(OSError):
            for folder in (self.folder, *self.folder.parents[:-1]) if self._made_folder else ():
                folder.rmdir()


class _ParserError(Exception):
    """In place of the parser's own exit."""


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise _ParserError(message) from ex


def _flag() -> str:
    """What a command that goes on with this run must say too."""
    return f" {trust.FLAG}" if trust.FLAG in sys.argv else ""


def _tree(arguments: list[str]) -> dict[str, Any]:
    configs, rest = [], []
    given = iter(arguments)
    for argument in given:
        if argument == "--config":
            content = load_text(next(given), "--config")
            configs.append(content if isinstance(content, dict) else {})
        else:
            rest.append(argument)
    return tree_of(configs, rest)


def _interpolation_message(error: OmegaConfBaseException, subcommand: str, tree: dict[str, Any]) -> str:
    where = str(error.full_key or "").removeprefix(f"{subcommand}.")
    text = str(error.msg or error).splitlines()[0]
    wanted = text.partition("resolved to '")[2].partition("'")[0].removeprefix(f"{subcommand}.")
    if not wanted:
        return f"{where}: {text}"
    if wanted.startswith("vars."):
        return f"{where}: ${{{wanted}}} has no value (add --{wanted}=VALUE)"
    known = [".".join(path) for path in _paths(tree)]
    beside = [name for name in known if name.rpartition(".")[0] == wanted.rpartition(".")[0]]
    return f"{where}: ${{{wanted}}} refers to nothing in the config; {nearest(wanted, beside or known)}"


def _paths(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*path, str(key))
        yield from _paths(value, (*path, str(key)))


def _get(config: Any, name: str) -> Any:
    arguments = config.get("init_args") if isinstance(config, (Namespace, dict)) else None
    return arguments.get(name) if isinstance(arguments, (Namespace, dict)) else None


def _needs_weights(model: Namespace) -> bool:
    """Whether the task has weights, as all have but those that say otherwise."""
    module, _, name = model.class_path.rpartition(".")
    return bool(getattr(getattr(importlib.import_module(module), name, None), "needs_weights", True))


def _replace(value: Any, mark: str, text: str) -> Any:
    if isinstance(value, str):
        return value.replace(mark, text)
    if isinstance(value, Namespace):
        for key, inner in vars(value).items():
            setattr(value, key, _replace(inner, mark, text))
        return value
    if isinstance(value, dict):
        return {key: _replace(inner, mark, text) for key, inner in value.items()}
    return [_replace(inner, mark, text) for inner in value] if isinstance(value, list) else value


@contextmanager
def _in_environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _import_modules(tree: dict[str, Any]) -> None:
    """Imports the modules of the classes that a config names, so that `_resolve_annotations` finds a user's own."""
    for name in _class_names(tree):
        # the parser imports it again, and says what is wrong
        with suppress(Exception):
            importlib.import_module(name.rpartition(".")[0])


def _class_names(tree: Any, named: bool = False) -> Iterator[str]:
    for value in tree if isinstance(tree, list) else ():
        yield from _class_names(value)
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, str) and "." in value and (named or key == "class_path"):
            yield value
        yield from _class_names(value, named=key in ("attacks", "regions"))


def _dotted(tree: Any) -> Iterator[str]:
    """All values of a config that may be the name of something in a module."""
    if isinstance(tree, str):
        parts = tree.split(".")
        if len(parts) > 1 and all(part.isidentifier() for part in parts):
            yield tree
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for value in inner:
        yield from _dotted(value)


def _resolve_annotations(cls: type) -> None:
    """Puts types in place of the text that `from __future__ import annotations` leaves in dataclasses.

    jsonargparse evaluates the text of a dataclass's bases with the names of the class's own module, and takes any value
    where that fails.
    """
    subclass: Any
    for subclass in cls.__subclasses__():
        if "__init__" in vars(subclass):
            # a name that only type checkers import leaves the parser without types, as anywhere else
            with suppress(NameError):
                # a dataclass's fields in the modules they are of: a base's names may be unknown in the subclass's
                own = subclass if is_dataclass(subclass) else subclass.__init__
                hints = get_type_hints(own)
                given = subclass.__init__.__annotations__
                subclass.__init__.__annotations__ = {name: hints.get(name, kind) for name, kind in given.items()}
        _resolve_annotations(subclass)


def _quieten() -> None:
    """Drops messages that say nothing to a user of this command."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_news)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    # every run here has that callback, and a task of ours brings its own in its place
    replaced = "will override existing callbacks" in text and text.endswith(f": {FiniteTraining.__name__}")
    return "Tip:" not in text and not replaced
