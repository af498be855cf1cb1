"""Singular values over training, accuracy under noise, learning curves: numbers, files, resuming, two processes."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import AccuracyUnderNoise, LearningCurves, SingularValues
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.attacks import noise_at_snr
from lit_adv.metrics import NoiseAccuracy
from lit_adv.models import Classifier, ParsevalLinear
from lit_adv.plots import learning_figure, noise_figure, singular_value_figure


class Small(pl.LightningModule):
    """One frame and one free layer, trained by a gradient that is known."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frame, self.free, self.frozen = ParsevalLinear(5, 3), nn.Linear(4, 4), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        loss = (self.frame.weight**2).sum() + (self.free.weight**2).sum()
        self.log("val/acc", torch.tensor(0.1 * (self.current_epoch + 1)))
        self.log("train/loss", loss.detach(), on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader():
    return DataLoader(TensorDataset(torch.zeros(4, 1)), batch_size=4)


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_singular_values_are_numpys(tmp_path, trainer):
    callback, task = SingularValues(bins=8, upper=2.0), Small()
    first = {name: getattr(task, name).weight.detach().clone() for name in ("frame", "free")}
    run = trainer(callback, max_epochs=3)
    run.fit(task, loader())
    found = rows(tmp_path / "singular_values.csv")
    assert [(row["epoch"], row["layer"]) for row in found] == [
        (str(epoch), layer) for epoch in range(4) for layer in ("frame", "free")
    ]
    last = {name: getattr(task, name).weight.detach() for name in ("frame", "free")}
    for row, weight in [*zip(found[:2], first.values(), strict=False), *zip(found[-2:], last.values(), strict=False)]:
        values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
        assert float(row["largest"]) == pytest.approx(values.max(), abs=1e-7)
        assert float(row["smallest"]) == pytest.approx(values.min(), abs=1e-6)
        assert float(row["deviation"]) == pytest.approx(abs(values - 1).max(), abs=1e-6)
        assert float(row["row_sum"]) == pytest.approx(weight.abs().sum(1).max().item(), abs=1e-6)
        counts = np.histogram(values.clip(max=2), bins=8, range=(0, 2))[0]
        assert callback.counts[row["layer"]][int(row["epoch"])] == counts.tolist()
    assert [row["constrained"] for row in found[:2]] == ["l2", ""]
    # of the frame alone, which the steps have shrunk to 0.9 of itself each
    assert run.callback_metrics["singular_values/deviation"].item() == pytest.approx(1 - 0.9**3, abs=1e-5)
    assert (tmp_path / "figures" / "singular_values.png").stat().st_size > 10_000


def test_what_is_nearly_a_tight_frame_lies_in_one_bin():
    callback, task = SingularValues(), nn.Linear(4, 4)
    task.weight.data = torch.diag(torch.tensor([0.98, 0.999, 1.001, 1.02]))
    module = pl.LightningModule()
    module.layer = task
    callback._look(module, 0)
    counts = callback.counts["layer"][0]
    assert max(counts) == sum(counts) == 4


def test_a_resumed_run_has_the_whole_history(tmp_path, trainer):
    whole = SingularValues(every_n_epochs=2), LearningCurves(metrics=["train/loss", "val/acc"])
    trainer(*whole, max_epochs=5).fit(Small(), loader())
    first = trainer(SingularValues(every_n_epochs=2), LearningCurves(metrics=["train/loss", "val/acc"]), max_epochs=2)
    first.fit(Small(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    again = SingularValues(every_n_epochs=2), LearningCurves(metrics=["train/loss", "val/acc"])
    run = trainer(*again, max_epochs=5)
    run.fit(Small(), loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert whole[0].epochs == again[0].epochs == [0, 2, 4, 5]
    assert again[0].rows == whole[0].rows
    assert again[1].curves() == whole[1].curves()
    assert list(again[1].curves()["val/acc"]["this run"][0]) == [1, 2, 3, 4, 5]


def test_learning_curves_beside_another_runs(tmp_path, trainer):
    other = tmp_path / "other" / "2026-01-01"
    other.mkdir(parents=True)
    (other / "metrics.csv").write_text("step,epoch,train/loss,val/acc\n1,0,3.0,\n2,0,2.0,0.5\n3,1,1.0,0.75\n")
    callback = LearningCurves(runs={"vanilla": str(other.parent)}, name="Parseval", metrics=["train/loss", "val/acc"])
    trainer(callback, max_epochs=2).fit(Small(), loader())
    found = rows(tmp_path / "learning_curves.csv")
    kept = {(r["run"], r["metric"], r["epoch"]): float(r["value"]) for r in found}
    assert kept["vanilla", "train/loss", "1"] == 2.0
    assert kept["vanilla", "val/acc", "2"] == 0.75
    assert kept["Parseval", "val/acc", "2"] == pytest.approx(0.2)
    assert len(found) == 8
    assert (tmp_path / "figures" / "learning_curves.png").stat().st_size > 10_000


def images(count=7):
    draws = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 1, 8, 8, generator=draws), torch.arange(count) % 4)


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Classifier("parseval_wrn10_1", 4, 8, 1)

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx):
        return None


def test_accuracy_under_noise_is_that_of_the_noise(tmp_path, trainer, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    torch.manual_seed(1)
    other = Classifier("small_cnn", 4, 8, 1)
    callback = AccuracyUnderNoise({"other": other}, decibels=(40, 10), steps=3)
    task = Task()
    trainer(callback).test(task, DataLoader(images(), batch_size=3), verbose=False)
    x, y = images().tensors
    found = json.loads((tmp_path / "accuracy_under_noise.json").read_text())
    assert found["images"] == 7
    for name, model in (("tested", task.eval()), ("other", other.eval())):
        assert found["classifiers"][name]["clean"] == (model(x).argmax(1) == y).double().mean().item()
        for kind, steps in (("FGSM", 1), ("PGD-3", 3)):
            noisy = noise_at_snr(model, x, y, [40, 10], steps)
            expected = [(model(each).argmax(1) == y).double().mean().item() for each in noisy]
            assert found["classifiers"][name][kind] == pytest.approx(expected)
    out = capsys.readouterr().out
    for kind in ("FGSM", "PGD-3"):  # on one line, in 80 columns
        assert f"tested, {kind}" in out
        assert f"other, {kind}" in out
    table = rows(tmp_path / "accuracy_under_noise.csv")
    assert len(table) == 2 * (1 + 2 * 2)
    assert (tmp_path / "figures" / "accuracy_under_noise.png").stat().st_size > 10_000


def test_counts_and_no_images():
    metric = NoiseAccuracy(["a"], ["n"], [1, 2])
    metric.update(torch.zeros(1, 0).bool(), torch.zeros(1, 1, 2, 0).bool())
    assert metric.compute()["classifiers"] == {"a": {"clean": None, "n": [None, None]}}
    metric.update(torch.tensor([[True, False]]), torch.tensor([[[[True, True], [False, False]]]]))
    metric.update(torch.tensor([[True]]), torch.tensor([[[[True], [False]]]]))
    assert metric.compute() == {
        "images": 3,
        "levels": [1.0, 2.0],
        "classifiers": {"a": {"clean": 2 / 3, "n": [1.0, 0.0]}},
    }


RANKS = """
import importlib.util, sys
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from lit_adv.callbacks import AccuracyUnderNoise

source = importlib.util.spec_from_file_location("source", sys.argv[1])
source_module = importlib.util.module_from_spec(source)
source.loader.exec_module(source_module)
torch.set_num_threads(1)
run = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
                 enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[2],
                 callbacks=[AccuracyUnderNoise(decibels=(40, 10), steps=0)])
run.test(source_module.Task(), DataLoader(source_module.images(), batch_size=2), verbose=False)
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path, trainer):
    """Seven images: Lightning's sampler gives one of them to both."""
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, str(tmp_path / "ranks.py"), __file__, str(tmp_path / "two")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    trainer(AccuracyUnderNoise(decibels=(40, 10), steps=0)).test(Task(), DataLoader(images(), batch_size=2))
    one, two = (
        json.loads((folder / "accuracy_under_noise.json").read_text()) for folder in (tmp_path, tmp_path / "two")
    )
    assert one == two
    assert one["images"] == 7


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SingularValues(bins=0), ValueError, "SingularValues: bins must be at least 1, got 0"),
        (lambda: SingularValues(upper=1.0), ValueError, "upper must be finite and above 1"),
        (lambda: AccuracyUnderNoise(steps=1), ValueError, r"steps must be 0 \(no PGD\) or at least 2, got 1"),
        (lambda: AccuracyUnderNoise(decibels=(3, 3)), ValueError, "decibels must be one or more different numbers"),
        (lambda: AccuracyUnderNoise(tested=None), ValueError, "must give one or more different names"),
        (lambda: AccuracyUnderNoise({"a": "no.ckpt"}), ValueError, "there is no checkpoint 'no.ckpt' for a"),
        (lambda: LearningCurves({"this run": "x"}), ValueError, "name must not be one of runs"),
        (lambda: LearningCurves({"a": "nowhere"}), FileNotFoundError, "no metrics.csv in 'nowhere'"),
        (lambda: LearningCurves(metrics=[]), ValueError, "metrics must be at least one"),
        (lambda: singular_value_figure([0], [0, 1], {"a": [[1, 2]]}), ValueError, r"a must have counts of shape"),
        (lambda: noise_figure([1], {}), ValueError, "something to show"),
        (lambda: learning_figure({}), ValueError, "something to show"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_classifier_of_other_images_or_classes_is_refused_by_name(trainer):
    for shape, words in (((3, 8, 1), "must have the 4 classes .* got 3"), ((4, 8, 3), r"must take images \(1, 8, 8\)")):
        callback = AccuracyUnderNoise({"fine": Task().net, "wrong": Classifier("small_cnn", *shape)}, decibels=(40,))
        with pytest.raises(ValueError, match=f"AccuracyUnderNoise: classifiers: wrong {words}"):
            trainer(callback).test(Task(), DataLoader(images(), batch_size=3), verbose=False)


def test_figures_show_what_they_are_given():
    figure = noise_figure([20, 40], {"FGSM": {"a": [0.2, 0.4]}})
    line = figure.axes[0].lines[0]
    # noise grows to the right
    assert line.get_xdata().tolist() == [40, 20]
    assert line.get_ydata().tolist() == [0.4, 0.2]
    assert figure.axes[0].get_xlim()[0] > figure.axes[0].get_xlim()[1]
    figure = singular_value_figure([0, 5], [0, 1, 2], {"a": [[1, 3], [4, 0]]})
    shown = figure.axes[0].collections[0].get_array()
    assert np.allclose(np.ma.filled(shown, 0).reshape(2, 2), np.sqrt([[0.25, 1], [0.75, 0]]))
    figure = learning_figure({"train/loss": {"a": ([1], [2.0])}, "val/loss": {"a": ([1], [2.0])}})
    assert [axes.get_title() for axes in figure.axes] == ["train/loss, last batch logged", "val/loss"]
