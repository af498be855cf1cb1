"""A run's folder, its metrics file, and the comparison of a checkpoint with a config."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lit_adv import runs


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
    "data": {"init_args": {"attacks": {"pgd": {"init_args": {"eps": 0.1}}}}},
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
