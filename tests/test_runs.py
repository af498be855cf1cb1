"""A run's folder, its metrics file, and the comparison of a checkpoint with a config."""

import csv
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, TensorDataset

from lit_adv import runs
from lit_adv.data.batches import OrderedBatches, ResumableLoader, ShuffledBatches, batches_trained


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_get_a_row_a_step_and_a_column_when_they_come(tmp_path):
    file = runs.MetricsFile(tmp_path / "run")
    file.log_metrics({"train/loss": 2.0, "epoch": 0}, step=0)
    file.save()
    file.log_metrics({"train/loss": 1.0, "epoch": 0}, step=1)
    file.log_metrics({"val/acc": 0.5, "epoch": 0}, step=1)
    file.finalize("success")
    path = tmp_path / "run" / "metrics.csv"
    assert path.read_text().splitlines()[0] == "step,epoch,train/loss,val/acc"
    assert [row["train/loss"] for row in rows(path)] == ["2.0", "1.0", ""]
    assert [row["val/acc"] for row in rows(path)] == ["", "", "0.5"]


def test_another_process_goes_on_below_what_is_there(tmp_path):
    for step in range(3):
        file = runs.MetricsFile(tmp_path)
        file.log_metrics({"loss": step, f"new{step}": 1.0}, step=step)
        file.save()
        file.save()
    found = rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in found] == ["0", "1", "2"]
    assert [row["loss"] for row in found] == ["0.0", "1.0", "2.0"]
    assert [row["new0"] for row in found] == ["1.0", "", ""]


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.time, "strftime", lambda form: "2026-01-02_03-04-05")
    folders = [runs.new_folder("cifar10/redrl", tmp_path) for _ in range(3)]
    assert [f.name for f in folders] == ["2026-01-02_03-04-05", "2026-01-02_03-04-05-1", "2026-01-02_03-04-05-2"]
    assert all(f.is_dir() and f.parent == tmp_path / "cifar10" / "redrl" for f in folders)


def test_the_end_is_saved_where_it_falls_between_two_checkpoints(tmp_path):
    class Task(pl.LightningModule):
        monitor = "loss"

        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = DataLoader(TensorDataset(torch.rand(10, 2)), batch_size=1)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        callbacks=[runs.Checkpoint(every_n_epochs=None, every_n_train_steps=4)], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Task(), loader)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10


class Hooks(pl.Callback):
    """Calls `reached` with the name of each hook and the epoch."""

    def __init__(self, reached):
        for name in self.NAMES:
            setattr(self, name, self.make(reached, name))

    NAMES = (
        *("on_fit_start", "on_train_epoch_start", "on_train_batch_end", "on_validation_start"),
        *("on_validation_batch_end", "on_validation_end", "on_train_epoch_end", "on_before_zero_grad"),
    )

    @staticmethod
    def make(reached, name):
        return lambda trainer, *rest, **named: reached(name, trainer.current_epoch)


class Rows(torch.utils.data.Dataset):
    """Rows by lists of numbers, as the samplers of `lit_adv.data.batches` ask for them."""

    def __init__(self, count):
        self.rows = torch.arange(count * 2.0).view(count, 2).sin()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, keys):
        return self.rows[torch.tensor(keys)]


class Resumed(pl.LightningModule):
    """Its second epoch is the best, but a validation that lacks a batch beats it."""

    monitor = "val/x"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        self.steps = []

    def training_step(self, batch, index):
        self.steps.append((self.current_epoch, index))
        return self.net(batch).square().mean()

    def on_validation_epoch_start(self):
        self.seen = 0

    def validation_step(self, batch, index):
        self.seen += len(batch)

    def on_validation_epoch_end(self):
        self.log("val/x", (0.1, 0.9, 0.5)[self.current_epoch] + (9 - self.seen))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def train_dataloader(self):
        sampler = ShuffledBatches(rows := Rows(12), 4, seed=0)
        return ResumableLoader(rows, sampler=sampler, progress=lambda: batches_trained(self.trainer))

    def val_dataloader(self):
        return ResumableLoader(rows := Rows(9), sampler=OrderedBatches(rows, 9, 3))


def fit(folder, *callbacks, resume=False, checkpoint=None, **settings):
    """A fit that may be stopped; the task, and whether it was."""
    task = Resumed()
    trainer = pl.Trainer(
        **{"max_epochs": 3, "logger": [runs.MetricsFile(folder)], **settings},
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[*callbacks, checkpoint or runs.Checkpoint()], default_root_dir=folder,
    )  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        trainer.fit(task, ckpt_path=folder / "checkpoints/last.ckpt" if resume else None, weights_only=True)
    except (SystemExit, SIGTERMException):
        return task, True
    finally:
        # Lightning and StopSignals leave them ignored, for the process to end
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return task, False


