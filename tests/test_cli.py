"""The `lightning` command: parsing, run folders, resuming, errors and interruption."""

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from lit_adv import cli
from lit_adv.attacks import Attack


class CountingTask(pl.LightningModule):
    """A stand-in whose validation number falls from epoch to epoch, so that the first epoch is the best."""

    monitor = "val/acc"

    def __init__(self, width: int = 4, learning_rate: float = 0.1, fail: str | None = None, weights: str | None = None):
        super().__init__()
        if fail == "init":
            raise ValueError("CountingTask: fail must not be 'init'")
        self.save_hyperparameters()
        self.network = torch.nn.Linear(4, 3)

    def training_step(self, batch, index):
        if self.hparams["fail"] == "step":
            raise RuntimeError("a mistake in the program")
        if self.hparams["fail"] == "interrupt" and self.current_epoch == 1:
            raise KeyboardInterrupt
        return self.network(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("val/acc", 1.0 - 0.1 * self.current_epoch)

    def test_step(self, batch, index):
        self.log("test/acc", 0.5)

    def predict_step(self, batch, index):
        return self.network(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams["learning_rate"])


class CountingData(pl.LightningDataModule):
    """A stand-in with attacks and victims, as the adversarial data module has them."""

    seen: "CountingData"

    def __init__(
        self,
        attacks: dict[str, Attack] | None = None,
        victims: dict[str, torch.nn.Module | str] | None = None,
        num_classes: int = 3,
        note: str = "",
        seed: int = 0,
    ):
        super().__init__()
        self.attacks, self.note, self.num_classes = attacks or {}, note, num_classes
        self.attack_classes = ["clean", *dict.fromkeys(key.partition("/")[0] for key in self.attacks)]
        CountingData.seen = self

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Writer(pl.callbacks.BasePredictionWriter):
    """A stand-in that would keep predictions."""

    def __init__(self):
        super().__init__("batch")

    def write_on_batch_end(self, *arguments):
        pass


CONFIG = """
model: {class_path: CountingTask}
data:
  class_path: CountingData
  init_args:
    attacks:
      pgd/4: {class_path: PGD, init_args: {eps: 4/255, steps: 3}}
      deepfool: {class_path: DeepFool}
trainer: {max_epochs: 2, accelerator: cpu, devices: 1, enable_progress_bar: false, enable_model_summary: false}
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in this process, in an empty folder that holds `toy.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIT_ADV_DEBUG", raising=False)
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lightning", *map(str, arguments)])
        code = 0
        try:
            assert cli.main() is None  # the console script hands this to sys.exit
        except SystemExit as stop:
            code = stop.code or 0
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def toy(run, tmp_path):
    """Runs `fit` on the toy config with another YAML text laid on it."""

    def toy(text="", *arguments, subcommand="fit"):
        (tmp_path / "case.yaml").write_text(f"base: toy.yaml\n{text}")
        return run(subcommand, "--config", "case.yaml", *arguments)

    return toy


def folder_of(result):
    return next(line for line in result.out.splitlines() if line.startswith("run folder: ")).removeprefix(
        "run folder: "
    )


# the command


def test_version_and_overview_answer_without_torch():
    code = """
import sys
from lit_adv.cli import main
main()
assert not {"torch", "pytorch_lightning", "jsonargparse"} & set(sys.modules)
"""
    for option, words in (("--version", "lit_adv "), ("--help", "usage: lightning"), (None, "usage: lightning")):
        command = [sys.executable, "-c", code, *([option] if option else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    assert (
        "(pytorch-lightning 2."
        in subprocess.run(
            [sys.executable, "-m", "lit_adv", "--version"], capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.parametrize(
    ("word", "hint"), [("fitt", "did you mean fit?"), ("--config", "it comes first and is one of")]
)
def test_the_subcommand_comes_first(run, word, hint):
    result = run(word, "toy.yaml")
    assert result.code == 2
    assert hint in result.err


def test_help_of_a_subcommand_lists_the_options(run):
    result = run("fit", "--help")
    assert result.code == 0
    for option in ("--run_dir", "--checkpoint.monitor", "--trainer.max_epochs", "--ckpt_path"):
        assert option in result.out


# what a config means


def test_budgets_are_fractions_in_yaml_and_on_the_command_line(toy):
    changed = "--data.init_args.attacks.pgd/4.init_args.eps=6/255"
    assert toy("trainer: {fast_dev_run: true}").code == 0
    assert CountingData.seen.attacks["pgd/4"].eps == pytest.approx(4 / 255)
    assert toy("trainer: {fast_dev_run: true}", changed).code == 0
    attack = CountingData.seen.attacks["pgd/4"]
    assert attack.eps == pytest.approx(6 / 255)
    assert attack.steps == 3


def test_interpolation_follows_overrides(toy):
    text = "vars: {steps: 5}\ndata: {init_args: {attacks: {pgd/4: {init_args: {steps: '${vars.steps}'}}}}}"
    for arguments, steps in (((), 5), (("--vars.steps=7",), 7)):
        assert toy(text, "--trainer.fast_dev_run=true", *arguments).code == 0
        assert CountingData.seen.attacks["pgd/4"].steps == steps


def test_the_later_of_several_configs_and_options_wins(run, tmp_path):
    (tmp_path / "more.yaml").write_text("trainer: {max_epochs: 7, max_steps: 1}\nmodel: {init_args: {width: 5}}")
    command = ["fit", "--config", "toy.yaml", "--trainer.max_epochs=9", "--config", "more.yaml", "--model.width=6"]
    config = yaml.safe_load(run(*command, "--print_config").out)
    assert config["trainer"]["max_epochs"] == 7
    assert config["model"]["init_args"]["width"] == 6


def test_a_users_attack_in_a_file_of_its_own_has_types(toy, tmp_path, monkeypatch):
    # its base's types have names that the file does not know
    (tmp_path / "an_attack_of_mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from lit_adv.attacks import PGD\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class OfMine(PGD):\n"
        "    strength: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    attack = "{class_path: an_attack_of_mine.OfMine, init_args: {eps: 8/255, strength: %s}}"
    text = "data: {init_args: {attacks: {mine: " + attack + "}}}"
    known = toy(text % 2, "--trainer.fast_dev_run=true")
    assert known.code == 2
    assert "class_path: an_attack_of_mine.OfMine is of an_attack_of_mine, which is no known package" in known.err
    options = ("--allow-any-class", "--data.attacks.more=an_attack_of_mine.OfMine")
    assert toy(text % 2, "--trainer.fast_dev_run=true", *options).code == 0
    assert CountingData.seen.attacks["mine"].eps == pytest.approx(8 / 255)
    assert CountingData.seen.attacks["mine"].strength == 2
    assert "data.attacks.mine.strength: expected int, got strong" in toy(text % "strong").err


def test_null_takes_out_an_attack_or_a_victim(toy, run, tmp_path):
    def attacks(*arguments):
        result = toy("data: {init_args: {attacks: {pgd/8: PGD}}}", *arguments, "--trainer.fast_dev_run=true")
        assert result.code == 0, result.err
        return set(CountingData.seen.attacks)

    assert attacks() == {"pgd/4", "pgd/8", "deepfool"}
    assert attacks("--data.attacks.deepfool=null") == {"pgd/4", "pgd/8"}
    assert attacks("--data.init_args.attacks.pgd/8", "null", "--data.attacks.pgd/4.steps=2") == {"pgd/4", "deepfool"}
    assert attacks("--data.attacks.deepfool=null", "--data.attacks.deepfool=DeepFool") == attacks()
    (tmp_path / "more.yaml").write_text("data: {init_args: {attacks: {pgd/4: null}, victims: {a: null}}}")
    assert attacks("--config", "more.yaml") == {"pgd/8", "deepfool"}
    result = toy("", "--data.attacks.deepfol=null")
    assert result.code == 2
    assert "data.attacks.deepfol: null takes out what there is (did you mean deepfool?)" in result.err


def test_our_defaults(run):
    config = yaml.safe_load(run("fit", "--config", "toy.yaml", "--print_config").out)
    assert config["trainer"]["inference_mode"] is False
    assert config["trainer"]["num_sanity_val_steps"] == 0
    assert config["seed_everything"] == 0


# the run's folder


def test_a_run_is_kept_in_its_own_folder_which_is_printed(run, tmp_path):
    first, second = run("fit", "--config", "toy.yaml"), run("fit", "--config", "toy.yaml", "--model.width=5")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert folder_of(first) != folder_of(second)
    folder = tmp_path / folder_of(first)
    assert folder.parent == tmp_path / "runs" / "toy"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    made = {"config.yaml", "git.json", "metrics.csv", "report.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert files == made
    assert (
        "best checkpoint: " + str(folder.relative_to(tmp_path) / "checkpoints/best.ckpt (val/acc 1.0000)") in first.out
    )
    assert yaml.safe_load((folder / "config.yaml").read_text())["run_dir"] == folder_of(first)
    git = json.loads((folder / "git.json").read_text())
    assert {"commit", "dirty", "lit_adv", "torch", "command"} <= set(git)
    # the best is the first epoch, the last is the last: Lightning alone would leave both at the best
    steps = [
        torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")
    ]
    assert steps == [0, 1]


def test_a_config_below_configs_gives_the_folder_its_path(run, tmp_path):
    (tmp_path / "my" / "configs" / "digits").mkdir(parents=True)
    (tmp_path / "toy.yaml").rename(tmp_path / "my" / "configs" / "digits" / "job.yaml")
    result = run("fit", "--config", "my/configs/digits/job.yaml", "--trainer.max_epochs=1")
    assert folder_of(result).startswith("runs/digits/job/20")


def test_run_stands_for_the_folder_in_a_config_and_the_saved_config_keeps_it_so(toy, tmp_path):
    result = toy("run_dir: here\ndata: {init_args: {note: <run>/note}}")
    assert result.code == 0, result.err
    assert CountingData.seen.note == "here/note"
    assert yaml.safe_load((tmp_path / "here/config.yaml").read_text())["data"]["init_args"]["note"] == "<run>/note"


def test_an_existing_run_is_not_overwritten(run, tmp_path):
    assert run("fit", "--config", "toy.yaml", "--run_dir=here", "--trainer.max_epochs=1").code == 0
    before = (tmp_path / "here/checkpoints/last.ckpt").read_bytes()
    for arguments in ([], ["--ckpt_path", "here/config.yaml"]):
        result = run("fit", "--config", "toy.yaml", "--run_dir=here", *arguments)
        assert result.code == 2
        assert "--ckpt_path last" in result.err
        assert "--run_dir DIR" in result.err
    assert (tmp_path / "here/checkpoints/last.ckpt").read_bytes() == before


def test_a_failed_start_leaves_no_folder(toy, tmp_path):
    assert toy("model: {init_args: {fail: init}}").code == 2
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_validation_says_so_and_names_the_last_checkpoint(toy, run):
    result = toy("trainer: {check_val_every_n_epoch: 5}", "--run_dir=here")
    assert result.code == 0, result.err
    assert "last checkpoint: here/checkpoints/last.ckpt (no validation was run: there is no val/acc" in result.out
    assert "test it with: lightning test --config here/config.yaml --ckpt_path last\n" in result.out
    assert run("test", "--config", "here/config.yaml", "--ckpt_path=last").code == 0


def test_a_run_that_was_copied_is_another_one(run, trained, tmp_path):
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    (tmp_path / "here/checkpoints/best.ckpt").unlink()
    before = (tmp_path / "here/metrics.csv").read_text()
    result = run("test", "--config", "there/config.yaml", "--ckpt_path=best")
    assert result.code == 0, result.err
    assert folder_of(result) == "there"
    assert (tmp_path / "here/metrics.csv").read_text() == before
    assert folder_of(run("test", "--config", "there/config.yaml", "--untrained=true", "--run_dir=new")) == "new"


def test_an_evaluation_is_logged_at_the_step_of_its_checkpoint(run, trained, tmp_path):
    for command, name in (("test", "test/acc"), ("validate", "val/acc")):
        assert run(command, "--config", trained, "--ckpt_path=last").code == 0
        with (tmp_path / "here/metrics.csv").open(newline="") as file:
            row = list(csv.DictReader(file))[-1]
        assert (row["step"], row["epoch"]) == ("4", "1.0")
        assert row[name]


def test_predictions_are_not_piled_up(run, trained, monkeypatch):
    kept = []
    predict = pl.Trainer.predict
    noting = functools.wraps(predict)(lambda *given, **named: kept.append(predict(*given, **named)))
    monkeypatch.setattr(pl.Trainer, "predict", noting)
    result = run("predict", "--config", trained, "--ckpt_path=best")
    assert result.code == 0, result.err
    assert "the predictions were not kept" in result.out
    result = run("predict", "--config", trained, "--ckpt_path=best", "--trainer.callbacks=Writer")
    assert result.code == 0, result.err
    assert "not kept" not in result.out
    assert kept == [None, None]


@pytest.mark.parametrize("name", ["csv", "tensorboard", "wandb"])
def test_logger_fragments_write_beside_metrics_csv(run, tmp_path, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = run("fit", "--config", "toy.yaml", "--config", f"configs/loggers/{name}.yaml", "--run_dir=here")
    assert result.code == 0, result.err
    assert (tmp_path / "here/metrics.csv").read_text().startswith("step,epoch,val/acc\n")
    made = {"csv": "metrics.csv", "tensorboard": "tensorboard/events*", "wandb": "wandb/offline-run-*"}[name]
    assert list((tmp_path / "here").glob(made))


def test_fast_dev_run_keeps_nothing(run, tmp_path):
    result = run("fit", "--config", "toy.yaml", "--trainer.fast_dev_run=true")
    assert result.code == 0, result.err
    assert not (tmp_path / "runs").exists()


# checkpoints


@pytest.fixture
def trained(run):
    assert run("fit", "--config", "toy.yaml", "--run_dir=here").code == 0
    return "here/config.yaml"


def test_resuming_goes_on_and_prints_what_differs(run, trained, tmp_path):
    rows = (tmp_path / "here/metrics.csv").read_text().splitlines()
    result = run("fit", "--config", trained, "--ckpt_path=last", "--trainer.max_epochs=3", "--model.learning_rate=0.2")
    assert result.code == 0, result.err
    assert "  trainer.max_epochs: 2 -> 3\n  model.init_args.learning_rate: 0.1 -> 0.2\n" in result.out
    last = torch.load(tmp_path / "here/checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    assert last["config"]["model"]["init_args"]["learning_rate"] == 0.2
    again = (tmp_path / "here/metrics.csv").read_text().splitlines()
    assert again[: len(rows)] == rows
    assert len(again) == len(rows) + 1


def test_resuming_with_the_same_config_prints_no_difference(run, trained):
    assert "differ" not in run("fit", "--config", trained, "--ckpt_path=last").out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.width=9", "model.init_args.width is 4 in the checkpoint and 9 now"),
        ("--seed_everything=3", "seed_everything is 0 in the checkpoint and 3 now"),
        ("--data.seed=3", "data.init_args.seed is 0 in the checkpoint and 3 now"),
        ("--data.num_classes=4", "data: num_classes is 3 in the checkpoint and 4 now"),
        (
            "--data.attacks.fgsm=FGSM",
            "data: attack_classes is ['clean', 'pgd', 'deepfool'] in the checkpoint and "
            "['clean', 'pgd', 'deepfool', 'fgsm'] now",
        ),
    ],
)
def test_resuming_as_something_else_is_an_error(run, trained, argument, message):
    result = run("fit", "--config", trained, "--ckpt_path=last", argument)
    assert result.code == 2
    assert message in result.err


def test_the_command_line_beats_the_checkpoint(run, trained):
    command = ["test", "--config", trained, "--ckpt_path=best", "--model.learning_rate=0.7"]
    assert run(*command).code == 0
    attack = "--data.init_args.attacks.pgd/4.init_args.steps=9"
    assert run(*command, attack).code == 0
    assert CountingData.seen.attacks["pgd/4"].steps == 9


def test_what_no_config_names_comes_from_the_checkpoint(run, tmp_path):
    wide = ["--model.width=7", "--model.learning_rate=0.3", "--run_dir=wide"]
    assert run("fit", "--config", "toy.yaml", *wide).code == 0
    checkpoint = "--ckpt_path=wide/checkpoints/best.ckpt"
    result = run("test", "--config", "toy.yaml", checkpoint, "--model.learning_rate=0.1", "--run_dir=here")
    assert result.code == 0, result.err
    model = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())["model"]["init_args"]
    assert (model["width"], model["learning_rate"]) == (7, 0.1)
    result = run("test", "--config", "toy.yaml", checkpoint, "--model.init_args.width=8")
    assert "model.init_args.width is 7 in the checkpoint and 8 now" in result.err
    # to train on is another matter: there the config is in charge
    result = run("fit", "--config", "toy.yaml", checkpoint, "--run_dir=wide")
    assert "model.init_args.width is 7 in the checkpoint and 4 now" in result.err


def test_testing_with_another_seed_is_no_error_with_another_architecture_is(run, trained):
    assert run("test", "--config", trained, "--ckpt_path=best", "--seed_everything=3").code == 0
    result = run("test", "--config", trained, "--ckpt_path=best", "--model.width=9")
    assert result.code == 2
    assert "model.init_args.width is 4 in the checkpoint and 9 now" in result.err


def test_an_evaluation_in_the_run_leaves_its_config_beside_the_runs_own(run, trained, tmp_path):
    before = (tmp_path / trained).read_text()
    assert run("test", "--config", trained, "--ckpt_path=best", "--trainer.limit_test_batches=1").code == 0
    assert (tmp_path / trained).read_text() == before
    assert yaml.safe_load((tmp_path / "here/config_test.yaml").read_text())["trainer"]["limit_test_batches"] == 1


def test_evaluating_untrained_needs_a_word(run, trained):
    result = run("test", "--config", trained)
    assert result.code == 2
    assert "CountingTask needs trained weights (--ckpt_path best takes here/checkpoints/best.ckpt" in result.err
    assert run("test", "--config", "toy.yaml", "--untrained=true").code == 0


def test_weights_of_imagenet_are_trained_weights_for_its_classes_alone(run):
    command = ["test", "--config", "toy.yaml", "--model.weights=imagenet"]
    result = run(*command)
    assert result.code == 2
    assert "CountingTask needs trained weights" in result.err
    assert "the head for 3 classes is not ImageNet's" in result.err
    assert run(*command, "--data.num_classes=1000").code == 0
    assert run("test", "--config", "toy.yaml", "--model.weights=mine.pth").code == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nope.ckpt", None, "nope.ckpt does not exist (checkpoints: here/checkpoints/best.ckpt"),
        ("torn.ckpt", b"PK\x03\x04 torn", "torn.ckpt is truncated or not a checkpoint (copy it again"),
        ("empty.ckpt", b"", "empty.ckpt is truncated or not a checkpoint"),
        (
            "code.ckpt",
            {"state_dict": {}, "path": Path("x")},
            "code.ckpt cannot be loaded safely, since it holds pickled",
        ),
        ("list.ckpt", [1], "list.ckpt is not a checkpoint of a run"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(run, trained, tmp_path, name, content, message):
    path = tmp_path / "here/checkpoints" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    result = run("test", "--config", trained, "--ckpt_path", path.relative_to(tmp_path))
    assert result.code == 2
    assert message in result.err
    assert "weights_only" not in result.err


def test_best_and_last_need_a_run(run):
    result = run("test", "--config", "toy.yaml", "--ckpt_path=best")
    assert result.code == 2
    assert "add --run_dir DIR" in result.err


def test_a_missing_victim_is_named_with_the_command_that_trains_it(toy):
    victims = "{a: runs/cifar10/resnet50/checkpoints/best.ckpt, b: elsewhere.ckpt}"
    folder = "configs/cifar10"
    os.makedirs(f"{folder}/victims")
    with open(f"{folder}/victims/mine.yaml", "w") as file:
        file.write("run_dir: runs/cifar10/resnet50")
    with open(f"{folder}/job.yaml", "w") as file:
        file.write(f"base: ../../toy.yaml\ndata: {{init_args: {{victims: {victims}}}}}")
    result = toy("", "--config", f"{folder}/job.yaml")
    assert result.code == 2
    assert "make it with: lightning fit --config configs/cifar10/victims/mine.yaml" in result.err
    assert "data.victims.b: elsewhere.ckpt does not exist" in result.err


# bad configs

BAD = [
    ("trainer: {max_epoch: 1}", "trainer.max_epoch: no such option; did you mean max_epochs"),
    ("modle: 3", "modle: no such option; did you mean model?"),
    ("checkpoint: {montor: x}", "checkpoint.montor: no such option; did you mean monitor?"),
    (
        "model: {init_args: {learning_rat: 1}}",
        "CountingTask has no argument 'learning_rat'; did you mean learning_rate?",
    ),
    ("data: {init_args: {attack: 3}}", "CountingData has no argument 'attack'; did you mean attacks?"),
    (
        "data: {init_args: {attacks: {pgd/4: {init_args: {epss: 4/255}}}}}",
        "data.attacks.pgd/4.epss: PGD has no argument 'epss'; did you mean eps",
    ),
    (
        "trainer: {callbacks: [{class_path: ModelSummary, init_args: {maxdepth: 1}}]}",
        "trainer.callbacks.0.maxdepth: ModelSummary has no argument 'maxdepth'; did you mean max_depth?",
    ),
    ("model: {class_path: CountingTusk}", "model: there is no class CountingTusk; did you mean CountingTask?"),
    ("data: {init_args: {attacks: {pgd/4: PDG}}}", "data.attacks.pgd/4: there is no class PDG; did you mean PGD?"),
    (
        "data: {init_args: {attacks: {pgd/4: {class_path: lit_adv.attacks.PGDD}}}}",
        "there is no class lit_adv.attacks.PGDD; did you mean PGD",
    ),
    ("trainer: {callbacks: [ResultsTabel]}", "there is no class ResultsTabel; did you mean ResultsTable?"),
    ("model: {init_args: {width: abc}}", "model.width: expected int, got abc"),
    ("trainer: {max_epochs: abc}", "trainer.max_epochs: expected int, got abc"),
    (
        "data: {init_args: {attacks: {pgd/4: {init_args: {eps: 4/x}}}}}",
        "data.attacks.pgd/4.eps: a radius must be a number or a fraction such as 8/255, got '4/x'",
    ),
    ("data: {init_args: {attacks: {pgd/4: {init_args: {eps: 8}}}}}", "PGD: eps must be in [0, 1] for linf, got 8"),
    ("model: {init_args: {width: '${vars.nope}'}}", "${vars.nope} has no value (add --vars.nope=VALUE)"),
    (
        "model: {init_args: {width: '${trainer.max_epoch}'}}",
        "model.init_args.width: ${trainer.max_epoch} refers to nothing in the config; did you mean trainer.max_epochs",
    ),
    ("model: {init_args: {width: 3}", "case.yaml, line 2, column"),
    ("trainer: {accelerator: quantum}", "trainer: You selected an invalid accelerator name"),
    ("checkpoint: {mode: up}", "Checkpoint: mode must be min or max, got 'up'"),
    ("model: {init_args: {fail: init}}", "CountingTask: fail must not be 'init'"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_config_is_one_message_that_names_key_and_remedy(toy, monkeypatch, text, message):
    monkeypatch.setattr(CountingData, "train_dataloader", lambda self: pytest.fail("data were read"))
    result = toy(text)
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_epoch=3"], "trainer.max_epoch: no such option; did you mean max_epochs"),
        (["--model.learning_rat", "3"], "CountingTask has no argument 'learning_rat'; did you mean learning_rate?"),
        (["--data.init_args.attacks.pgd/4.init_args.stepz=8"], "PGD has no argument 'stepz'; did you mean steps"),
        (["--data.init_args.attacks.pgd/4.init_args.eps=foo"], "data.attacks.pgd/4.eps: a radius must be a number"),
        (["--model=CountingTusk"], "there is no class CountingTusk"),
        (["--data.attacks.pgd/4.class_path=PDG"], "data.attacks.pgd/4: there is no class PDG; did you mean PGD?"),
        (["--data.attacks.pgd/5.eps=8/255"], "data.attacks.pgd/5: nothing of that name has a field eps to change; did"),
        (["--data.attacks.pgd/4=8"], "data.attacks.pgd/4: must be the name of a class, got '8'"),
        (["--data.attacks.pgd/4.epss=8/255"], "pgd/4.epss: PGD has no argument 'epss'; did you mean eps"),
        (["--data.victims=best.ckpt"], "data.victims must be name: path, got 'best.ckpt' (--data.victims.NAME="),
        (["--foo=1"], "foo: no such option; there are"),
        (["--config", "nope.yaml"], "nope.yaml: no such config file"),
    ],
)
def test_a_bad_option_too(run, tmp_path, arguments, message):
    torch.save({"state_dict": {"weight": torch.randn(99)}}, tmp_path / "best.ckpt")
    result = run("fit", "--config", "toy.yaml", *arguments)
    assert result.code == 2
    assert message in result.err


def test_what_is_missing_is_named(run):
    assert "data, model must be given" in run("fit").err


def test_a_mistake_in_the_program_keeps_its_traceback(toy):
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        toy("model: {init_args: {fail: step}}")


def test_debug_shows_where_an_error_comes_from(toy):
    with pytest.raises(Exception, match="no such option"):
        toy("trainer: {max_epoch: 1}", "--debug")


# interruption


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(toy, run, tmp_path):
    result = toy("model: {init_args: {fail: interrupt}}", "--run_dir=here dir")
    assert result.code == 130
    assert "resume with: lightning fit --config 'here dir/config.yaml' --ckpt_path last" in result.err
    last = torch.load(tmp_path / "here dir/checkpoints/last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 2)
    again = run("fit", "--config", "here dir/config.yaml", "--ckpt_path=last", "--model.fail=null")
    assert again.code == 0, again.err
    assert torch.load(tmp_path / "here dir/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


DIGITS = [
    *("--config", "configs/digits/victims/small_cnn.yaml", "--config", "configs/trainer/cpu.yaml"),
    *("--data.train_limit=60", "--data.test_limit=20", "--trainer.max_epochs=1000", "--run_dir=here"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_real_run_which_can_go_on(tmp_path, number, code):
    command = [sys.executable, "-m", "lit_adv", "fit", *DIGITS]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "here/checkpoints/last.ckpt").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code, error
    assert "a checkpoint is left: here/checkpoints/last.ckpt" in error
    assert "resume with: lightning fit --config here/config.yaml --ckpt_path last" in error
    assert "will override existing callbacks" not in error
    epoch = torch.load(tmp_path / "here/checkpoints/last.ckpt", weights_only=True)["epoch"]
    resume = ["fit", "--config", "here/config.yaml", "--ckpt_path", "last", f"--trainer.max_epochs={epoch + 2}"]
    done = subprocess.run([sys.executable, "-m", "lit_adv", *resume], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "here/checkpoints/last.ckpt", weights_only=True)["epoch"] == epoch + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [[], ["torch.distributed.run", "--nproc-per-node=2", "-m"]], ids=["own", "torchrun"]
)
def test_two_ranks_share_one_folder(tmp_path, launcher):
    options = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=1"]
    command = [sys.executable, "-m", *launcher, "lit_adv", "fit", *DIGITS[:-1], *options]
    # a trainer of an earlier test leaves such, by which Lightning would take this for one of several started elsewhere
    left = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
    environment = {name: value for name, value in os.environ.items() if name not in left} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (config,) = (tmp_path / "runs").rglob("config.yaml")
    assert (config.parent / "checkpoints/best.ckpt").is_file()
    assert done.stdout.count("best checkpoint: ") == 1


@pytest.mark.parametrize(("note", "calls"), [("nothing", 0), ("pl_bolts.callbacks.PrintTableMetricsCallback", 1)])
def test_bolts_is_imported_only_where_the_config_names_it(toy, monkeypatch, note, calls):
    from lit_adv import bolts

    imported = []
    monkeypatch.setattr(bolts, "bolts_available", lambda: True)
    monkeypatch.setattr(bolts, "import_bolts", lambda: imported.append(1))
    assert toy(f"data: {{init_args: {{note: {note}}}}}", "--trainer.fast_dev_run=true").code == 0
    assert len(imported) == calls


def test_a_classifier_may_be_tested_by_another_task_than_trained_it(run, tmp_path):
    few = ("--data.train_limit=64", "--data.test_limit=10", "--data.validation=10", "--trainer.callbacks=RunProgress")
    attack = "--model.attack.steps=1"
    training = ("--config", "configs/digits/adversarial_training.yaml", "--model.ema_decay=0.5", attack)
    trained = run("fit", *training, "--run_dir=here", "--trainer.max_epochs=1", *few)
    assert trained.code == 0, trained.err
    checkpoint = "--ckpt_path=here/checkpoints/best.ckpt"
    plain = ("test", "--config", "configs/digits/victims/small_cnn.yaml", checkpoint, *few)
    other = run(*plain, "--run_dir=other")
    assert other.code == 0, other.err
    assert "test/acc" in (tmp_path / "other" / "metrics.csv").read_text()
    # it is another network still, and another way of training
    assert "the checkpoint holds small_cnn" in run(*plain, "--run_dir=wrong", "--model.name=resnet20").err
    result = run("fit", *plain[1:], "--run_dir=here")
    assert "model.class_path is lit_adv.tasks.AdversarialTraining in the checkpoint" in result.err
