"""The report of a test: what `diagnose` finds, in files, tables, loggers and a figure, on one process and on two."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit_adv.callbacks import RobustnessReport
from lit_adv.callbacks.robustness_report import _figure
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv import diagnose
from lit_adv.models import Classifier

QUICK = {"restarts": 1, "queries": 30, "seed": 4}
EPS = 0.1


class Task(pl.LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        self.double()

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx):
        return None


def images(count=23):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 6, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = Task()(x).argmax(1)
    y[::6] = (y[::6] + 1) % 3
    return TensorDataset(x, y)


def callback(**changes):
    return RobustnessReport(**{"eps": EPS, "undefended": Task(1), "radii": [0.05], **QUICK, **changes})


def test_it_finds_what_diagnose_finds(tmp_path, trainer, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report, model = callback(), Task()
    logger = CSVLogger(tmp_path, name="", version="")
    trainer(report, inference_mode=True, logger=logger).test(model, DataLoader(images(), batch_size=5), verbose=False)
    x, y = images().tensors
    expected = diagnose(Task(), [(x, y)], EPS, Task(1), radii=[0.05], **QUICK)
    assert report.diagnosis == expected
    out = capsys.readouterr().out
    assert "Robustness at Linf 0.1, 23 images" in out
    assert expected.verdict == "cannot tell"
    assert expected.text in " ".join(out.split())
    assert out.strip().endswith(str(tmp_path / "robustness_report.csv"))
    assert all(len(line) <= 80 for line in out.splitlines() if "robustness report:" not in line)
    stored = json.loads((tmp_path / "robustness_report.json").read_text())
    assert stored["diagnostics"]["D1"]["value"] == expected.diagnostics["D1"].value
    assert (tmp_path / "figures" / "robustness_report.png").stat().st_size > 10_000
    labels = {tick.get_text() for tick in _figure(expected).axes[1].get_yticklabels()}
    assert {"FGSM − FGSM on margin  D9 (informs)", "PGD − FGSM  D1"} <= labels
    with (tmp_path / "metrics.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["masking/D3/pgd"]) == pytest.approx(expected.diagnostics["D3/pgd"].value)
    assert float(row["masking/accuracy/pgd"]) == pytest.approx(expected.accuracies["pgd"]["accuracy"])


def test_an_undefended_network_may_be_a_checkpoint(tmp_path, trainer):
    from lit_adv.models import save_classifier

    class Pictures(Task):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.net = Classifier("small_cnn", 3, 16, 1)
            self.float()

    other, model = Classifier("small_cnn", 3, 16, 1), Pictures().eval()
    path = tmp_path / "plain.safetensors"
    save_classifier(other, path)
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    report = callback(undefended=str(path), radii=None, limit_batches=2)
    trainer(report).test(model, DataLoader(TensorDataset(x, y), batch_size=2), verbose=False)
    assert report.diagnosis.images == 4
    expected = diagnose(model, [(x[:2], y[:2]), (x[2:4], y[2:4])], EPS, other.eval(), **QUICK)
    assert report.diagnosis == expected
    assert "fgsm_transfer" in expected.accuracies


def test_an_undefended_network_of_other_classes_is_refused_before_any_attack(trainer, monkeypatch):
    other = Task(1)
    other.net[3] = nn.Linear(64, 5)
    other.double()
    monkeypatch.setattr("lit_adv.attacks.FGSM.run", lambda *arguments, **named: pytest.fail("attacked"))
    with pytest.raises(ValueError, match=r"RobustnessReport: undefended must have the 3 classes .*, got 5 "):
        trainer(callback(undefended=other)).test(Task(), DataLoader(images(), batch_size=5), verbose=False)


def test_bad_fields():
    for change, words in (
        ({"eps": 2}, r"RobustnessReport: eps must be in \(0, 1\), got 2"),
        ({"steps": 10}, "RobustnessReport: steps must be at least 50, got 10"),
        ({"thresholds": {"D0": 0}}, "RobustnessReport: thresholds must be of D1"),
        ({"limit_batches": 0}, "RobustnessReport: limit_batches must be at least 1 or null, got 0"),
        ({"undefended": "missing.ckpt"}, "RobustnessReport: there is no checkpoint 'missing.ckpt' for undefended"),
    ):
        with pytest.raises(ValueError, match=words):
            callback(**change)


def test_other_batches_are_refused(trainer):
    loader = DataLoader(images().tensors[0], batch_size=5)
    with pytest.raises(ValueError, match=r"RobustnessReport with Task: batches must be \(images, labels\), got Tensor"):
        trainer(callback()).test(Task(), loader, verbose=False)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, trainer) -> None:
    # 23 images on 2 processes: Lightning's sampler gives one of them twice
    trainer(callback()).test(Task(), DataLoader(images(), batch_size=4), verbose=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for variable in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"):
        environment.pop(variable, None)
    command = [sys.executable, __file__, str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((folder / "robustness_report.json").read_text()) for folder in (tmp_path, tmp_path / "two"))
    assert one["images"] == 23
    gaps = [each["diagnostics"].pop("D8") for each in (one, two)]
    assert two == one
    assert gaps[1]["value"] == pytest.approx(gaps[0]["value"], rel=1e-9)


def main(folder):
    """A test run on two processes, called by the test above."""
    torch.set_num_threads(1)
    pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        callbacks=[callback()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    ).test(Task(), DataLoader(images(), batch_size=3), verbose=False)


if __name__ == "__main__":
    main(sys.argv[1])