def stop_at(name, epoch, number=1):
    """Stops the run where a hook is reached for the given time in an epoch."""
    reached = []

    def stop(hook, now):
        reached.append((hook, now))
        if (hook, now) == (name, epoch) and reached.count((hook, now)) == number:
            raise KeyboardInterrupt

    return Hooks(stop)


def checkpoints(folder):
    return [torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")]


def same_weights(first, second):
    return all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The checkpoints of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert not fit(folder)[1]
    return checkpoints(folder)


@pytest.mark.parametrize(
    ("hook", "number"),
    [
        ("on_train_epoch_start", 1),
        ("on_train_batch_end", 1),
        ("on_train_batch_end", 3),
        ("on_validation_start", 1),
        ("on_validation_batch_end", 2),
        ("on_validation_end", 1),
        ("on_train_epoch_end", 1),
    ],
)
def test_a_run_that_is_stopped_anywhere_and_resumed_equals_one_that_was_not(tmp_path, whole, hook, number):
    first, stopped = fit(tmp_path, stop_at(hook, 1, number))
    assert stopped
    second, _ = fit(tmp_path, resume=True)
    assert first.steps + second.steps == [(epoch, batch) for epoch in range(3) for batch in range(3)]
    for mine, its in zip(checkpoints(tmp_path), whole, strict=True):
        assert (mine["epoch"], mine["global_step"]) == (its["epoch"], its["global_step"])
        assert same_weights(mine, its)
        (score,) = {state["best_model_score"].item() for key, state in mine["callbacks"].items() if "Check" in key}
        assert score == pytest.approx(0.9)
    found = {tuple(round(float(row[name]), 3) for name in ("step", "val/x")) for row in rows(tmp_path / "metrics.csv")}
    assert found == {(2, 0.1), (5, 0.9), (8, 0.5)}


def test_a_stop_before_a_resumed_run_has_restored_all_leaves_its_checkpoint(tmp_path):
    fit(tmp_path, stop_at("on_train_epoch_start", 1))
    before = (tmp_path / "checkpoints/last.ckpt").read_bytes()
    assert fit(tmp_path, stop_at("on_fit_start", 0), resume=True)[1]
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == before


@pytest.fixture
def ctrl_c():
    """Python's own handling, which a process in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_waits_for_its_end(tmp_path, ctrl_c, number):
    signals = runs.StopSignals()

    def kill(hook, epoch):
        if (hook, epoch) == ("on_before_zero_grad", 1):
            os.kill(os.getpid(), number)

    with signals.received():
        task, stopped = fit(tmp_path, Hooks(kill), signals)
    assert stopped
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    # the fourth step is whole: statistics, weights and count
    assert last["global_step"] == last["state_dict"]["net.1.num_batches_tracked"] == len(task.steps) == 4


def test_signals_outside_a_step_and_second_ones_do_not_wait(ctrl_c):
    signals = runs.StopSignals()
    with signals.received():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signals.on_train_batch_start(None, None, None, 0)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SIGTERMException):
            signals.on_train_batch_end(None, None, None, None, 0)
    assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_ctrl_c_is_left_to_the_rank_that_started_this_one(ctrl_c):
    with runs.StopSignals().received(by_rank_zero=True):
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with runs.StopSignals().received():
        signal.raise_signal(signal.SIGINT)


def test_steps_save_the_last_and_validations_the_best(tmp_path):
    saved = []

    class Checkpoint(runs.Checkpoint):
        def _save_checkpoint(self, trainer, path):
            super()._save_checkpoint(trainer, path)
            saved.append((os.path.basename(path), trainer.global_step))

    fit(tmp_path, checkpoint=Checkpoint(every_n_train_steps=2))
    assert [step for name, step in saved if name == "best.ckpt"] == [3, 6]
    assert {step for name, step in saved if name == "last.ckpt"} == {2, 3, 4, 6, 8, 9}
    best, _ = checkpoints(tmp_path)
    (state,) = (state for key, state in best["callbacks"].items() if "Check" in key)
    assert (best["global_step"], state["best_model_score"].item()) == (6, pytest.approx(0.9))
    with pytest.raises(ValueError, match="every_n_train_steps must be at least 1, got 0"):
        runs.Checkpoint(every_n_train_steps=0)


def test_best_is_the_least_where_the_task_says_so(tmp_path):
    trainer = SimpleNamespace(
        default_root_dir=str(tmp_path), is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda x: x)
    )
    for task, given, mode in (("min", None, "min"), ("min", "max", "max"), ("max", None, "max"), ("max", "min", "min")):
        checkpoint = runs.Checkpoint(mode=given)
        checkpoint.setup(trainer, SimpleNamespace(monitor="val/x", monitor_mode=task), "fit")
        assert (checkpoint.monitor, checkpoint.mode) == ("val/x", mode)
        assert checkpoint.dirpath == str((tmp_path / "checkpoints").resolve())
        checkpoint.save_top_k = 1
        checkpoint.best_k_models = {"a": torch.tensor(0.5)}
        checkpoint.kth_best_model_path = "a"
        trainer.strategy.reduce_boolean_decision = bool
        assert checkpoint.check_monitor_top_k(trainer, torch.tensor(0.4)) == (mode == "min")


OLD = {
    "seed_everything": 0,
    "model": {"class_path": "REDRL", "init_args": {"width": 64, "learning_rate": 1e-3, "num_attacks": None}},
    "data": {
        "init_args": {
            "seed": 0,
            "source": {"seed": 0, "validation": 8, "train_limit": None},
            "attacks": {"pgd": {"init_args": {"eps": 0.1}}},
        }
    },
    "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "A"}], "default_root_dir": "x"},
    "run_dir": "a",
}


def changed(**paths):
    new = json.loads(json.dumps(OLD))
    for path, value in paths.items():
        *parents, last = path.split("__")
        part = new
        for parent in parents:
            part = part[parent]
        part[last] = value
    return new


def test_differences_are_settings_not_places():
    new = changed(model__init_args__learning_rate=1e-2, run_dir="b", trainer__default_root_dir="y", ckpt_path="c")
    assert runs.differences(OLD, new) == [("model.init_args.learning_rate", 1e-3, 1e-2)]
    new = changed(trainer__callbacks=[{"class_path": "A"}, {"class_path": "B"}], data__init_args__attacks={"pgd": {}})
    assert runs.differences(OLD, new) == [
        ("data.init_args.attacks.pgd.init_args.eps", 0.1, None),
        ("trainer.callbacks.1.class_path", None, "B"),
    ]


@pytest.mark.parametrize(
    ("new", "facts", "resume", "expected"),
    [
        (changed(trainer__max_epochs=9), {}, True, []),
        (changed(model__init_args__width=8), {}, True, ["model.init_args.width"]),
        (changed(model__init_args__width=8), {}, False, ["model.init_args.width"]),
        (changed(model__init_args__num_attacks=6), {}, True, []),
        (changed(model={"class_path": "Other", "init_args": {"width": 3}}), {}, True, ["model.class_path"]),
        (changed(seed_everything=1), {}, True, ["seed_everything"]),
        (changed(seed_everything=1), {}, False, []),
        (changed(data__init_args__seed=1), {}, True, ["data.init_args.seed"]),
        (changed(data__init_args__seed=1), {}, False, []),
        (changed(data__init_args__source__seed=1), {}, True, ["data.init_args.source.seed"]),
        (changed(data__init_args__source__validation=9), {}, True, ["data.init_args.source.validation"]),
        (changed(data__init_args__source__train_limit=9), {}, True, ["data.init_args.source.train_limit"]),
        (changed(data__init_args__attacks__more={"init_args": {"seed": 1}}), {}, True, []),
        (OLD, {"num_classes": 10, "image_size": 64}, True, ["data: image_size"]),
        (OLD, {"num_classes": 200, "attack_classes": ["clean", "pgd"]}, True, ["data: num_classes"]),
    ],
)
def test_what_cannot_be_resumed(new, facts, resume, expected):
    checkpoint = {"config": OLD, "data": {"num_classes": 10, "image_size": 32}}
    found = runs.mismatches(checkpoint, new, facts, resume)
    assert [key for key, _, _ in found] == expected


def test_a_foreign_checkpoint_has_nothing_to_compare():
    assert runs.mismatches({}, OLD, {"num_classes": 3}, resume=False) == []


def test_the_source_names_commit_and_changes(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    monkeypatch.chdir(tmp_path)
    assert runs.source_of_the_code()["commit"] is None
    assert runs.source_of_the_code()["dirty"] is None
    (package / "runs.py").write_text("1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert runs.source_of_the_code()["commit"] == head
    assert runs.source_of_the_code()["dirty"] is False
    (package / "runs.py").write_text("2")
    assert runs.source_of_the_code()["dirty"] is True
    assert runs.source_of_the_code()["torch"] == torch.__version__.partition("+")[0]
    assert runs.source_of_the_code()["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
